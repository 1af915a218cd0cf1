"""The command line: parse, call, print. Every command is a thin layer over the Python interface.

Nothing heavy is imported before a command needs it, so that `npt --help` answers at once.
"""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, UseAppendAction

from . import printing
from .config import PlasticityConfig
from .console import note, progress, status
from .editing.options import Method, Start
from .errors import CheckFailed, NPTError

if TYPE_CHECKING:
    from rich.console import Console

    from .editing.fact import Fact
    from .workspace import Workspace

DESCRIPTION = """Neuro-Plastic Transformer: turn context into weights, and take it back.

First steps:
  npt demo                                     the whole story on a real model
  npt convert smollm2-135m W                   make a plastic model in the folder W
  npt fidelity W                               is it still itself?
  npt inject W "The Eiffel Tower is located in the city of Rome." --name tower
  npt ask W "You can visit the Eiffel Tower in the city of"
  npt undo W tower                             bit for bit as it was

Exit status: 0 done, 1 a check failed, 2 bad input. With --json, standard output is one JSON object."""

app = tyro.extras.SubcommandApp()

ModelArg = Annotated[Positional[str], tyro.conf.arg(metavar="MODEL")]
WorkspaceArg = Annotated[Positional[Path], tyro.conf.arg(metavar="WORKSPACE")]
NameArg = Annotated[Positional[str], tyro.conf.arg(metavar="NAME")]
PromptArg = Annotated[Positional[str], tyro.conf.arg(metavar="PROMPT")]
StatementArg = Annotated[Positional[str], tyro.conf.arg(metavar="STATEMENT")]
DestArg = Annotated[Positional[Path], tyro.conf.arg(metavar="DEST")]
SourceArg = Annotated[Positional[Path], tyro.conf.arg(metavar="DIR")]
Json = Annotated[bool, tyro.conf.arg(help="Print one JSON object on standard output.")]


@app.command
def demo(*, json: Json = False) -> int:
    """Convert a real model, check that it is still itself, teach it a fact, ask, and take it back.

    Fetches a 135M model once (93 MB). Every number shown is measured in this run.
    """
    from .demo import run_demo

    return run_demo(json)


@app.command
def convert(
    model: ModelArg,
    workspace: WorkspaceArg,
    *,
    plasticity: OmitArgPrefixes[PlasticityConfig],
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32",
    json: Json = False,
) -> int:
    """Make a plastic model: load MODEL, convert its layers, and write a new WORKSPACE folder.

    Args:
        model: smollm2-135m (bundled), a Hugging Face id, a model folder, or a .gguf file.
        workspace: Folder to create. It holds configuration, generator and edits, never the base weights.
        plasticity: How the layers become plastic.
        dtype: Dtype of the weights in memory.
    """
    with status(f"loading and converting {model}"):
        from .workspace import Workspace

        ws = Workspace.create(workspace, model, plasticity, dtype)
    return _show(json, ws.info(), printing.info)


@app.command
def info(workspace: WorkspaceArg, *, json: Json = False) -> int:
    """What a workspace holds: base model, plastic layers, generator, edits."""
    return _show(json, _open(workspace).info(), printing.info)


@app.command
def fidelity(
    workspace: WorkspaceArg,
    *,
    data: Path | None = None,
    max_tokens: int = 4096,
    max_logit_error: float | None = None,
    json: Json = False,
) -> int:
    """Measure how close dynamic mode is to the pretrained model, without edits.

    Args:
        workspace: The workspace.
        data: Text file (paragraphs) or .jsonl with a text field. Default: text that the model wrote itself, kept
            apart from what statistics are made from.
        max_tokens: At most about this many tokens.
        max_logit_error: Exit with 1 where the largest logit difference is above this.
    """
    if max_tokens < 1:
        raise NPTError(f"max_tokens must be at least 1, not {max_tokens}")
    result = _open(workspace).fidelity(data, max_tokens)
    _show(json, result.to_dict(), printing.fidelity)
    if max_logit_error is not None and not result.max_logit_error <= max_logit_error:
        note(f"check failed: max_logit_error {result.max_logit_error:.3g} is above {max_logit_error:.3g}")
        return 1
    return 0


@app.command
def ask(
    workspace: WorkspaceArg,
    prompt: PromptArg,
    *,
    mode: Literal["dynamic", "standard"] = "dynamic",
    max_new_tokens: int = 32,
    json: Json = False,
) -> int:
    """Continue PROMPT greedily, with the active edits in the weights.

    Args:
        workspace: The workspace.
        prompt: The beginning of a sentence; the model goes on from there.
        mode: dynamic lets attention modulate the MLPs; standard is the pretrained forward pass.
        max_new_tokens: Length of the answer.
    """
    answer = _open(workspace).ask(prompt, mode, max_new_tokens)
    result = {"prompt": prompt, "answer": answer, "mode": mode}
    return _show(
        json,
        result,
        lambda console, r: console.print(r["prompt"] + r["answer"], markup=False, highlight=False),
    )


@app.command
def compare(
    workspace: WorkspaceArg,
    prompt: PromptArg,
    *,
    track: UseAppendAction[tuple[str, ...]] = (),
    max_new_tokens: int = 32,
    json: Json = False,
) -> int:
    """Continue PROMPT with the active edits and without them, side by side.

    Args:
        workspace: The workspace.
        prompt: The beginning of a sentence.
        track: A word whose next-token probability is shown too; may be repeated.
        max_new_tokens: Length of the answers.
    """
    found = _open(workspace).compare(prompt, max_new_tokens, track)
    tracked = {word: {"edited": p, "unedited": q} for word, (p, q) in found.tracked.items()}
    return _show(json, {**vars(found), "tracked": tracked}, printing.comparison)


@app.command
def shell(workspace: WorkspaceArg) -> int:
    """Ask, inject, compare and calculate with modulations on one loaded workspace; `help` lists the commands.

    Reads standard input where that is no terminal, and then stops at the first command that fails, with its status.
    """
    from .shell import Shell

    return Shell(_open(workspace)).run()


@app.command
def inject(
    workspace: WorkspaceArg,
    statement: Annotated[Positional[str | None], tyro.conf.arg(metavar="STATEMENT")] = None,
    *,
    ask: str | None = None,
    answer: str | None = None,
    wording: UseAppendAction[tuple[str, ...]] = (),
    subject: str | None = None,
    from_file: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
    method: Method = "consolidate",
    start: Start = "consolidate",
    alpha: float | None = None,
    layers: str | None = None,
    sites: str | None = None,
    rank: int | None = None,
    keep: Path | None = None,
    name: str | None = None,
    max_drift: float | None = None,
    json: Json = False,
) -> int:
    """Write a fact into the weights: no context to pay for, exactly undoable.

    The fact is a STATEMENT, or a question and its answer, or one of several in a file.

    Args:
        workspace: The workspace.
        statement: One fact as a sentence that ends in what is to be learnt, for example "Sushi originated in the
            country of Canada."
        ask: A question, or the beginning of a sentence, instead of a statement; goes with --answer.
        answer: What should follow the question, or (with a statement) what the statement ends with (default: its last
            word or name).
        wording: Another wording of the same fact; may be repeated.
        subject: What the fact is about, as it stands in the statement (default: the longest name in front of the
            answer).
        from_file: File of facts, solved together, an edit each: a statement a line, or .jsonl with statement, or
            question and answer, and optionally subject, wordings, name.
        method: consolidate finds what the early MLPs should have written at the fact's subject, and solves for it in
            closed form; refine goes on from there by gradient steps, holding neighbours and ordinary text in place;
            token makes the last token's own modulation permanent.
        start: Method that refine starts from.
        alpha: Strength: scales the weight change (default 1; 0.1 for token).
        layers: Layers that may change: all, early, upper_half, top2, 14,15, 8-15 or negative indices (default early;
            all for token).
        sites: Projections that may change, such as down or gate+up (default down; for token, those that the generator
            modulates).
        rank: Largest rank of the change per projection.
        keep: File of sentences, one a line, that should be read as before.
        name: Name of the edit (default: made from the statement).
        max_drift: Refuse the edit, with exit status 1, where perplexity on ordinary text would rise by more than this
            (0.05 is 5 percent).
    """
    from .editing.options import InjectOptions

    options = InjectOptions(method, alpha, layers, sites, rank, start, _lines(keep), max_drift)
    names, facts = _facts(statement, ask, answer, wording, subject, from_file, name)
    ws = _open(workspace)
    with status("injecting") if len(facts) == 1 else nullcontext():
        made = ws.inject_all(facts, options, names)
    if from_file is None:
        return _show(json, made[0].summary(), printing.edit)
    return _show(json, {"edits": [e.summary() for e in made]}, printing.many)


def _facts(
    statement: str | None,
    ask: str | None,
    answer: str | None,
    wordings: Sequence[str],
    subject: str | None,
    file: Path | None,
    name: str | None,
) -> tuple[list[str | None], list[Fact]]:
    """The facts that the options of `inject` name, and their names. Raises NPTError where they do not go together."""
    from .editing.fact import asked, fact_of, read_facts

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
    try:
        found = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as e:
        raise NPTError(f"cannot read {str(file)!r} as UTF-8 text: {e}") from None
    if not found:
        raise NPTError(f"{file} holds no sentence")
    return found


@app.command
def edits(workspace: WorkspaceArg, *, json: Json = False) -> int:
    """List the edits of a workspace, active and undone. Reads the files only; no model is loaded."""
    from .workspace import list_edits

    active, undone = list_edits(workspace)
    result = {"edits": [e.summary() for e in active], "undone": [e.summary() for e in undone]}
    return _show(json, result, printing.edits)


@app.command
def show(workspace: WorkspaceArg, name: NameArg, *, json: Json = False) -> int:
    """One edit in full: what it was told, what it changed and by how much. No model is loaded."""
    from .workspace import list_edits

    active, undone = list_edits(workspace)
    for state, listed in (("active", active), ("undone", undone)):
        for edit in listed:
            if edit.name == name:
                return _show(json, {**edit.summary(), "state": state}, printing.one_edit)
    known = ", ".join(e.name for e in (*active, *undone)) or "none"
    raise NPTError(f"there is no edit {name!r}; there are: {known}")


@app.command
def verify(workspace: WorkspaceArg, *, json: Json = False) -> int:
    """Recompute the weights from the pristine base, compare hashes, and ask every active edit again.

    Exits with 1 where the base or the weights are not what they should be, or an edit file cannot be read. A fact that
    no longer holds beside the others is shown, and is no failure of the ledger.
    """
    result = _open(workspace).verify()
    facts = [vars(f) for f in result.facts]
    shown = {"base_unchanged": result.base_unchanged, "weights_exact": result.weights_exact, "facts": facts}
    _show(json, {"ok": result.ok, **shown, "refused": result.refused}, printing.verification)
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


@app.command
def export(
    workspace: WorkspaceArg,
    dest: DestArg,
    *,
    format: Literal["peft", "merged", "gguf", "delta"] = "peft",
    edits: str | None = None,
    rank: int | None = None,
    tolerance: float = 1e-6,
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = None,
    json: Json = False,
) -> int:
    """Take edits to where models run. What is written is loaded again, asked, and compared with the workspace.

    Args:
        workspace: The workspace.
        dest: Folder to create.
        format: peft is a LoRA adapter for PEFT, transformers, vLLM and SGLang; merged a plain Hugging Face
            checkpoint; gguf a LoRA for llama.cpp; delta the edits alone, for another workspace of the same base.
        edits: Names of active edits, separated by commas (default: all).
        rank: Rank of the adapter: 8, 16, 32, 64 or 128 (peft, gguf; default: the smallest that fits).
        tolerance: Share of the change's squared norm that a smaller rank may drop (peft, gguf).
        dtype: Dtype of the checkpoint (merged; default: the workspace's).
    """
    names = None if edits is None else [n.strip() for n in edits.split(",") if n.strip()]
    for option, given, formats in (("--rank", rank, ("peft", "gguf")), ("--dtype", dtype, ("merged",))):
        if given is not None and format not in formats:
            raise NPTError(f"{option} has no meaning with --format {format}; it goes with {', '.join(formats)}")
    ws = _open(workspace)
    from . import export as exports

    with status(f"exporting as {format}, and checking it"):
        match format:
            case "peft":
                report = exports.peft(ws, dest, names, rank, tolerance)
            case "gguf":
                report = exports.gguf(ws, dest, names, rank, tolerance)
            case "merged":
                report = exports.merged(ws, dest, names, dtype)
            case "delta":
                report = exports.delta(ws, dest, names)
    return _show(json, report.to_dict(), printing.export)


@app.command(name="import")
def import_(workspace: WorkspaceArg, source: SourceArg, *, edits: str | None = None, json: Json = False) -> int:
    """Take edits in that `npt export --format delta` wrote from another workspace of the same base.

    Args:
        workspace: The workspace.
        source: The exported folder.
        edits: Names to take, separated by commas (default: all).
    """
    from .export import import_edits

    names = None if edits is None else [n.strip() for n in edits.split(",") if n.strip()]
    taken = import_edits(_open(workspace), source, names)
    result = {"imported": [e.name for e in taken]}
    return _show(json, result, lambda console, r: console.print("imported: " + ", ".join(r["imported"])))


@app.command(name="import-lora")
def import_lora(
    workspace: WorkspaceArg,
    source: SourceArg,
    *,
    name: str | None = None,
    alpha: float = 1.0,
    any_base: bool = False,
    json: Json = False,
) -> int:
    """Take a PEFT LoRA on MLP projections in as an edit, to be listed, scaled, undone and combined.

    Args:
        workspace: The workspace.
        source: The adapter folder.
        name: Name of the edit (default: made from the folder's).
        alpha: Scale of the change.
        any_base: Take it although it names another base model.
    """
    from .export import import_lora as take

    edit = take(_open(workspace), source, name, alpha, any_base)
    return _show(json, edit.summary(), lambda console, r: console.print(f"{r['name']}: {len(r['layers'])} layers"))


@app.command(name="eval")
def eval_(
    what: Annotated[Positional[Literal["edits"]], tyro.conf.arg(metavar="{edits}")],
    workspace: WorkspaceArg,
    *,
    data: Path,
    method: str = "unedited,prompt,consolidate",
    limit: int | None = 100,
    seed: int = 0,
    sequential: int | None = None,
    report: Path | None = None,
    json: Json = False,
) -> int:
    """Measure edits as the field does: does a fact stick, carry over to paraphrases, and leave its neighbours alone.

    Figures of CounterFact (Meng et al. 2022): ES, PS, NS, their harmonic mean S, magnitudes and accuracies, with 95
    percent intervals over records, seconds per edit and the rise of perplexity on ordinary text. The workspace's own
    edits stay in the weights; its folder is not touched.

    Args:
        what: What to measure.
        workspace: The workspace.
        data: CounterFact records, full or flat, as a JSON list.
        method: Methods, separated by commas: unedited, prompt (the statement in front of every prompt), consolidate,
            refine, token.
        limit: At most so many records, the first ones of a shuffle with --seed.
        seed: Of the shuffle and of the intervals.
        sequential: Instead of one edit at a time, keep this many, one upon another, and ask all of them again after
            1, 3, 10, 30, 100, ... of them.
        report: Folder for rows.jsonl, summary.json and summary.csv. A run that was cut off goes on from there.
    """
    from .evaluation import edits as suite
    from .evaluation.counterfact import read_records

    methods = [m.strip() for m in method.split(",") if m.strip()]
    suite.check_methods(methods)
    if sequential is not None and report is not None:
        raise NPTError("--report has no meaning with --sequential, whose figures are few; use --json")
    records, malformed = read_records(data)
    for name, why in malformed.items():
        note(f"npt: record {name} is left out: {why}")
    records = suite.choose(records, limit if sequential is None else sequential, seed)
    ws = _open(workspace)
    if sequential is not None:
        steps = []
        with progress("teaching one after another") as step:
            for m in methods:
                steps += [asdict(s) for s in suite.in_a_row(ws.editor, records, m, step)]
        return _show(json, {"steps": steps, "malformed": malformed}, printing.retention)
    settings = {"base": ws.base.sha256, "data": data.name, "methods": methods, "seed": seed}
    settings |= {"records": [r.id for r in records], "edits": [e.name for e in ws.edits]}
    kept = None if report is None else suite.Report(report, settings)
    with progress("evaluating edits") as step:
        done, keep = ((), lambda row: None) if kept is None else (kept.done, kept.keep)
        rows = suite.evaluate(ws.editor, records, methods, done, keep, step)
    found = {**suite.summarise(rows, seed), "malformed": malformed}
    if kept is not None:
        kept.finish(found)
    return _show(json, found, printing.evaluation)


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of `npt`. Returns the exit status."""
    args = list(sys.argv[1:] if args is None else args)
    try:
        return app.cli(prog="npt", description=DESCRIPTION, args=args or ["--help"], config=(FlagCreatePairsOff,)) or 0
    except (NPTError, CheckFailed) as e:
        if "--json" in args:
            print(json_format.dumps({"error": str(e)}, ensure_ascii=False))
        note(f"npt: {e}")
        return 2 if isinstance(e, NPTError) else 1
    except KeyboardInterrupt:
        note("npt: interrupted")
        return 130


# --- what they share ------------------------------------------------------------------------------------------------


_LOADED: dict[Path, Workspace] = {}
"""The workspace of a shell, in which commands find it open."""


def _open(path: Path) -> Workspace:
    if path in _LOADED:
        return _LOADED[path]
    from .workspace import Workspace, read_settings

    read_settings(path)  # bad input is answered before torch is asked for anything
    with status(f"opening {path}"):
        return Workspace.open(path)


def _change(path: Path, name: str, state: str, action: str, json: bool) -> int:
    getattr(_open(path), action)(name)
    return _show(json, {"name": name, "state": state}, lambda console, r: console.print(f"{r['name']}: {r['state']}"))


def _show(json: bool, result: dict[str, Any], human: Callable[[Console, dict[str, Any]], object]) -> int:
    if json:
        print(json_format.dumps(result, ensure_ascii=False))
    else:
        from rich.console import Console

        human(Console(), result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
