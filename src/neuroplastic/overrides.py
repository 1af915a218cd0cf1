"""Settings that some layers have for themselves, as text: 14:np_rank=128,preset=single or 8-15:num_ranks=2."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from .errors import NPTError

SHORT = {"rank": "np_rank", "k": "num_ranks"}
"""Names of settings that may be given in short."""
NUMBERS: dict[str, Callable[[str], Any]] = {"np_rank": int, "num_ranks": int, "top_ranks": int, "gate_threshold": float}


def as_texts(given: Any, possible: Collection[str]) -> tuple[str, ...]:
    """Overrides with full names, from texts or from a mapping {14: {"np_rank": 128}}; `possible` are the names of
    settings that a layer may have. Raises NPTError if one is not understood."""
    if isinstance(given, Mapping):
        given = [f"{layers}:{_joined(settings)}" for layers, settings in given.items()]
    if isinstance(given, str) or not all(isinstance(g, str) for g in given):
        raise NPTError(f"layer_overrides must be a mapping of layers to settings, or a list of texts, not {given!r}")
    texts = []
    for spec in given:
        layers = layers_of(spec)
        span = f"{layers[0]}" if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"
        texts.append(f"{span}:{_joined(settings_of(spec, possible))}")
    return tuple(texts)


def _joined(settings: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in settings.items())


def layers_of(spec: str) -> range:
    """The layers of an override. Raises NPTError if it is not understood."""
    m = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*:.+", spec)
    if m is None or int(m[2] or m[1]) < int(m[1]):
        raise NPTError(f"layer override {spec!r} not understood; use 14:rank=128,preset=single or 8-15:k=2")
    return range(int(m[1]), int(m[2] or m[1]) + 1)


def settings_of(spec: str, possible: Collection[str]) -> dict[str, Any]:
    """The settings of an override by their full names, numbers as such. Raises NPTError if one is not understood."""
    found: dict[str, Any] = {}
    for part in spec.partition(":")[2].split(","):
        given, _, value = (t.strip() for t in part.partition("="))
        name = SHORT.get(given, given)
        if name not in possible or not value:
            raise NPTError(
                f"layer override {spec!r}: {part.strip()!r} is not a setting of one layer; these are "
                f"{', '.join(possible)}"
            )
        try:
            found[name] = None if value == "None" else NUMBERS.get(name, str)(value)
        except ValueError:
            raise NPTError(f"layer override {spec!r}: {name} must be a number, not {value!r}") from None
    return found
