"""Looking into a forward pass: the one place where modules get hooks.

`capturing` sees what modules read and give, and may change what they give; `adding` adds a term; `feeding` changes what
they read; `read_until` ends a pass after the last module that is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from torch import Tensor, nn

Key = TypeVar("Key")
Look = Callable[[Key, Tensor, Tensor], Tensor | None]
"""Called with (key, input, output) of a module; a tensor that it returns takes the place of the output."""
STATES = "hidden_states"
"""The name of a layer's first argument, if it is given by name."""


@contextmanager
def capturing(modules: Mapping[Key, nn.Module], look: Look[Key]) -> Iterator[None]:
    """While it lasts, `look` is called after each of these modules with its first input and its (first) output.

    An input that is no tensor is passed over: a module without one is not called.
    """

    def hook(key: Key) -> Any:
        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            given = args[0] if args else kwargs.get(STATES)
            first = output[0] if isinstance(output, tuple) else output
            if not (isinstance(given, Tensor) and isinstance(first, Tensor)):
                return None
            changed = look(key, given, first)
            if changed is None:
                return None
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return after

    handles = [module.register_forward_hook(hook(key), with_kwargs=True) for key, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def adding(terms: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """While it lasts, each of these modules gives its term, a function of what it reads, in addition."""

    def add(module: nn.Module, z: Tensor, output: Tensor) -> Tensor:
        return output + terms[module](z).to(output.dtype)

    with capturing({module: module for module in terms}, add):
        yield


@contextmanager
def feeding(modules: Mapping[Key, nn.Module], give: Callable[[Key, Tensor], Tensor]) -> Iterator[None]:
    """While it lasts, each of these modules reads `give(key, input)` in place of its first input."""

    def hook(key: Key) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (give(key, args[0]), *args[1:]), kwargs
            return args, {**kwargs, STATES: give(key, kwargs[STATES])}

        return before

    handles = [module.register_forward_pre_hook(hook(key), with_kwargs=True) for key, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Enough(Exception):
    """Raised after the last module that is looked at."""


def read_until(model: nn.Module, modules: Mapping[Key, nn.Module], look: Look[Key], **inputs: Any) -> None:
    """One forward pass of a model's decoder that captures `modules`, and ends once each of them was seen once."""
    waiting = set(modules)

    def see(key: Key, given: Tensor, output: Tensor) -> Tensor | None:
        changed = look(key, given, output)
        waiting.discard(key)
        if not waiting:
            raise _Enough
        return changed

    with capturing(modules, see), suppress(_Enough):
        model.base_model(use_cache=False, **inputs)  # type: ignore[operator]
