"""Convert a pretrained model in place, switch it between modes, and give it back.

A converted layer keeps its own `forward`. Three of its modules get a subclass of their class: the first module that
sees h and the one whose output is a leave these two for the MLP, and the MLP reads its modulation from a generator,
which is its only new submodule (`mlp.plasticity`). So parameter names stay, and caches, masks, checkpointing and
compilation keep working with no code per architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .config import Mode, PlasticityConfig, Site, parse_layers
from .errors import NPTError
from .generators import LowRank, Signals, make_generator
from .structure import LayerParts, decoder_layers, inspect_layers, projection

Projection = Callable[[Tensor], Tensor]
Probe = Callable[[Site, Projection, Tensor, Signals, Tensor], Tensor | None]
"""Sees (site, projection, z, signals, modulated output) of a layer's forward pass; may give another output."""
PLASTICITY = "plasticity"  # name of the submodule that a converted MLP has
GATED_UNITS = "gated_units"  # and of the one that an MLP with gated edits has (editing/units.py)


@dataclass(eq=False)
class LayerState:
    """What the modules of one converted layer share: the switch, and h and a within one forward pass."""

    dynamic: bool
    drop: bool
    h: Tensor | None = None
    a: Tensor | None = None
    coarse: Tensor | None = None
    """left by the first layer of a group for the others"""


class Plasticity(nn.Module):
    """The dynamic forward pass of one MLP. Its children are the generator's parameters, nothing else."""

    def __init__(self, config: PlasticityConfig, parts: LayerParts, group: tuple[int, ...] = ()):
        """`config` is this layer's own; `group` the layers that share its coarse code, itself among them."""
        super().__init__()
        gate = projection(parts.mlp, "gate")
        d_model, d_ffn = _width(parts.mlp)
        self.config, self.group = config, group
        self.generator = make_generator(config, d_model, d_ffn, parts.index, leads=parts.index in group[:1])
        weight = getattr(gate, "weight", None)
        if isinstance(weight, Tensor) and weight.is_floating_point():
            self.generator.to(device=weight.device, dtype=weight.dtype)
        self.state = LayerState(dynamic=True, drop=config.axes.attention_residual == "drop")
        self.leader = self.state
        """of the layer that makes the group's coarse code"""
        self.swapped: list[tuple[nn.Module, type[nn.Module]]] = []
        # held by a plain object: the layer owns these modules, and registering them here would rename keys
        self.parts = parts
        self.probe: Probe | None = None

    def forward(self, given: Tensor) -> Tensor:
        """given [B, T, d]: what the layer passes to its MLP; n(h + a), or n(h) if the residual is dropped."""
        signals, z = self._signals(given)
        mlp, sites = self.parts.mlp, self.config.axes.sites

        def project(site: Site, z: Tensor) -> Tensor:
            linear = projection(mlp, site)
            if site not in sites:
                plain: Tensor = linear(z)
                return plain
            y = self.generator(site, linear, z, signals)
            changed = None if self.probe is None else self.probe(site, linear, z, signals, y)
            return y if changed is None else changed

        return project("down", mlp.act_fn(project("gate", z)) * project("up", z))  # type: ignore[operator]

    def _signals(self, given: Tensor) -> tuple[Signals, Tensor]:
        state, config, parts = self.state, self.config, self.parts
        h, a = state.h, state.a
        state.h = state.a = None  # nothing outlives the forward pass
        assert h is not None
        assert a is not None

        def norm(r: Tensor) -> Tensor:
            return r if parts.norm is None else parts.norm(r)

        pre = config.axes.mlp_input == "pre_attention"
        needs_effect = config.generator == "low_rank" and config.input == "effect"
        if state.drop:
            x: Tensor | None = given
            needs_x_c = not pre or needs_effect or config.generator == "analytic"
            x_c = norm(h + a * parts.attention_scale) if needs_x_c else None
        else:
            x = norm(h) if pre or needs_effect else None
            x_c = given
        z = x if pre else x_c
        assert z is not None
        carried = a * (parts.attention_scale / parts.mlp_scale) if state.drop else None
        signals = Signals(a=a, h=h, x=x, x_c=x_c, carried=carried, mlp_input=z)
        if self.group:
            signals.coarse = self._coarse(signals)
        return signals, z

    def _coarse(self, signals: Signals) -> Tensor:
        """The code that the group's first layer makes, and the last one lets go of."""
        index, leader = self.parts.index, self.leader
        if index == self.group[0]:
            leader.coarse = self.generator.make_coarse(signals)  # type: ignore[operator]
        coarse = leader.coarse
        if coarse is None:
            raise NPTError(
                f"layer {index} takes its coarse code from layer {self.group[0]}, which made none: the layers of a "
                f"group ({', '.join(map(str, self.group))}) must be in dynamic mode together"
            )
        if index == self.group[-1]:
            leader.coarse = None
        return coarse


# --- the subclasses that a converted layer's modules get ------------------------------------------------------------


class _PlasticMLP:
    plasticity: Plasticity

    def forward(self, x: Tensor) -> Tensor:
        forward = self.plasticity if self.plasticity.state.dynamic else super().forward  # type: ignore[misc]
        y: Tensor = forward(x)
        return y


class _LeavesInput:
    _layer_state: LayerState

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._layer_state.dynamic:
            self._layer_state.h = args[0] if args else kwargs["hidden_states"]
        return super().forward(*args, **kwargs)  # type: ignore[misc]


class _LeavesOutput:
    _layer_state: LayerState

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)  # type: ignore[misc]
        state = self._layer_state
        if not state.dynamic:
            return out
        state.a = out[0] if isinstance(out, tuple) else out
        if not state.drop:
            return out
        nothing = torch.zeros_like(state.a)  # the layer adds it to h, which thereby reaches the MLP alone
        return (nothing, *out[1:]) if isinstance(out, tuple) else nothing


_SUBCLASSES: dict[tuple[type, type], type[nn.Module]] = {}


def _subclass(role: type, cls: type[nn.Module]) -> type[nn.Module]:
    """The class of `cls` in a role, always the same one, so that compiled code is found again."""
    if (role, cls) not in _SUBCLASSES:
        _SUBCLASSES[role, cls] = type(f"Plastic{cls.__name__}", (role, cls), {"__module__": cls.__module__})
    return _SUBCLASSES[role, cls]


# --- the public functions ---------------------------------------------------------------------------------------


def convert(model: nn.Module, config: PlasticityConfig | None = None) -> nn.Module:
    """Makes the chosen layers of `model` plastic, in place, in dynamic mode, and returns it.

    Raises NPTError, with nothing changed, if a layer's structure, a second conversion or a combination of axes
    stands in the way.
    """
    config = config or PlasticityConfig()
    if plastic_layers(model):
        raise NPTError("the model is converted already; revert it first")
    indices = parse_layers(config.layers, len(decoder_layers(model)))
    parts = inspect_layers(model, indices)
    if stray := sorted(set(config.overridden) - set(indices)):
        raise NPTError(
            f"layer {stray[0]} has settings of its own, but is not among the plastic layers ({config.layers})"
        )
    for p in parts:
        if config.at(p.index).axes.attention_residual == "drop" and p.norm_after_mlp is not None:
            raise NPTError(
                f"attention_residual='drop' on layer {p.index}: a norm after the MLP would rescale the attention "
                "output that the MLP has to carry; use attention_residual='keep' (dual, single or v1)"
            )
    groups = groups_of(config, indices)
    made = [Plasticity(config.at(p.index), p, groups.get(p.index, ())) for p in parts]
    states = {plasticity.parts.index: plasticity.state for plasticity in made}
    for plasticity in made:
        if plasticity.group:
            plasticity.leader = states[plasticity.group[0]]
    for plasticity in made:
        p = plasticity.parts
        for module, role in ((p.entry, _LeavesInput), (p.attention_end, _LeavesOutput), (p.mlp, _PlasticMLP)):
            plasticity.swapped.append((module, type(module)))
            module.__class__ = _subclass(role, type(module))
            if role is not _PlasticMLP:
                module._layer_state = plasticity.state  # type: ignore[assignment]
        p.mlp.add_module(PLASTICITY, plasticity)
    return model


def revert(model: nn.Module) -> nn.Module:
    """Gives back the model as it was before `convert`: the original classes, no generator. Weights never changed."""
    for plasticity in plastic_layers(model).values():
        for module, cls in reversed(plasticity.swapped):
            module.__class__ = cls
            vars(module).pop("_layer_state", None)
        delattr(plasticity.parts.mlp, PLASTICITY)
    return model


def set_mode(model: nn.Module, mode: Mode, layers: str = "all") -> None:
    """Switches converted layers (by default every one of them) to `dynamic` or `standard` mode.

    In standard mode a layer computes exactly what the pretrained one does. Raises NPTError for an unknown mode, for
    a model that is not converted and for a layer that is not plastic.
    """
    if mode not in ("dynamic", "standard"):
        raise NPTError(f"mode must be dynamic or standard, not {mode!r}")
    plastic = plastic_layers(model)
    if not plastic:
        raise NPTError("the model is not converted, so it has no modes; call convert first")
    chosen = tuple(plastic) if layers == "all" else parse_layers(layers, len(decoder_layers(model)))
    for i in chosen:
        if i not in plastic:
            raise NPTError(f"layer {i} is not plastic; converted are {', '.join(map(str, plastic))}")
    for i in chosen:
        plastic[i].state.dynamic = mode == "dynamic"


@contextmanager
def mode(model: nn.Module, wanted: Mode) -> Iterator[None]:
    """All converted layers in one mode, while it lasts; nothing for a model that is not converted."""
    plastic = plastic_layers(model).values()
    before = [p.state.dynamic for p in plastic]
    for p in plastic:
        p.state.dynamic = wanted == "dynamic"
    try:
        yield
    finally:
        for p, dynamic in zip(plastic, before, strict=True):
            p.state.dynamic = dynamic


def plastic_layers(model: nn.Module) -> dict[int, Plasticity]:
    """The converted layers by index, in order; empty for a model that is not converted."""
    found = [m for m in model.modules() if isinstance(m, Plasticity)]
    return {p.parts.index: p for p in sorted(found, key=lambda p: p.parts.index)}


def learnable_layers(model: nn.Module) -> dict[int, Plasticity]:
    """The converted layers whose generators have parameters."""
    return {i: p for i, p in plastic_layers(model).items() if isinstance(p.generator, LowRank)}


def groups_of(config: PlasticityConfig, indices: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """The layers that each layer shares its coarse code with, itself among them; empty without coarse codes."""
    if config.coarse_rank == 0:
        return {}
    indices = [i for i in indices if config.at(i).generator == "low_rank"]
    size = config.coarse_group or len(indices)
    groups = [tuple(indices[i : i + size]) for i in range(0, len(indices), size)]
    return {i: group for group in groups for i in group}


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the pretrained model inside: names and tensors as before conversion."""
    return {name: t for name, t in model.state_dict().items() if not {PLASTICITY, GATED_UNITS} & {*name.split(".")}}


def edited_state(model: nn.Module) -> dict[str, Tensor]:
    """The same with the units of gated edits, which are no tensors of the pretrained model."""
    return {name: t for name, t in model.state_dict().items() if f".{PLASTICITY}." not in name}


def _width(mlp: nn.Module) -> tuple[int, int]:
    gate = projection(mlp, "gate")
    return int(gate.in_features), int(gate.out_features)
