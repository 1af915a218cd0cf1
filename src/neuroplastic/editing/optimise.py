"""The descent that `consolidate` and `refine` share: Adam (Kingma and Ba 1412.6980) until enough is reached."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's."""
Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")


def optimise(
    values: Mapping[Key, Tensor],
    look: Callable[[], tuple[Tensor, Found, Mapping[Key, Tensor] | None]],
    max_steps: int,
) -> tuple[Found, int]:
    """Changes `values` in place; returns what was found of them at the end, and the number of steps.

    `look` computes from the values as they are: their loss; what is to be known of them; and by key the length of the
    next step, to be broadcast against the values, or None where enough is reached.
    """
    moments = {key: (torch.zeros_like(v), torch.zeros_like(v)) for key, v in values.items()}
    for taken in range(max_steps + 1):
        with torch.set_grad_enabled(taken < max_steps):
            for v in values.values():
                v.requires_grad_(taken < max_steps)
            loss, found, step = look()
        if taken == max_steps or step is None:
            break
        gradients = torch.autograd.grad(loss, list(values.values()))
        with torch.no_grad():
            for (key, v), g in zip(values.items(), gradients, strict=True):
                v -= step[key] * adam_direction(*moments[key], g, taken + 1)
    for v in values.values():
        v.requires_grad_(False)
    return found, taken


def adam_direction(mean: Tensor, square: Tensor, gradient: Tensor, step: int) -> Tensor:
    """The direction of Adam's step number `step` (from 1), of about unit size per element.

    Both moments are updated in place: m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2.
    """
    mean.lerp_(gradient, 1 - BETAS[0])
    square.lerp_(gradient.square(), 1 - BETAS[1])
    return (mean / (1 - BETAS[0] ** step)) / ((square / (1 - BETAS[1] ** step)).sqrt() + EPSILON)
