"""What a call of `inject` will do, decided once: which facts are new, by which method, and what they replace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..config import parse_layers
from ..errors import CheckFailed, NPTError
from .context import EditMethod
from .edit import Edit
from .fact import Fact
from .inject_options import InjectOptions, Method
from .methods import decide

if TYPE_CHECKING:
    from .injector import Injector


@dataclass(frozen=True)
class Plan:
    """What a call of `inject` will do."""

    options: InjectOptions
    """with the method decided"""
    facts: tuple[Fact, ...]
    """those that must be taught"""
    method: EditMethod
    """with its settings: for `learned`, also whether the facts are taught jointly or one by one"""
    layers: tuple[int, ...]
    """that may change"""
    known: dict[int, Edit | int]
    """of the facts given, those that are taught already: by an active edit, or by an earlier fact of the same call"""
    replaced: tuple[tuple[str, ...], ...]
    """for each fact to teach, the names of the active edits that answer its question otherwise, and make way"""
    contradicted: tuple[tuple[str, ...], ...]
    """for each fact to teach, the names of the active edits that answer its question otherwise, and stay"""


def plan_facts(
    facts: Sequence[Fact],
    options: InjectOptions,
    active: Sequence[Edit],
    methods: Mapping[Method, EditMethod],
    injector: Injector | None,
    num_layers: int,
) -> Plan:
    """The plan for some facts beside the `active` edits, by the configured `methods`, on a model of that many layers.

    `injector` is the model's, if the options allow for one. Raises NPTError if the facts contradict each other or
    the options do not suit the model, and CheckFailed if the facts should be `consistent` and contradict an active
    edit.
    """
    if not facts:
        raise NPTError("there is no statement to inject")
    answered = [(e, e.asked) for e in active if e.asked is not None]
    known: dict[int, Edit | int] = {}
    others: list[tuple[str, ...]] = []
    for i, fact in enumerate(facts):
        own = (fact.question, fact.answer)
        for j in range(i):
            if contradict((facts[j].question, facts[j].answer), own) and not options.keep_both:
                raise NPTError(
                    f"the facts {j + 1} and {i + 1} answer {fact.question!r} differently "
                    f"({facts[j].answer.strip()!r}, {fact.answer.strip()!r}); give one of them, or keep both"
                )
        same: list[Edit | int] = [e for e, its in answered if agree(its, own)]
        same += [j for j in range(i) if j not in known and agree((facts[j].question, facts[j].answer), own)]
        if same:
            known[i] = same[0]
            continue
        others.append(tuple(e.name for e, its in answered if contradict(its, own)))
    new = tuple(f for i, f in enumerate(facts) if i not in known)
    if options.consistent:
        _refuse_contradiction(new, others)
    plan = plan_all(new, options, methods, injector, num_layers)
    if options.keep_both:
        return replace(plan, known=known, contradicted=tuple(others))
    return replace(plan, known=known, replaced=tuple(others))


def plan_all(
    facts: Sequence[Fact],
    options: InjectOptions,
    methods: Mapping[Method, EditMethod],
    injector: Injector | None,
    num_layers: int,
) -> Plan:
    """The plan that teaches every one of the facts, whatever else is known. Raises NPTError as `plan_facts` does."""
    options = options.resolved(injector is not None)
    layers = parse_layers(options.chosen_layers, num_layers) if injector is None else injector.config.layers
    nothing = ((),) * len(facts)
    method = decide(methods, options, len(facts))
    return Plan(options, tuple(facts), method, tuple(layers), {}, nothing, nothing)


def agree(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """The same question, which is not empty, and the same answer."""
    (q, a), (p, b) = one, other
    return bool(q.split()) and q.split() == p.split() and a.split() == b.split()


def contradict(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """The same question, which is not empty, and another answer."""
    (q, a), (p, b) = one, other
    return bool(q.split()) and q.split() == p.split() and a.split() != b.split()


def _refuse_contradiction(facts: Sequence[Fact], contradicted: Sequence[Sequence[str]]) -> None:
    for fact, others in zip(facts, contradicted, strict=True):
        if others:
            raise CheckFailed(
                f"refused: to {fact.question!r} the edit {', '.join(map(repr, others))} has another answer than "
                f"{fact.answer.strip()!r}; nothing was changed (undo that edit first, or let the new one replace it)"
            )
