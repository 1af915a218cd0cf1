"""The methods that turn facts into weight updates: `learned`, `consolidate`, `refine` and `token`, one file each.

Parts of `learned` have files of their own: the gradient steps on one fact (correction.py), and a joint batch of many.
Each is a frozen configuration with `solve(context, facts)` (the protocol `EditMethod`), which touches no weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from ...errors import NPTError
from ..context import EditMethod
from ..inject_options import InjectOptions, Method
from .consolidate import Consolidate
from .learned import Learned
from .refine import Refine
from .token import RankOne

__all__ = ["Consolidate", "Learned", "RankOne", "Refine", "decide", "default_methods"]


def default_methods() -> dict[Method, EditMethod]:
    """Every method with the settings that were chosen on development data (docs/editing.md)."""
    return {
        "learned": Learned(),
        "consolidate": Consolidate(),
        "refine": Refine(Consolidate()),
        "token": RankOne(),
    }


def decide(methods: Mapping[Method, EditMethod], options: InjectOptions, num_facts: int) -> EditMethod:
    """The method that resolved options name, with what they say about it, for a number of facts in one call.

    A method of another class takes the sentences to keep in a field `keep`. Raises NPTError for a method that `methods`
    does not have, and for sentences to keep that the method has no such field for.
    """
    if missing := [name for name in (options.chosen_method, options.source) if name not in methods]:
        raise NPTError(f"there is no method {missing[0]!r}; there are {', '.join(methods)}")
    found = methods[options.source]
    if isinstance(found, Learned):
        found = found.decided(num_facts, options.quick, options.gated)
    elif _can_keep(found):
        found = _keeping(found, options.keep)
    if options.source != options.chosen_method:
        method = methods[options.chosen_method]
        if isinstance(method, Refine):
            method = replace(method, start=found)
        found = _keeping(method, options.keep) if _can_keep(method) else method
    if options.keep and not _can_keep(found):
        raise NPTError(f"method {options.chosen_method!r} is a {type(found).__name__}, which can keep no sentences")
    return found


def _can_keep(method: EditMethod) -> bool:
    return is_dataclass(method) and any(f.name == "keep" and f.init for f in fields(method))


def _keeping(method: EditMethod, keep: tuple[str, ...]) -> EditMethod:
    changed: Any = method
    kept: EditMethod = replace(changed, keep=keep)
    return kept
