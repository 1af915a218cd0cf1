"""The methods that turn facts into weight updates, one file each.

Each is a frozen configuration with `solve(context, facts)` (the protocol `EditMethod`), which touches no weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...errors import NPTError
from ..context import EditMethod
from ..inject_options import InjectOptions, Method
from .consolidate import Consolidate
from .learned import Learned
from .rank_one import RankOne
from .refine import Refine

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

    Raises NPTError for a method that `methods` does not have.
    """
    if missing := [name for name in (options.chosen_method, options.source) if name not in methods]:
        raise NPTError(f"there is no method {missing[0]!r}; there are {', '.join(methods)}")
    found = methods[options.source]
    if isinstance(found, Learned):
        found = found.decided(num_facts, options.quick)
    elif isinstance(found, Consolidate):
        found = replace(found, keep=options.keep)
    method = methods[options.chosen_method]
    return replace(method, start=found, keep=options.keep) if isinstance(method, Refine) else found
