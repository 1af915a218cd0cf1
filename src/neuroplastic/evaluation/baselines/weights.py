"""Weights that are changed for a while, and put back bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor


@contextmanager
def put_back(weights: Iterable[Tensor]) -> Iterator[None]:
    """Afterwards each parameter holds the very tensor that it held before: nothing is computed, so nothing is rounded.

    Inside, a parameter's `data` is replaced, never written into. May be entered while others are, and is left first.
    """
    held = [(w, w.data, w.requires_grad) for w in weights]
    try:
        yield
    finally:
        for weight, data, trained in held:
            weight.data, weight.grad = data, None
            weight.requires_grad_(trained)
