"""The keys and values that a model keeps of what it has read, under the name that the installed transformers uses.

Up to 5.23 a model takes and returns `past_key_values`, from 5.24 on `cache`; 5.40 removes the old name.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

from torch import nn


def cache_argument(model: nn.Module, cache: Any) -> dict[str, Any]:
    """`cache` as a keyword argument of `model`'s forward pass."""
    return {_name(type(model)): cache}  # type: ignore[arg-type]  # mypy asks the hash of an instance


def cache_of(output: Any) -> Any:
    """The cache in what a model's forward pass returned."""
    return output["cache"] if "cache" in output else output["past_key_values"]


@lru_cache
def _name(kind: type[nn.Module]) -> str:
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"
