"""The covariance of what MLPs read on ordinary text, inverted: once per model, then read from the cache.

For each layer, C_x = E[x x^T] of the MLP input (read by gate and up) and C_m = E[m m^T] of the hidden (read by down).
Edits are solved under C (specification, section 6): directions that ordinary text uses much are changed little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from .config import Site
from .console import progress
from .errors import NPTError
from .files import cache_dir, read_tensors, write_tensors
from .structure import LayerParts, projection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Input = Literal["x", "m"]
READS: dict[Site, Input] = {"gate": "x", "up": "x", "down": "m"}
RIDGE = 1e-4
"""Added to C's diagonal, in units of its mean: C from some thousand tokens has directions with almost no weight."""


class Whitening:
    """(C + RIDGE mean(diag C) I)^-1 per layer and input.

    Explicit inverses: for the few keys of a statement, one product is three times faster than two triangular solves,
    and as accurate (made in float64, kept in float32).
    """

    def __init__(self, inverses: dict[tuple[int, Input], Tensor]):
        self.inverses = inverses

    def solve(self, layer: int, site: Site, keys: Tensor) -> Tensor:
        """C^-1 applied to each row of keys [n, d_in] -> [n, d_in]."""
        inverse = self.inverses[layer, READS[site]]
        return keys.to(inverse.dtype) @ inverse

    @classmethod
    def of(cls, model: PreTrainedModel, parts: Sequence[LayerParts], text: Tensor, base_hash: str) -> Whitening:
        """From the cache, or measured on `text` (N, T) and put there.

        `model` must be the unedited base in standard mode whose hash is `base_hash`, `parts` all of its layers.
        """
        path = (
            cache_dir()
            / "statistics"
            / base_hash[:16]
            / f"inverse_covariance_{text.shape[0]}x{text.shape[1]}.safetensors"
        )
        names = {f"{p.index}.{read}": (p.index, read) for p in parts for read in _inputs()}
        if path.exists():
            found, _ = read_tensors(path)
            if set(found) != set(names):
                raise NPTError(f"{path} does not belong to this model; delete it and it is measured again")
            device = model.device
            return cls({names[n]: t.to(device) for n, t in found.items()})
        with progress("measuring the covariance of ordinary text (once per model)") as step:
            covariances = covariance(model, parts, text, step)
        inverses = {at: _inverse(C) for at, C in covariances.items()}
        write_tensors(path, {n: inverses[at] for n, at in names.items()}, {"base": base_hash, "ridge": RIDGE})
        return cls(inverses)


@torch.no_grad()
def covariance(
    model: PreTrainedModel, parts: Sequence[LayerParts], text: Tensor, step: Any = None, batch_size: int = 16
) -> dict[tuple[int, Input], Tensor]:
    """C_x [d, d] and C_m [f, f] of each layer over the tokens of `text` (N, T), in one streaming pass.

    The first position is left out: it is an attention sink, whose huge activations would drown everything else.
    """
    sums: dict[tuple[int, Input], Tensor] = {}

    def add(at: tuple[int, Input], z: Tensor) -> None:
        rows = z[:, 1:].flatten(0, 1)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        if at in sums:
            sums[at].addmm_(rows.T, rows)
        else:
            sums[at] = rows.T @ rows

    with reading(parts, add):
        for done in range(0, len(text), batch_size):
            model.base_model(input_ids=text[done : done + batch_size], use_cache=False)
            if step is not None:
                step(min(done + batch_size, len(text)), len(text))
    count = text[:, 1:].numel()
    return {at: C / count for at, C in sums.items()}


@contextmanager
def reading(parts: Sequence[LayerParts], see: Any) -> Iterator[None]:
    """While it lasts, `see((layer, input), z)` is called with what each MLP and each down projection reads."""

    def hook(at: tuple[int, Input]) -> Any:
        return lambda module, args: see(at, args[0])

    def listen(module: nn.Module, at: tuple[int, Input]) -> Any:
        return module.register_forward_pre_hook(hook(at))

    handles = [listen(p.mlp, (p.index, "x")) for p in parts]
    handles += [listen(projection(p.mlp, "down"), (p.index, "m")) for p in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _inputs() -> tuple[Input, Input]:
    return ("x", "m")


def _inverse(C: Tensor) -> Tensor:
    wide = C.double()
    ridge = RIDGE * wide.diagonal().mean()
    factor = torch.linalg.cholesky(wide + ridge * torch.eye(len(wide), dtype=wide.dtype, device=wide.device))
    return torch.cholesky_inverse(factor).to(C.dtype)
