"""Finding, in any pretrained decoder, the parts that modulation needs: detected, never listed by model name.

The modules are found by what they own (an attention with `o_proj`, an MLP with `gate_proj`, `up_proj`, `down_proj`).
How they are wired (which norm precedes the MLP, whether norms follow attention or MLP, whether the residuals are
scaled) is read off one forward pass over a few tokens, in which every claim is checked on the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .capture import capturing
from .errors import NPTError
from .text.tokens import require_finite

PROJECTIONS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


@dataclass(frozen=True, eq=False)
class LayerParts:
    """The wiring of one decoder layer: r = h + attention_scale * a, out = r + mlp_scale * mlp(n(r))."""

    index: int
    layer: nn.Module
    entry: nn.Module
    """the first module that sees h: the norm before attention, or attention itself"""
    attention: nn.Module
    attention_end: nn.Module
    """the module whose output is a: attention, or a norm after it"""
    norm: nn.Module | None
    """n(.), the norm before the MLP; None if the MLP reads the residual stream itself"""
    mlp: nn.Module
    norm_after_mlp: nn.Module | None
    attention_scale: float
    mlp_scale: float


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of decoder layers. Raises NPTError if the model has none."""
    whole: Any = model
    decoder = whole.get_decoder() if hasattr(whole, "get_decoder") else whole
    config = getattr(whole, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config(decoder=True)
    depth = getattr(config, "num_hidden_layers", None)
    lists = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not lists:
        raise NPTError(f"{type(model).__name__} is not supported: found no list of decoder layers in it")
    return lists[0]


def projection(mlp: nn.Module, site: str) -> nn.Linear:
    """The projection module of a site: a linear layer, or what a quantiser or an adapter put in its place."""
    found: nn.Linear = getattr(mlp, PROJECTIONS[site])
    return found


def mlp_of(layer: nn.Module) -> nn.Module:
    """The MLP of a decoder layer that is known to have gate, up and down projections."""
    return next(m for m in layer.children() if all(hasattr(m, name) for name in PROJECTIONS.values()))


def attention_of(layer: nn.Module) -> nn.Module | None:
    """The softmax attention of a decoder layer, with queries and an o_proj; None if it has none."""
    for child in layer.children():
        owned = {name for name, _ in child.named_children()}
        recurrent = {"A_log", "dt_bias"} & set(dict(child.named_parameters(recurse=False))) or "conv1d" in owned
        if "o_proj" in owned and any(n.startswith("q") for n in owned) and not recurrent:
            return child
    return None


def inspect_layers(model: nn.Module, indices: Sequence[int]) -> list[LayerParts]:
    """The parts of the chosen layers. Runs one forward over four tokens; changes nothing.

    Raises NPTError, naming layer and cause, if a layer's structure is not one that modulation can carry.
    """
    layers = decoder_layers(model)
    found = [(i, layers[i], _attention(i, layers[i]), _mlp(i, layers[i])) for i in indices]
    for i, layer, _, _ in found:
        for name, module in layer.named_modules():
            if "forward" in vars(module):
                where = f"layer {i}" + (f".{name}" if name else "")
                raise NPTError(
                    f"{where} has a forward of its own on the instance (a device-map hook or a patch); "
                    "convert the model before dispatching or patching it"
                )
    seen = _recorded(model, [layer for _, layer, _, _ in found])
    with torch.no_grad():
        return [_wire(i, layer, attention, mlp, seen) for i, layer, attention, mlp in found]


def _attention(i: int, layer: nn.Module) -> nn.Module:
    if (found := attention_of(layer)) is not None:
        return found
    names = ", ".join(type(c).__name__ for c in layer.children())
    raise NPTError(f"layer {i} has no softmax attention with an o_proj (it has {names}); leave it out of --layers")


def _mlp(i: int, layer: nn.Module) -> nn.Module:
    for child in layer.children():
        owned = {name for name, _ in child.named_children()}
        if set(PROJECTIONS.values()) <= owned and not {"experts", "shared_expert", "router"} & owned:
            return child
    for name, child in layer.named_children():
        owned = {n for n, _ in child.named_children()}
        kind = f"layer {i}: {name} ({type(child).__name__})"
        if {"experts", "shared_expert", "shared_experts", "router"} & owned:
            raise NPTError(f"{kind} is a mixture of experts, which is not supported")
        if "gate_up_proj" in owned:
            raise NPTError(f"{kind} has a fused gate_up_proj, which is not supported: gate and up must be separate")
    names = ", ".join(f"{n} ({type(c).__name__})" for n, c in layer.named_children())
    raise NPTError(f"layer {i} has no MLP with gate_proj, up_proj and down_proj (it has {names})")


# --- the probe -------------------------------------------------------------------------------------------------


@dataclass
class _Call:
    input: Tensor
    output: Tensor


def _recorded(model: nn.Module, layers: Sequence[nn.Module]) -> dict[nn.Module, _Call]:
    """The hidden states that go into and come out of each layer and its direct children, over four tokens."""
    seen: dict[nn.Module, _Call] = {}

    def record(module: nn.Module, states: Tensor, output: Tensor) -> None:
        seen[module] = _Call(states, output)

    with capturing({m: m for layer in layers for m in (layer, *layer.children())}, record):
        _probe(model)
    return seen


def _probe(model: nn.Module) -> None:
    """One forward over four tokens in evaluation mode; training flags are put back as they were."""
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    weight = embeddings.weight
    if weight.device.type == "meta":
        raise NPTError("the model's weights are on the meta device; load it before converting it")
    ids = torch.arange(1, 5, device=weight.device)[None] % weight.shape[0]
    training = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            output = model(input_ids=ids, use_cache=False)[0]  # logits, or states of a decoder without a head
    finally:
        for module, flag in training.items():
            module.training = flag
    require_finite(output)


def _wire(i: int, layer: nn.Module, attention: nn.Module, mlp: nn.Module, seen: dict[nn.Module, _Call]) -> LayerParts:
    whole, attended, fed = seen.get(layer), seen.get(attention), seen.get(mlp)
    if whole is None or attended is None or fed is None:
        raise NPTError(f"layer {i} ({type(layer).__name__}) does not pass hidden states through attention and MLP")
    others = [c for c in layer.children() if c in seen and c is not attention and c is not mlp]

    def following(tensor: Tensor) -> nn.Module | None:
        return next((c for c in others if seen[c].input is tensor), None)

    def preceding(tensor: Tensor) -> nn.Module | None:
        return next((c for c in others if seen[c].output is tensor), None)

    h = whole.input
    entry = attention if attended.input is h else preceding(attended.input)
    if entry is None or seen[entry].input is not h:
        raise NPTError(f"layer {i}: attention does not read the layer's input through at most one norm")
    end = following(attended.output) or attention
    a = seen[end].output
    norm = preceding(fed.input)
    r = fed.input if norm is None else seen[norm].input
    if r is h or torch.equal(r, h):
        raise NPTError(
            f"layer {i} ({type(layer).__name__}) runs attention and MLP in parallel: the MLP never sees attention, "
            "so attention cannot modulate it"
        )
    norm_after = following(fed.output)
    y = fed.output if norm_after is None else seen[norm_after].output
    gated = projection(mlp, "down")(
        _activation(i, mlp)(projection(mlp, "gate")(fed.input)) * projection(mlp, "up")(fed.input)
    )
    if not _close(gated, fed.output):
        raise NPTError(f"layer {i}: {type(mlp).__name__} computes something other than down(act(gate) * up)")
    return LayerParts(
        index=i,
        layer=layer,
        entry=entry,
        attention=attention,
        attention_end=end,
        norm=norm,
        mlp=mlp,
        norm_after_mlp=norm_after,
        attention_scale=_scale(i, layer, "attention", h, a, r),
        mlp_scale=_scale(i, layer, "MLP", r, y, whole.output),
    )


def _activation(i: int, mlp: nn.Module) -> Any:
    act = getattr(mlp, "act_fn", None)
    if act is None:
        raise NPTError(f"layer {i}: {type(mlp).__name__} has no act_fn")
    return act


def _scale(i: int, layer: nn.Module, what: str, before: Tensor, added: Tensor, after: Tensor) -> float:
    """c of after = before + c * added: 1, or a number that the layer itself holds (a residual multiplier)."""
    held = [v for v in vars(layer).values() if isinstance(v, float)]
    errors = {c: (before + added * c - after).abs().max().item() for c in (1.0, *held)}
    best = min(errors, key=errors.__getitem__)
    if errors[best] > 8 * torch.finfo(after.dtype).eps * after.abs().max().item():
        raise NPTError(
            f"layer {i}: how {type(layer).__name__} adds its {what} to the residual stream is not understood"
        )
    return best


def _close(left: Tensor, right: Tensor) -> bool:
    return bool((left - right).abs().max() <= 32 * torch.finfo(right.dtype).eps * right.abs().max())
