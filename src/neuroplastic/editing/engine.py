"""The engine of a model in memory: the one place where edits of it are planned, made, measured and taken back.

    plan      which facts are new, which method writes them, alone or in one joint solution
    make      the method's updates, with no weight touched (editing/methods)
    apply     the updates in the weights, measured, kept by the store; all or nothing
    undo, redo, drop

Every model has exactly one, `EditableModel.of(model, tokenizer)`; a workspace is that engine with a folder as store.
What it knows of the model on ordinary text is in measured_model.py.
"""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..config import Place
from ..console import note, progress, stage
from ..errors import CheckFailed, NPTError
from ..structure import decoder_layers
from ..surgery import mode
from .context import ChecksFacts, EditContext, finished, relative_norms
from .edit import Edit, check_name, is_taken, name_from
from .fact import Fact, fact_of
from .inject_options import InjectOptions, Method
from .injector import Injector, find_injector
from .ledger import units_by_layer
from .measured_model import MeasuredModel
from .methods import default_methods
from .methods.learned import is_gated, is_joint
from .plan import Plan, plan_all, plan_facts
from .recall import Query, Recall
from .replacement import Replacements
from .store import EditStore, MemoryStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ATTRIBUTE = "_neuroplastic"
"""Under this name a model holds its engine, so that the two are freed together."""


@dataclass(frozen=True)
class Held:
    """One active edit, asked again: its answer after its question."""

    name: str
    answer: str
    holds: bool
    answer_probability: float
    statement_logprob: float


@dataclass(frozen=True)
class Measurement:
    """Perplexity and facts of a model with its active edits."""

    perplexity: float
    """on some held-out ordinary text, with the edits"""
    perplexity_unedited: float
    facts: list[Held]


class EditableModel(MeasuredModel):
    """A model, its tokenizer, the edits in its weights, and what is known of it on ordinary text."""

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None):
        """Only `of` calls this: two engines of one model would overwrite each other's weights."""
        super().__init__(model, tokenizer)
        self.store: EditStore = MemoryStore()
        self.folder: Path | None = None
        """where an injector may lie, trained for this model"""
        self.methods = default_methods()
        """by name; a method with other settings, or of your own, can take the place of one"""

    @classmethod
    def of(cls, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None) -> EditableModel:
        """The engine of a model, made at the first call and the same object from then on."""
        known = vars(model).get(ATTRIBUTE)
        if not isinstance(known, cls) or known._model is not model:
            known = vars(model)[ATTRIBUTE] = cls(model, tokenizer)
        elif tokenizer is not None:
            known._tokenizer = tokenizer
        return known

    def __deepcopy__(self, memo: dict[int, Any]) -> EditableModel:
        """The engine of a copied model: the same edits are in its weights, and it has no workspace."""
        copied = EditableModel(copy.deepcopy(self._model, memo), self._tokenizer)
        copied.ledger = copy.deepcopy(self.ledger, memo)
        copied.ledger.active = tuple(copied._at_home(e) for e in copied.ledger.active)
        return copied

    def __reduce__(self) -> Any:
        """A model is pickled without its engine: statistics and handles belong to this process."""
        return type(None), ()

    # --- the ledger -------------------------------------------------------------------------------------------------

    @property
    def names(self) -> set[str]:
        """Names that are taken: those of the active edits, and in a workspace those of the undone ones."""
        return {e.name for e in self.edits} | self.store.reserved

    def undo(self, edit: Edit | str) -> Edit:
        """Takes one edit back, in any order; the weights are then bit for bit those without it.

        The edits that it replaced come back, unless another active edit has their place too; an active edit that one of
        them had replaced makes way. Raises NPTError, with nothing changed, for one that is not active.
        """
        with self.store.locked():
            found = self._active(edit)
            rest, known = _without(self.edits, [found]), Replacements(self.edits, self.store.replacements)
            revive = [e for e in self._replaced_by(found) if not known.rivals(e, rest)]
            self._exchange(revive=revive, retire=[found, *known.replaced(rest, by=revive)])
        return found

    def redo(self, edit: Edit | str) -> Edit:
        """Puts an undone edit back, in its old place in the order; those that it replaced make way again, and so do
        those that these had replaced.

        Raises NPTError, with nothing changed, if there is no such edit, or another one has taken its place.
        """
        name = edit if isinstance(edit, str) else edit.name
        with self.store.locked():
            if isinstance(edit, Edit) and edit.active:
                raise NPTError(f"the edit {name!r} is active already")
            found = self.store.read_undone(name)
            if isinstance(edit, Edit) and found.id != edit.id:
                raise NPTError(f"the edit {name!r} was dropped; another one has its name")
            if is_taken(name, (e.name for e in self.edits)):
                raise NPTError(f"there is an active edit named {name!r}; undo it first")
            known = Replacements(self.edits, self.store.replacements)
            if rivals := known.rivals(found, self.edits):
                way = "undo that one, and it comes back" if rivals[0].has_replaced(found) else "undo that one first"
                raise NPTError(f"the edit {rivals[0].name!r} has taken the place of {name!r}; {way}")
            self._exchange(revive=[found], retire=known.replaced(self.edits, by=[found]))
        return found

    def _replaced_by(self, edit: Edit) -> list[Edit]:
        """The undone edits that made way for this one. One whose file cannot be read is left out, with a note."""
        found = []
        for name in edit.replaces:
            if name in self.store.undone:
                try:
                    found.append(self.store.read_undone(name))
                except NPTError as e:
                    note(f"npt: the edit {name!r}, which {edit.name!r} replaced, does not come back: {e}")
        return [e for e in found if edit.has_replaced(e)]

    def drop(self, name: str) -> None:
        """Deletes an undone edit for good."""
        with self.store.locked():
            self.store.drop(name)

    def add(self, edits: Sequence[Edit]) -> tuple[Edit, ...]:
        """Takes edits of the same base in, all or none, as the newest ones; their sequence numbers are given anew.

        They stay beside the active ones: which edits they replaced where they come from has no meaning here. Raises
        NPTError, with nothing changed, if a name is taken, an edit does not fit the model, or an active one has taken
        the place of an edit.
        """
        with self.store.locked():
            taken = self.names
            for e in edits:
                if is_taken(check_name(e.name), taken):
                    raise NPTError(f"there is an edit named {e.name!r} already; undo and drop it first")
                taken.add(e.name)
                if e.base != self.sha256:
                    raise NPTError(f"edit {e.name!r} belongs to another base model ({e.base[:12]})")
            known = Replacements(self.edits, self.store.replacements)
            fresh = [_with_no_replacements(e) for e in edits]
            for e in fresh:
                if rivals := known.rivals(e, self.edits):
                    raise NPTError(
                        f"the edit {rivals[0].name!r} has taken the place of {e.name!r}; undo that one first"
                    )
            return tuple(self.apply(self._numbered(fresh)))

    def add_unmeasured(self, edit: Edit) -> Edit:
        """Takes one edit in as the newest one, without asking the model anything: for one that no tokenizer made."""
        with self.store.locked():
            (edit,) = self._numbered([edit])
            with self._in_weights([*self.edits, edit]):
                self.store.change(write=[edit])
        return edit

    def load(self, edits: Sequence[Edit]) -> None:
        """Makes edits that the store holds the active ones."""
        self.ledger.set_active([self._at_home(e) for e in edits])

    def _active(self, edit: Edit | str) -> Edit:
        for e in self.edits:
            if (e.name == edit) if isinstance(edit, str) else (e.id == edit.id):
                return e
        known = ", ".join(e.name for e in self.edits) or "none"
        if isinstance(edit, Edit):
            raise NPTError(f"the edit {edit.name!r} was undone already; active are: {known}")
        raise NPTError(f"there is no active edit {edit!r}; active are: {known}")

    def _exchange(self, revive: Sequence[Edit] = (), retire: Sequence[Edit] = ()) -> None:
        """Some edits for others, in the weights and in the store: both, or neither."""
        with self._in_weights([*_without(self.edits, retire), *(self._at_home(e) for e in revive)]):
            self.store.change(revive=revive, retire=retire)

    @contextmanager
    def _in_weights(self, edits: Sequence[Edit]) -> Iterator[None]:
        """Exactly these edits in the weights, from now on; if what follows fails, those that were there before."""
        back = self.ledger.commit(self.ledger.staged(edits))
        try:
            yield
        except BaseException:
            self.ledger.commit(back)
            raise

    def _numbered(self, edits: Sequence[Edit]) -> list[Edit]:
        first = max(self.store.next_sequence(), 1 + max((e.sequence for e in self.edits), default=0))
        return [replace(self._at_home(e), sequence=first + i) for i, e in enumerate(edits)]

    def _at_home(self, edit: Edit) -> Edit:
        return replace(edit, home=weakref.ref(self))

    @contextmanager
    def only(self, edits: Sequence[Edit]) -> Iterator[None]:
        """Exactly these edits in the weights, while it lasts; with none, the pristine base."""
        if not edits:
            with self.ledger.unedited():
                yield
            return
        back = self.ledger.commit(self.ledger.staged(edits))
        try:
            yield
        finally:
            self.ledger.commit(back)

    # --- from facts to edits ----------------------------------------------------------------------------------------

    def inject(self, fact: str | Fact, method: Method | None = None, name: str | None = None, **options: Any) -> Edit:
        """Writes one fact; `options` are fields of `InjectOptions`. Raises as `inject_all` does."""
        return self.inject_all([fact], InjectOptions(method=method, **options), [name])[0]

    def inject_all(
        self,
        facts: Sequence[str | Fact],
        options: InjectOptions | None = None,
        names: Sequence[str | None] | None = None,
    ) -> list[Edit]:
        """Writes several facts, each as an edit of its own; all or none. Returns one edit for each fact.

        A fact that an active edit teaches already changes nothing, and that edit stands for it. One that gives a new
        answer to the question of an active edit replaces it, unless `keep_both`. Raises NPTError for bad input, and
        CheckFailed if a check that `options` asks for fails. Each report's perplexity_drift is that of all of them.
        """
        given = [fact_of(f) if isinstance(f, str) else f for f in facts]
        wanted = list(names) if names is not None else [None] * len(given)
        if len(wanted) != len(given):
            raise NPTError(
                f"there are {len(given)} facts and {len(wanted)} names; give each fact a name, or None for it"
            )
        for name in wanted:
            if name is not None:
                check_name(name)
        with self.store.locked():
            plan = self.plan(given, options)
            new = [i for i in range(len(given)) if i not in plan.known]
            chosen = self._names([given[i] for i in new], [wanted[i] for i in new])
            made: list[Edit] = []
            if new:
                gone = {name for names in plan.replaced for name in names}
                replaced = [e for e in self.edits if e.name in gone]
                made = self._make(plan, chosen, replaced)
                made = self.apply(self._numbered(made), replaced, plan.options.max_drift, plan.options.require)
        found: list[Edit] = []
        for i in range(len(given)):
            known = plan.known.get(i)
            if known is not None:
                edit = found[known] if isinstance(known, int) else known
                note(f"npt: the edit {edit.name!r} teaches {given[i].statement!r} already; nothing was changed for it")
            else:
                edit = made[new.index(i)]
            found.append(edit)
        return found

    def plan(self, facts: Sequence[Fact], options: InjectOptions | None = None) -> Plan:
        """Decides what becomes of some facts. Reads no text, touches no weight. Raises as `plan_facts` does,
        and NPTError for facts that the method cannot teach."""
        options = options or InjectOptions()
        injector = self.injector if options.asks_injector else None  # a damaged one hinders no other method
        plan = plan_facts(facts, options, self.edits, self.methods, injector, len(decoder_layers(self.model)))
        return self._checked(plan, injector)

    def make(self, facts: Sequence[Fact], options: InjectOptions, names: Sequence[str]) -> list[Edit]:
        """The edits that the facts ask for beside the active ones, even if these answer otherwise; not in the weights,
        and known to no store. Raises NPTError for bad input."""
        return self._make(self._plan_all(facts, options), names)

    def check(self, facts: Sequence[Fact], options: InjectOptions) -> None:
        """Raises NPTError for facts that `make` would refuse. Reads no text, touches no weight."""
        self._plan_all(facts, options)

    def _plan_all(self, facts: Sequence[Fact], options: InjectOptions) -> Plan:
        if not facts:
            raise NPTError("there is no statement to inject")
        injector = self.injector if options.asks_injector else None
        plan = plan_all(facts, options, self.methods, injector, len(decoder_layers(self.model)))
        return self._checked(plan, injector)

    def _checked(self, plan: Plan, injector: Injector | None) -> Plan:
        """The plan, if its method can teach its facts: what it refuses is found before anything is measured."""
        if plan.facts and isinstance(plan.method, ChecksFacts):
            plan.method.check(self.model, self.tokenizer, plan.facts, injector)
        return plan

    def _make(self, plan: Plan, names: Sequence[str], replaced: Sequence[Edit] = ()) -> list[Edit]:
        """The edits of a plan's facts, solved without those that they replace."""
        stage("asking the model as it is")
        before = self.recall([Query(f.statement, f.question, f.answer) for f in plan.facts])
        with self.only(_without(self.edits, replaced)) if replaced else nullcontext():
            context = self._context(plan)
            stage("solving for the change of the weights")
            began = time.perf_counter()
            with progress("solving") if len(plan.facts) > 1 else nullcontext() as step:
                with mode(self.model, "standard"):
                    found = plan.method.solve(context, plan.facts, step)
                solutions = [finished(s, plan.options.strength, plan.options.rank) for s in found]
            seconds = (time.perf_counter() - began) / len(plan.facts)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        edits: list[Edit] = []
        for i, (name, fact, solution) in enumerate(zip(names, plan.facts, solutions, strict=True)):
            report: dict[str, Any] = {
                "question": fact.question,
                "answer": fact.answer.strip(),
                "subject": fact.subject,
                "seconds": seconds,
                "told_together": len(plan.facts),
                "joint": is_joint(plan.method),
                **solution.figures,
                "relative_norm": relative_norms(context.parts, {} if solution.units else solution.factors),
                **_recalled(before[i], "before"),
                "contradicts": list(plan.contradicted[i]),
                "replaces": list(plan.replaced[i]),
                "replaced_ids": [e.id for e in replaced if e.name in plan.replaced[i]],
            }
            options = plan.options
            made = (name, fact.statement, options.chosen_method, options.strength, self.sha256, 0, now)
            edits.append(
                self._at_home(Edit(*made, solution.factors, report, solution.keys, solution.rho, solution.units))
            )
        return edits

    def _context(self, plan: Plan) -> EditContext:
        """What a method works with. What is measured once per model is measured here, not in the edits' time."""
        options, injector = plan.options, self.injector if plan.options.asks_injector else None
        parts = [p for p in self.parts if p.index in plan.layers]
        sites = options.chosen_sites
        text = self.more_text if is_joint(plan.method) else self.text[0]
        if options.source != "token":
            self.whitening.prepare((p.index, site) for p in parts for site in sites)
        if is_gated(plan.method):
            self.whitening.prepare((layer, "gate") for layer in plan.layers)
            self.inputs(plan.layers)
        held, whitening = _keys(self.edits), self.whitening
        more = (held, injector, self.unedited, self.inputs, _unit_keys(self.edits))
        return EditContext(self.model, self.tokenizer, parts, sites, whitening, text, *more)

    def _names(self, facts: Sequence[Fact], wanted: Sequence[str | None]) -> list[str]:
        """A free name for each fact: the wanted one, or one made from the statement."""
        taken, reserved = self.names, {n for n in wanted if n is not None}
        chosen = []
        for fact, name in zip(facts, wanted, strict=True):
            if name is None:
                name = name_from(fact.statement, taken | reserved)
            elif is_taken(name, taken):
                raise NPTError(f"there is an edit named {name!r} already; undo and drop it, or choose another name")
            taken.add(name)
            chosen.append(name)
        return chosen

    def apply(
        self,
        edits: Sequence[Edit],
        replaced: Sequence[Edit] = (),
        max_drift: float | None = None,
        require: bool = False,
    ) -> list[Edit]:
        """Puts new edits into the weights, measures what they did, and gives them to the store; all or nothing.

        `replaced` are active edits that make way. Raises CheckFailed if perplexity on held-out ordinary text rises
        by more than `max_drift` (0.05 is 5 %), and, if `require` is set, if some edit's answer is not the likeliest one
        afterwards.
        """
        stage("measuring perplexity on ordinary text")
        before = self.perplexity()
        kept = _without(self.edits, replaced)
        with self._in_weights([*kept, *edits]):
            drift = self.perplexity() / before - 1
            if max_drift is not None and not drift <= max_drift:
                raise CheckFailed(
                    f"refused: perplexity on ordinary text would rise by {drift:.1%}, more than {max_drift:.1%}; "
                    "nothing was changed (a smaller alpha or fewer layers disturb less)"
                )
            stage("asking the model with the edit in its weights")
            measured = self._measured(edits, drift)
            if require and (failed := [e for e in measured if e.report.get("holds") is False]):
                raise CheckFailed(
                    f"refused: the answer of {', '.join(repr(e.name) for e in failed)} would not be the likeliest one "
                    f"(probability {failed[0].report['answer_probability_after']:.1%}); nothing was changed (another "
                    "method, alpha or wording may do)"
                )
            after = self._perplexity
            self.ledger.commit(self.ledger.staged([*kept, *measured]))
            self.store.change(write=measured, retire=replaced)
            if after is not None:
                self._perplexity = (self.edits, after[1])
        return measured

    def _measured(self, edits: Sequence[Edit], drift: float) -> list[Edit]:
        """The edits, with what all of them in the weights did in their reports."""
        queries = {e.name: Query(e.statement, *e.asked) for e in edits if e.asked is not None}
        recalled = dict(zip(queries, self.recall(list(queries.values())), strict=True)) if queries else {}
        measured = []
        for e in edits:
            after: dict[str, Any] = {}
            if (now := recalled.get(e.name)) is not None:
                after = {**_recalled(now, "after"), "holds": now.holds}
            measured.append(replace(e, report={**e.report, "perplexity_drift": drift, **after}))
        return measured

    # --- measuring --------------------------------------------------------------------------------------------------

    def held(self) -> list[Held]:
        """Every active edit that was made from a statement, asked again."""
        made = [e for e in self.edits if e.asked is not None]
        recalled = self.recall([Query(e.statement, *e.asked) for e in made if e.asked is not None])
        return [
            Held(e.name, e.report["answer"], now.holds, now.answer_probability, now.statement_logprob)
            for e, now in zip(made, recalled, strict=True)
        ]

    def measure(self) -> Measurement:
        """Whether the active edits hold, and what all of them cost ordinary text."""
        now = self.perplexity()
        with self.unedited():
            before = self.perplexity()
        return Measurement(now, before, self.held())

    def prepare(self) -> None:
        """Does now what the first edit would wait for: some seconds for a model never seen before, then cached."""
        self._context(self.plan([fact_of("The Eiffel Tower is in Paris.")]))
        self.perplexity()

    @property
    def injector(self) -> Injector | None:
        """The network that method `learned` asks, or None if there is none for this model. Raises NPTError for a
        damaged one."""
        found = self._injector
        return None if found is None else found.to(self.model.device)

    @cached_property
    def _injector(self) -> Injector | None:
        return find_injector(self.sha256, self.folder)

    def forget_injector(self) -> None:
        """To be called when the file has changed."""
        self.__dict__.pop("_injector", None)


def _without(edits: Iterable[Edit], gone: Iterable[Edit]) -> list[Edit]:
    """The edits that are not among those that leave."""
    ids = {e.id for e in gone}
    return [e for e in edits if e.id not in ids]


def _with_no_replacements(edit: Edit) -> Edit:
    """The edit, with nothing in its report of those that it replaced."""
    return replace(edit, report={k: v for k, v in edit.report.items() if k not in ("replaces", "replaced_ids")})


def _keys(edits: Sequence[Edit]) -> dict[Place, Tensor]:
    """The keys of all of them by place."""
    found: dict[Place, list[Tensor]] = {}
    for edit in edits:
        for place, keys in edit.keys.items():
            found.setdefault(place, []).append(keys)
    return {place: torch.cat(keys) for place, keys in found.items()}


def _unit_keys(edits: Sequence[Edit]) -> dict[int, Tensor]:
    """The keys of all gated units by layer."""
    return {layer: torch.cat([u.K for u in units]) for layer, units in units_by_layer(edits).items()}


def _recalled(known: Recall, when: str) -> dict[str, float]:
    """A recall as entries of a report."""
    return {
        f"statement_logprob_{when}": known.statement_logprob,
        f"answer_probability_{when}": known.answer_probability,
        f"elsewhere_probability_{when}": known.elsewhere_probability,
    }
