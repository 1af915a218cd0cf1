"""Looking into a forward pass: what modules read and give, and no further than the last one that is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from torch import Tensor, nn

Key = TypeVar("Key")
See = Callable[[Key, Tensor, Tensor], None]
"""Called with (key, input, output) of a module."""


@contextmanager
def capturing(modules: Mapping[Key, nn.Module], see: See[Key]) -> Iterator[None]:
    """While it lasts, `see` is called after each of these modules with its first input and (first) output."""

    def hook(key: Key) -> Any:
        return lambda module, args, output: see(key, args[0], output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(hook(key)) for key, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Enough(Exception):
    """Raised after the last module that is looked at."""


def read_until(model: nn.Module, modules: Mapping[Key, nn.Module], see: See[Key], **inputs: Any) -> None:
    """One forward pass of a model's decoder that captures `modules`, and ends once all of them were seen.

    Each of them must run exactly once in a pass.
    """
    waiting = set(modules)

    def look(key: Key, given: Tensor, output: Tensor) -> None:
        see(key, given, output)
        waiting.discard(key)
        if not waiting:
            raise _Enough

    with capturing(modules, look), suppress(_Enough):
        model.base_model(use_cache=False, **inputs)  # type: ignore[operator]
