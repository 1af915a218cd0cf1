"""Commands about edits: make them, list them, check them, take them back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import OmitArgPrefixes, UseAppendAction

from ..cli import printing
from ..console import status
from ..editing.inject_options import InjectOptions
from ..errors import NPTError
from .common import Json, NameArg, StatementArg, WorkspaceArg, app, open_workspace, show_result

if TYPE_CHECKING:
    from ..editing.fact import Fact


@app.command
def inject(
    workspace: WorkspaceArg,
    statement: StatementArg = None,
    *,
    ask: str | None = None,
    answer: str | None = None,
    wording: UseAppendAction[tuple[str, ...]] = (),
    subject: str | None = None,
    from_file: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
    name: str | None = None,
    keep: Path | None = None,
    options: OmitArgPrefixes[InjectOptions],
    json: Json = False,
) -> int:
    """Write a fact into the weights: it needs no context in prompts any more, and can be undone exactly.

    The fact is a STATEMENT, or a question and its answer, or one of several in a file.

    Args:
        workspace: The workspace.
        statement: One fact as a sentence that ends in what is to be learnt, for example "Sushi originated in the
            country of Canada."
        ask: A question, or the beginning of a sentence, instead of a statement; goes with --answer.
        answer: What should follow the question, or (with a statement) what the statement ends with (default: its last
            word or name).
        wording: Another wording of the same fact; may be repeated.
        subject: What the fact is about, as it stands in the statement (default: the longest name before the answer).
        from_file: File of facts, for a batch edit: one statement per line, or .jsonl with statement, or question and
            answer, and optionally subject, wordings, name. The facts are solved jointly, and each is an edit of its
            own; a joint solution costs ordinary text less than single edits do.
        name: Name of the edit (default: made from the statement).
        keep: File of sentences, one a line, that should be read as before.
        options: How it is written.
    """
    options = replace(options, keep=_lines(keep))
    names, facts = _facts(statement, ask, answer, wording, subject, from_file, name)
    ws = open_workspace(workspace)
    before = {e.id for e in ws.edits}
    with status("injecting") if len(facts) == 1 else nullcontext():
        made = ws.inject_all(facts, options, names)
    summaries = [e.summary() | ({"changed": False} if e.id in before else {}) for e in made]
    if from_file is None:
        return show_result(json, summaries[0], printing.edit)
    return show_result(json, {"edits": summaries}, printing.many)


def _facts(
    statement: str | None,
    ask: str | None,
    answer: str | None,
    wordings: Sequence[str],
    subject: str | None,
    file: Path | None,
    name: str | None,
) -> tuple[list[str | None], list[Fact]]:
    """The facts that the options of `inject` name, and their names. Raises NPTError if they do not go together."""
    from ..editing.fact import asked, fact_of, read_facts

    given = [o for o, v in (("STATEMENT", statement), ("--ask", ask), ("--from", file)) if v is not None]
    if len(given) != 1:
        raise NPTError(f"give one of STATEMENT, --ask and --from, not {' and '.join(given) or 'none of them'}")
    if file is not None:
        others = (("--answer", answer), ("--subject", subject), ("--wording", wordings or None), ("--name", name))
        if used := [o for o, v in others if v is not None]:
            raise NPTError(f"{used[0]} has no meaning with --from; write it into the file, as .jsonl")
        names, facts = zip(*read_facts(file), strict=True)
        return list(names), list(facts)
    if ask is None:
        assert statement is not None
        return [name], [fact_of(statement, wordings, subject, answer)]
    if answer is None:
        raise NPTError("--ask goes with --answer")
    return [name], [asked(ask, answer, wordings, subject)]


def _lines(file: Path | None) -> tuple[str, ...]:
    """The lines of a file that are not empty; none for no file."""
    if file is None:
        return ()
    from ..files import lines_of, read_text

    found = tuple(line.strip() for line in lines_of(read_text(file)) if line.strip())
    if not found:
        raise NPTError(f"{file} holds no sentence")
    return found


@app.command
def edits(workspace: WorkspaceArg, *, json: Json = False) -> int:
    """List the edits of a workspace, active and undone. Reads the files only; no model is loaded."""
    from ..workspace.edit_files import list_edits

    active, undone = list_edits(workspace)
    result = {"edits": [e.summary() for e in active], "undone": [e.summary() for e in undone]}
    return show_result(json, result, printing.edits)


@app.command
def show(workspace: WorkspaceArg, name: NameArg, *, json: Json = False) -> int:
    """Show one edit in full: its fact, what it changed and by how much. No model is loaded."""
    from ..workspace.edit_files import list_edits

    active, undone = list_edits(workspace)
    for state, listed in (("active", active), ("undone", undone)):
        for edit in listed:
            if edit.name == name:
                return show_result(json, {**edit.summary(), "state": state}, printing.one_edit)
    known = ", ".join(e.name for e in (*active, *undone)) or "none"
    raise NPTError(f"there is no edit {name!r}; there are: {known}")


@app.command
def verify(workspace: WorkspaceArg, *, json: Json = False) -> int:
    """Recompute the weights from the pristine base, compare hashes, and ask every active edit again.

    Exits with 1 if the base or the weights are not what they should be, or an edit file cannot be read. A fact that
    no longer holds among the others is shown, and is no failure of the ledger.
    """
    result = open_workspace(workspace).verify()
    facts = [vars(f) for f in result.facts]
    shown = {"base_unchanged": result.base_unchanged, "weights_exact": result.weights_exact, "facts": facts}
    show_result(json, {"ok": result.ok, **shown, "refused": result.refused}, printing.verification)
    return 0 if result.ok else 1


@app.command
def undo(workspace: WorkspaceArg, name: NameArg, *, json: Json = False) -> int:
    """Take one edit back, in any order; the weights are then bit for bit those without it. `redo` puts it back."""
    return _change(workspace, name, "undone", "undo", json)


@app.command
def redo(workspace: WorkspaceArg, name: NameArg, *, json: Json = False) -> int:
    """Put an undone edit back into the weights."""
    return _change(workspace, name, "active", "redo", json)


@app.command
def drop(workspace: WorkspaceArg, name: NameArg, *, json: Json = False) -> int:
    """Delete an undone edit for good."""
    return _change(workspace, name, "dropped", "drop", json)


def _change(path: Path, name: str, state: str, action: str, json: bool) -> int:
    getattr(open_workspace(path), action)(name)
    changed = {"name": name, "state": state}
    return show_result(json, changed, lambda console, r: console.print(f"{r['name']}: {r['state']}"))
