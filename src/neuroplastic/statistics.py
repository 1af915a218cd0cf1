"""The covariance of what MLPs read on ordinary text, inverted: once per model and layer, then read from the cache.

For each layer, C_x = E[x x^T] of the MLP input (read by gate and up) and C_m = E[m m^T] of the hidden (read by down).
Edits are solved under C (docs/how-it-works.md): directions that ordinary text uses much are changed little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .capture import read_until
from .config import Place, Site
from .console import progress
from .errors import NPTError
from .files import cache_dir, read_tensors, write_tensors
from .structure import LayerParts, projection
from .surgery import mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Input = Literal["x", "m"]
At = tuple[int, Input]
Find = Callable[[Sequence[At]], dict[At, Tensor]]
READS: dict[Site, Input] = {"gate": "x", "up": "x", "down": "m"}
RIDGE = 1e-4
"""Added to C's diagonal, in units of its mean: C from some thousand tokens has directions with almost no weight."""

SAMPLED_ROWS = 32
"""Rows of ordinary text whose every token is kept, to be compared with keys."""
CONSTANT_RIDGE = 1e-3
"""Of the constant direction, in units of the Gram matrix' mean diagonal."""


class TextInputs(NamedTuple):
    """What the MLP of one layer reads on ordinary text."""

    x: Tensor
    """[rows, T, d], at every token, the first one of each row included"""
    b: Tensor
    """the constant direction [d]"""
    spread: float
    """standard deviation of b . x, whose mean is 1"""

    def to(self, device: torch.device) -> TextInputs:
        return TextInputs(self.x.to(device), self.b.to(device), self.spread)


class Whitening:
    """(C + RIDGE mean(diag C) I)^-1 per layer and input, each measured, or read from the cache, when it is asked for.

    Explicit inverses: for the few keys of a statement, one product is three times faster than two triangular solves,
    and as accurate (made in float64, kept in float32).
    """

    def __init__(self, inverses: Mapping[At, Tensor] | None = None, find: Find | None = None):
        """From known inverses; `find` gives those of others when they are needed."""
        self._inverses, self._find = dict(inverses or {}), find

    def solve(self, layer: int, site: Site, keys: Tensor) -> Tensor:
        """C^-1 applied to each row of keys [n, d_in] -> [n, d_in]."""
        at = (layer, READS[site])
        self.prepare([(layer, site)])
        if self._inverses[at].device != keys.device:
            self._inverses[at] = self._inverses[at].to(keys.device)
        inverse = self._inverses[at]
        return keys.to(inverse.dtype) @ inverse

    def prepare(self, places: Iterable[Place]) -> None:
        """Finds what these layers and sites need, all of it at once."""
        wanted = dict.fromkeys((layer, READS[site]) for layer, site in places)
        missing = [at for at in wanted if at not in self._inverses]
        if missing and self._find is not None:
            self._inverses |= self._find(missing)


def inverse_covariances(
    model: PreTrainedModel,
    parts: Sequence[LayerParts],
    text: Callable[[], Tensor],
    base_hash: str,
    wanted: Sequence[At],
) -> dict[At, Tensor]:
    """From the cache, or measured in one pass over `text` (N, T) and put there.

    `model` must be the unedited base whose hash is `base_hash`, `parts` all of its layers.
    """
    folder = cache_dir() / "statistics" / base_hash[:16]
    paths = {at: folder / f"inverse_covariance_{at[0]}_{at[1]}.safetensors" for at in wanted}
    found: dict[At, Tensor] = {}
    for at, path in paths.items():
        if path.exists():
            tensors, metadata = read_tensors(path)
            gate = projection(parts[at[0]].mlp, "gate")
            width = gate.in_features if at[1] == "x" else gate.out_features
            inverse = tensors.get("inverse")
            if inverse is None or tuple(inverse.shape) != (width, width) or metadata.get("base") != base_hash:
                raise NPTError(f"{path} does not belong to this model; delete it and it is measured again")
            found[at] = inverse.to(model.device)
    if missing := [at for at in wanted if at not in found]:
        rows = text()
        with (
            mode(model, "standard"),
            progress("measuring the covariance of ordinary text (once per model and layer)") as step,
        ):
            measured = covariance(model, parts, rows, step, among=missing)
        for at, C in measured.items():
            found[at] = _inverse(C)
            write_tensors(paths[at], {"inverse": found[at]}, {"base": base_hash, "ridge": RIDGE})
    return found


@torch.no_grad()
def inputs_on_text(
    model: PreTrainedModel,
    parts: Sequence[LayerParts],
    text: Callable[[], Tensor],
    base_hash: str,
    layers: Sequence[int],
) -> dict[int, TextInputs]:
    """What the MLP of each of these layers reads on SAMPLED_ROWS rows of `text` (N, T): from the cache, or read in one
    pass and put there.

    `model` must be the unedited base whose hash is `base_hash`, `parts` all of its layers.
    """
    folder = cache_dir() / "statistics" / base_hash[:16]
    paths = {layer: folder / f"inputs_{layer}.safetensors" for layer in layers}
    found: dict[int, TextInputs] = {}
    for layer, path in paths.items():
        if path.exists():
            tensors, metadata = read_tensors(path)
            width = projection(parts[layer].mlp, "gate").in_features
            x, b = tensors.get("x"), tensors.get("b")
            fits = x is not None and b is not None and x.dim() == 3 and x.shape[2:] == b.shape == (width,)
            if not fits or metadata.get("base") != base_hash:
                raise NPTError(f"{path} does not belong to this model; delete it and it is measured again")
            assert x is not None
            assert b is not None
            found[layer] = TextInputs(x.to(model.device), b.to(model.device), float(metadata["spread"]))
    if missing := [layer for layer in layers if layer not in found]:
        rows = text()[:SAMPLED_ROWS]
        read: dict[int, list[Tensor]] = {layer: [] for layer in missing}

        def keep(layer: int, z: Tensor, output: Tensor) -> None:
            read[layer].append(z.to(torch.promote_types(z.dtype, torch.float32)))

        modules = {layer: projection(parts[layer].mlp, "gate") for layer in missing}
        with mode(model, "standard"):
            for some in torch.split(rows, 8):
                read_until(model, modules, keep, input_ids=some)
        for layer, states in read.items():
            x = torch.cat(states)
            b, spread = constant_direction(x)
            found[layer] = TextInputs(x, b, spread)
            write_tensors(paths[layer], {"x": x, "b": b}, {"base": base_hash, "spread": spread})
    return found


def constant_direction(x: Tensor) -> tuple[Tensor, float]:
    """b with b . x near 1 for what an MLP reads on ordinary text, by ridge regression, and the standard deviation of
    b . x. x [rows, T, d], the first position of each row left out -> [d].

    A norm before the MLP makes it possible: it fixes the length of x.
    """
    X = x[:, 1:].flatten(0, 1).double()
    gram = X.T @ X
    ridge = CONSTANT_RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    b = torch.linalg.solve(gram + ridge, X.sum(0))
    return b.to(x.dtype), float((X @ b).std())


@torch.no_grad()
def covariance(
    model: PreTrainedModel,
    parts: Sequence[LayerParts],
    text: Tensor,
    step: Any = None,
    batch_size: int = 16,
    among: Sequence[At] | None = None,
) -> dict[At, Tensor]:
    """C_x [d, d] and C_m [f, f] of each layer, or of those in `among`, over the tokens of `text` (N, T), in one
    streaming pass that ends at the last layer needed.

    The first position is left out: it is an attention sink, whose huge activations would drown everything else.
    """
    sums: dict[At, Tensor] = {}

    def add(at: tuple[int, Input], z: Tensor, output: Tensor) -> None:
        rows = z[:, 1:].flatten(0, 1)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        if at in sums:
            sums[at].addmm_(rows.T, rows)
        else:
            sums[at] = rows.T @ rows

    modules = inputs_of(parts)
    if among is not None:
        modules = {at: modules[at] for at in among}
    for done in range(0, len(text), batch_size):
        read_until(model, modules, add, input_ids=text[done : done + batch_size])
        if step is not None:
            step(min(done + batch_size, len(text)), len(text))
    count = text[:, 1:].numel()
    return {at: C / count for at, C in sums.items()}


def inputs_of(parts: Sequence[LayerParts]) -> dict[At, nn.Module]:
    """The modules that read each layer's MLP input x and its hidden m."""
    found: dict[At, nn.Module] = {}
    for p in parts:
        found[p.index, "x"], found[p.index, "m"] = projection(p.mlp, "gate"), projection(p.mlp, "down")
    return found


def _inverse(C: Tensor) -> Tensor:
    wide = C.double()
    ridge = RIDGE * wide.diagonal().mean()
    factor = torch.linalg.cholesky(wide + ridge * torch.eye(len(wide), dtype=wide.dtype, device=wide.device))
    # laid out as it will be read from the file: products depend on the layout in the last bit
    return torch.cholesky_inverse(factor).to(C.dtype).contiguous()
