"""How a model is made plastic: the axes of a converted layer, the presets, and which layers.

Nothing here imports torch, so that the command line can answer `--help` at once.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args

from tyro.conf import UseAppendAction, arg

from . import overrides
from .errors import NPTError

Site = Literal["gate", "up", "down"]
Preset = Literal["v1", "v2", "single", "dual", "triple"]
Modulation = Literal["additive", "multiplicative", "both", "gate", "gate+up", "gate+up+down"]
MLPInput = Literal["pre_attention", "post_attention"]
AttentionResidual = Literal["keep", "drop"]
GeneratorKind = Literal["analytic", "low_rank"]
Key = Literal["self", "learned"]
GeneratorInput = Literal["attention", "effect"]
BottleneckKind = Literal["linear", "relu"]
RankWeights = Literal["fixed", "attention"]
Heads = Literal["own", "projected"]
GateKind = Literal["none", "learned"]
Mode = Literal["dynamic", "standard"]

Place = tuple[int, Site]
"""A layer's number, and one of its MLP's projections."""
SITES: tuple[Site, ...] = get_args(Site)
ON_ACTIVATIONS = ("additive", "multiplicative", "both")


class Axes(NamedTuple):
    """The three axes that a preset sets."""

    modulation: Modulation
    mlp_input: MLPInput
    attention_residual: AttentionResidual

    @property
    def on_weights(self) -> bool:
        """True when weights are modulated, False when the gate's activations are."""
        return self.modulation not in ON_ACTIVATIONS

    @property
    def sites(self) -> tuple[Site, ...]:
        """The projections whose output the generator changes."""
        return tuple(s for s in SITES if s in self.modulation.split("+")) if self.on_weights else ("gate",)

    @property
    def out_of_reach(self) -> tuple[str, ...]:
        """What no generator on these axes can give back of the pretrained layer; empty if all of it can be."""
        lost = []
        if self.mlp_input == "pre_attention" and "up" not in self.sites:
            lost.append("up reads n(h) and is not modulated")
        if self.attention_residual == "drop" and "down" not in self.sites:
            lost.append("nothing carries the attention output that the layer no longer adds")
        return tuple(lost)


PRESETS: dict[Preset, Axes] = {
    "v1": Axes("additive", "post_attention", "keep"),
    "v2": Axes("both", "pre_attention", "drop"),
    "single": Axes("gate", "pre_attention", "keep"),
    "dual": Axes("gate+up", "pre_attention", "keep"),
    "triple": Axes("gate+up+down", "pre_attention", "drop"),
}


LEARNED_PARTS = (
    "num_ranks",
    "key",
    "rank_weights",
    "top_ranks",
    "gate",
    "gate_threshold",
    "heads",
    "coarse_rank",
    "coarse_group",
)
"""What low-rank generators may have, and the analytic one cannot."""


@dataclass(frozen=True)
class PlasticityConfig:
    """What a converted layer computes. A preset sets three axes; any of them may be overridden."""

    preset: Preset = "dual"
    """Named combination of modulation, MLP input and attention residual. `dual` (gate and up weights) and
    `triple` (down as well) reproduce the pretrained layer exactly with the analytic generator; `single`,
    `v1` and `v2` are the research notes' earlier forms."""

    layers: str = "all"
    """Which layers become plastic: all, upper_half, top2 (any number), 14,15, 8-15, or negative indices."""

    generator: GeneratorKind = "analytic"
    """What makes the modulation: `analytic` is exact and has no parameters; `low_rank` is learned."""

    np_rank: int = 64
    """r: width of the low-rank generator's bottleneck."""

    num_ranks: int = 1
    """k: rank-1 components per token and site (low_rank on weights)."""

    key: Key = "self"
    """Input side v_a of a weight update: `self` is z/|z|^2, `learned` comes from the bottleneck."""

    input: GeneratorInput = "attention"
    """What the low-rank generator reads: the attention output a, or its effect e = n(h + a) - n(h)."""

    bottleneck: BottleneckKind = "linear"
    """Nonlinearity of the low-rank generator's bottleneck."""

    rank_weights: RankWeights = "fixed"
    """Weights of the k components of a token: `fixed` (all 1), or `attention`: a softmax over them that reads the
    layer's attention output (adaptive rank)."""

    top_ranks: int | None = None
    """With rank_weights=attention, the number of components of each token that are used; the others cost nothing."""

    gate: GateKind = "none"
    """`learned`: a number in [0, 1] per token, from the MLP's input and the attention output, scales its modulation
    (conditional modulation)."""

    gate_threshold: float = 0.0
    """Tokens whose gate is below this are not modulated at all, and cost no generator."""

    coarse_rank: int = 0
    """Numbers of a coarse code that the first plastic layer of a group makes once for all its layers; each adds np_rank
    of its own (hierarchical modulation). 0: none."""

    coarse_group: int | None = None
    """Plastic layers, in order, that share a coarse code (default: all of them)."""

    heads: Heads = "own"
    """`own`: gate and up have payload heads of their own (d_ffn wide). `projected`: they share one that is d_model wide
    and passes through their pretrained weights: the same payloads for dual, with a third of the parameters."""

    modulation: Modulation | None = None
    """Override of the preset: on gate activations (additive, multiplicative, both) or on the weights of the
    sites (gate, gate+up, gate+up+down)."""

    mlp_input: MLPInput | None = None
    """Override of the preset: the MLP reads n(h) (pre_attention) or n(h + a) (post_attention)."""

    attention_residual: AttentionResidual | None = None
    """Override of the preset: keep h + a + mlp, or drop to the single residual h + mlp."""

    seed: int = 0
    """Seed of the low-rank generator's random initialisation."""

    layer_overrides: Annotated[
        tuple[str, ...], arg(name="layer", metavar="14:rank=128,preset=single"), UseAppendAction
    ] = ()
    """Layers whose settings differ: 14:rank=128,preset=single or 8-15:k=2. Repeat the option for more; later ones go
    before earlier ones. In Python also {14: {"np_rank": 128, "preset": "single"}}."""

    def __post_init__(self) -> None:
        layers: Any = self.layers
        if not isinstance(layers, str):
            object.__setattr__(self, "layers", _layers_as_text(layers))
        _check_choice("preset", self.preset, get_args(Preset))
        _check_choice("modulation", self.axes.modulation, get_args(Modulation))
        _check_choice("mlp_input", self.axes.mlp_input, get_args(MLPInput))
        _check_choice("attention_residual", self.axes.attention_residual, get_args(AttentionResidual))
        _check_choice("generator", self.generator, get_args(GeneratorKind))
        _check_choice("key", self.key, get_args(Key))
        _check_choice("input", self.input, get_args(GeneratorInput))
        _check_choice("bottleneck", self.bottleneck, get_args(BottleneckKind))
        _check_choice("rank_weights", self.rank_weights, get_args(RankWeights))
        _check_choice("gate", self.gate, get_args(GateKind))
        _check_choice("heads", self.heads, get_args(Heads))
        for field, least in (
            ("np_rank", 1),
            ("num_ranks", 1),
            ("top_ranks", 1),
            ("coarse_rank", 0),
            ("coarse_group", 1),
        ):
            value = getattr(self, field)
            if value is None and field in ("top_ranks", "coarse_group"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise NPTError(f"{field} must be a whole number of at least {least}, not {value!r}")
        if not isinstance(self.gate_threshold, int | float) or not 0 <= self.gate_threshold <= 1:
            raise NPTError(f"gate_threshold must be from 0 to 1, not {self.gate_threshold!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise NPTError(f"seed must be a whole number from 0 to 2^63 - 1, not {self.seed!r}")
        self._refuse_impossible()
        object.__setattr__(self, "layer_overrides", overrides.as_texts(self.layer_overrides, PER_LAYER))
        for spec in self.layer_overrides:
            try:
                self.at(overrides.layers_of(spec)[0])
            except NPTError as e:
                raise NPTError(f"layer {spec!r}: {e}") from None

    @functools.cached_property
    def _overrides(self) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for spec in self.layer_overrides:
            for i in overrides.layers_of(spec):
                found.setdefault(i, {}).update(overrides.settings_of(spec, PER_LAYER))
        return found

    @property
    def overridden(self) -> tuple[int, ...]:
        """The layers that have settings of their own."""
        return tuple(sorted(self._overrides))

    def at(self, layer: int) -> PlasticityConfig:
        """What one layer is converted with: this, with its overrides applied."""
        if not self.layer_overrides:
            return self
        own = self._overrides.get(layer, {})
        base = dict.fromkeys(Axes._fields) if "preset" in own else {}  # its own preset, not an override of the model's
        if own.get("generator") == "analytic":  # what the other layers' generators are made of means nothing to it
            base |= {f.name: f.default for f in dataclasses.fields(self) if f.name in LEARNED_PARTS}
        return dataclasses.replace(self, layer_overrides=(), **{**base, **own})

    def with_rank(self, np_rank: int) -> PlasticityConfig:
        """The same with this rank in every layer, also in those that had one of their own."""
        kept = {i: {n: v for n, v in own.items() if n != "np_rank"} for i, own in self._overrides.items()}
        given: Any = {i: own for i, own in kept.items() if own}
        return dataclasses.replace(self, np_rank=np_rank, layer_overrides=given)

    def _refuse_impossible(self) -> None:
        self._refuse_extensions()
        if self.generator == "analytic":
            if self.num_ranks != 1:
                raise NPTError(
                    f"num_ranks={self.num_ranks} with generator='analytic': the exact update of a token has "
                    "rank 1; use num_ranks=1 or generator='low_rank'"
                )
            if self.key != "self":
                raise NPTError(
                    "key='learned' with generator='analytic': the exact update needs the self key z/|z|^2; "
                    "use key='self' or generator='low_rank'"
                )
        elif not self.axes.on_weights:
            if self.num_ranks != 1:
                raise NPTError(
                    f"num_ranks={self.num_ranks} with modulation={self.axes.modulation!r}: activations have no "
                    "rank-1 components; use num_ranks=1 or modulate weights"
                )
            if self.key != "self":
                raise NPTError(
                    f"key='learned' with modulation={self.axes.modulation!r}: only weight updates have a key; "
                    "leave key out or modulate weights"
                )

    def _refuse_extensions(self) -> None:
        weighted, gated, coarse = self.rank_weights != "fixed", self.gate != "none", self.coarse_rank > 0
        at_sites = {"rank_weights='attention'": weighted, "heads='projected'": self.heads != "own"}
        anywhere = {"gate='learned'": gated, f"coarse_rank={self.coarse_rank}": coarse}
        for name, used in {**at_sites, **anywhere}.items():
            if used and self.generator == "analytic":
                raise NPTError(
                    f"{name} with generator='analytic': the exact generator has nothing to learn; "
                    "use generator='low_rank'"
                )
            if used and name in at_sites and not self.axes.on_weights:
                raise NPTError(
                    f"{name} with modulation={self.axes.modulation!r}: only weight updates have components and heads "
                    "at each site; modulate weights"
                )
        meaningless = {
            "rank_weights='attention'": weighted and self.num_ranks == 1 and "num_ranks=1",
            f"top_ranks={self.top_ranks}": self.top_ranks is not None and not weighted and "rank_weights='fixed'",
            f"gate_threshold={self.gate_threshold}": self.gate_threshold > 0 and not gated and "gate='none'",
            f"coarse_group={self.coarse_group}": self.coarse_group is not None and not coarse and "coarse_rank=0",
        }
        for name, without in meaningless.items():
            if without:
                raise NPTError(f"{name} has no meaning with {without}")
        if self.top_ranks is not None and self.top_ranks > self.num_ranks:
            raise NPTError(f"top_ranks={self.top_ranks} is more than there are: num_ranks={self.num_ranks}")
        if self.heads == "projected" and self.axes.sites == ("down",):
            raise NPTError("heads='projected' needs gate or up among the sites")

    @property
    def axes(self) -> Axes:
        """The preset's axes with the overrides applied."""
        given = (self.modulation, self.mlp_input, self.attention_residual)
        return Axes(*(g or p for g, p in zip(given, PRESETS[self.preset], strict=True)))  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PlasticityConfig:
        """Raises NPTError on a key that this version does not know."""
        unknown = sorted(set(data) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise NPTError(f"unknown plasticity setting {unknown[0]!r}; made by another version?")
        return cls(**{**data, "layer_overrides": tuple(data.get("layer_overrides", ()))})


PER_LAYER = tuple(
    f.name
    for f in dataclasses.fields(PlasticityConfig)
    if f.name not in ("layers", "layer_overrides", "seed", "coarse_rank", "coarse_group")
)
"""Settings that one layer may have for itself; the others concern the model or a group of its layers."""


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise NPTError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def _layers_as_text(layers: Any) -> str:
    try:
        items = [layers] if isinstance(layers, int) else list(layers)
    except TypeError:
        items = []
    if not items or not all(isinstance(i, int) and not isinstance(i, bool) for i in items):
        raise NPTError(f"layers must be text such as 'all' or '8-15', or whole numbers, not {layers!r}")
    return ",".join(map(str, items))


def parse_layers(spec: str, num_layers: int) -> tuple[int, ...]:
    """The layer indices that `spec` names in a model of `num_layers` layers, sorted, each once.

    Raises NPTError if a part is not understood or out of range.
    """

    def index(text: str) -> int:
        i = int(text)
        if not -num_layers <= i < num_layers:
            raise NPTError(f"layer {i} is out of range: the model has layers 0 to {num_layers - 1}")
        return i % num_layers

    chosen: set[int] = set()
    for part in (p.strip() for p in spec.split(",")):
        if part == "all":
            chosen.update(range(num_layers))
        elif part == "early":  # where facts about a subject are looked up; see docs/editing.md
            first = num_layers // 10
            chosen.update(range(first, max(first + 1, num_layers * 4 // 15)))
        elif part == "upper_half":
            chosen.update(range(num_layers // 2, num_layers))
        elif m := re.fullmatch(r"top(\d{1,6})", part):
            n = int(m[1])
            if not 1 <= n <= num_layers:
                raise NPTError(f"layers {part!r}: the model has {num_layers} layers")
            chosen.update(range(num_layers - n, num_layers))
        elif re.fullmatch(r"-?\d{1,6}", part):
            chosen.add(index(part))
        elif m := re.fullmatch(r"(-?\d{1,6})-(-?\d{1,6})", part):
            first, last = index(m[1]), index(m[2])
            if first > last:
                raise NPTError(f"layers {part!r}: the range ends before it begins")
            chosen.update(range(first, last + 1))
        else:
            raise NPTError(f"layers {part!r} not understood; use all, early, upper_half, top2, 14,15, 8-15 or -1")
    return tuple(sorted(chosen))
