"""How a model is made plastic: the axes of a converted layer, the presets, and which layers.

Nothing here imports torch, so that the command line can answer `--help` at once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from .errors import NPTError

Site = Literal["gate", "up", "down"]
Preset = Literal["v1", "v2", "single", "dual", "triple"]
Modulation = Literal["additive", "multiplicative", "both", "gate", "gate+up", "gate+up+down"]
MLPInput = Literal["pre_attention", "post_attention"]
AttentionResidual = Literal["keep", "drop"]
GeneratorKind = Literal["analytic", "low_rank"]
Key = Literal["self", "learned"]
GeneratorInput = Literal["attention", "effect"]
Bottleneck = Literal["linear", "relu"]
Mode = Literal["dynamic", "standard"]

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
        """What no generator on these axes can give back of the pretrained layer; empty where all of it can be."""
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

    layer_ranks: str = ""
    """Layers whose bottleneck has another width than np_rank, such as 0:128,8-15:32."""

    num_ranks: int = 1
    """k: rank-1 components per token and site (low_rank on weights)."""

    key: Key = "self"
    """Input side v_a of a weight update: `self` is z/|z|^2, `learned` comes from the bottleneck."""

    input: GeneratorInput = "attention"
    """What the low-rank generator reads: the attention output a, or its effect e = n(h + a) - n(h)."""

    bottleneck: Bottleneck = "linear"
    """Nonlinearity of the low-rank generator's bottleneck."""

    modulation: Modulation | None = None
    """Override of the preset: on gate activations (additive, multiplicative, both) or on the weights of the
    sites (gate, gate+up, gate+up+down)."""

    mlp_input: MLPInput | None = None
    """Override of the preset: the MLP reads n(h) (pre_attention) or n(h + a) (post_attention)."""

    attention_residual: AttentionResidual | None = None
    """Override of the preset: keep h + a + mlp, or drop to the single residual h + mlp."""

    seed: int = 0
    """Seed of the low-rank generator's random initialisation."""

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
        _check_choice("bottleneck", self.bottleneck, get_args(Bottleneck))
        for field in ("np_rank", "num_ranks"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise NPTError(f"{field} must be a whole number of at least 1, not {value!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise NPTError(f"seed must be a whole number from 0 to 2^63 - 1, not {self.seed!r}")
        parse_ranks(self.layer_ranks)
        self._refuse_impossible()

    def rank_of(self, layer: int) -> int:
        """r of one layer: its own, or np_rank."""
        return parse_ranks(self.layer_ranks).get(layer, self.np_rank)

    def _refuse_impossible(self) -> None:
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
            raise NPTError(f"unknown plasticity setting {unknown[0]!r}; made by a newer version?")
        return cls(**data)


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


def parse_ranks(spec: str) -> dict[int, int]:
    """The widths that `layer_ranks` gives to layers. Raises NPTError where a part is not understood."""
    ranks: dict[int, int] = {}
    for part in filter(None, (p.strip() for p in spec.split(","))):
        m = re.fullmatch(r"(\d+)(?:-(\d+))?:([1-9]\d*)", part)
        if m is None:
            raise NPTError(f"layer_ranks {part!r} not understood; use 0:128 or 8-15:32, separated by commas")
        ranks.update(dict.fromkeys(range(int(m[1]), int(m[2] or m[1]) + 1), int(m[3])))
    return ranks


def parse_layers(spec: str, num_layers: int) -> tuple[int, ...]:
    """The layer indices that `spec` names in a model of `num_layers` layers, sorted, each once.

    Raises NPTError where a part is not understood or out of range.
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
