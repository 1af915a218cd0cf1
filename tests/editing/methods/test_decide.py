"""Which method options name, and what it is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

import neuroplastic as npt
from neuroplastic.console import Progress
from neuroplastic.editing.context import EditContext, EditMethod, Solution
from neuroplastic.editing.fact import Fact
from neuroplastic.editing.inject_options import Method
from neuroplastic.editing.methods import Consolidate, Refine, decide, default_methods

KEEP = ("The fox is quick.",)


@dataclass(frozen=True)
class Own:
    """A method of a user's own."""

    def solve(self, context: EditContext, facts: Sequence[Fact], progress: Progress | None = None) -> list[Solution]:
        return [Solution({}, {}, {}) for _ in facts]


@dataclass(frozen=True)
class OwnThatKeeps(Own):
    keep: tuple[str, ...] = ()


def decided(options: npt.InjectOptions, **own: EditMethod) -> EditMethod:
    methods: dict[Method, EditMethod] = default_methods()
    for name, method in own.items():
        methods[name] = method  # type: ignore[index]
    return decide(methods, options, 1)


@pytest.mark.parametrize("name", ["refine", "consolidate", "learned", "token"])
def test_a_method_of_ones_own_is_used_under_the_name_it_took(name: Method) -> None:
    own = Own()
    assert decided(npt.InjectOptions(name), **{name: own}) is own


def test_refine_starts_from_a_method_of_ones_own() -> None:
    assert decided(npt.InjectOptions("refine"), consolidate=Own()) == Refine(Own())


def test_sentences_to_keep_reach_every_method_with_a_place_for_them() -> None:
    for name in ("consolidate", "refine"):
        options = npt.InjectOptions(name, keep=KEEP)
        assert decided(options, **{name: OwnThatKeeps()}) == OwnThatKeeps(KEEP)
        with pytest.raises(npt.NPTError, match=f"method '{name}' is a Own, which can keep no sentences"):
            decided(options, **{name: Own()})
    assert decided(npt.InjectOptions("refine", keep=KEEP)) == Refine(Consolidate(keep=KEEP), keep=KEEP)
