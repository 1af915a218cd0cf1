"""`npt eval`: edits measured."""

from __future__ import annotations

from pathlib import Path

from tyro.extras import SubcommandApp

from ..cli import printing
from ..config import Mode
from ..console import note
from ..errors import NPTError
from ..evaluation.suite import SuiteName
from ..extras import need_extra
from .common import Json, WorkspaceArg, app, open_workspace, show_result

evaluations = SubcommandApp()
app.command(evaluations, name="eval", help="Measure edits as the field does.")


@evaluations.command
def edits(
    workspace: WorkspaceArg,
    *,
    data: str,
    suite: SuiteName = "counterfact",
    method: str = "unedited,prompt,consolidate",
    limit: int | None = 100,
    seed: int = 0,
    sequential: int | None = None,
    together: int = 1,
    generate: bool = False,
    text: Path | None = None,
    report: Path | None = None,
    json: Json = False,
) -> int:
    """Measure edits as the field does: reliability, generality (paraphrases) and locality (neighbourhood).

    Each figure comes with a 95 percent interval over records. Seconds and peak memory per edit, the rise of perplexity
    and the KL divergence on ordinary text are measured too. The workspace's own edits stay in the weights; its folder
    is not touched. docs/evaluation.md says what each figure means.

    Args:
        workspace: The workspace.
        data: Records: a JSON file with a list, a .jsonl file, or a folder or Hugging Face id of a dataset (id:split).
        suite: counterfact (records full or flat): ES, PS, NS, their harmonic mean S, magnitudes and accuracies. zsre:
            accuracies of edit, paraphrase and locality. Both with portability. In the others the model writes by itself
            and is judged strictly. "told": facts as people state them; paragraphs: facts that a paragraph tells, also
            asked by multi-hop questions; passages: whole passages and their questions; qaedit: real questions.
        method: Methods, separated by commas: unedited, prompt (the statement before every prompt), retrieval (of
            the statements of all records, the best for a prompt before it), learned, consolidate, refine, token, and
            other people's: rome, memit, lora, ft (fine-tuning within bounds).
        limit: Largest number of records, the first ones of a shuffle with --seed.
        seed: Seed of the shuffle, of the intervals and of what is written freely.
        sequential: Make this number of sequential edits instead of one edit at a time, and ask them again after 1, 3,
            10, 30, 100, ... of them; if more than 200 are in place, a sample of 200. If more than 100 are made, the
            first 100 are asked again at the end.
        together: Teach the records in groups of this size, all of a group in one call and in place while each of them
            is asked.
        generate: Also let the model write freely: whether the answer is in the text (es_gen, ps_gen), and how varied
            the text is (entropy). It takes some seconds per record.
        text: A text file, or a .jsonl file with "text", on which perplexity and KL are measured beside the model's own
            text.
        report: Folder for report.html, summary.json, summary.csv and rows.jsonl. An interrupted run continues from
            there.
    """
    from ..evaluation.methods import batch_method, check_methods, editing_method
    from ..evaluation.records import choose, read_records
    from ..evaluation.run import run_suite
    from ..evaluation.suites import SUITES

    names = _names(method)
    check_methods(names)
    chosen = SUITES[suite]
    records, malformed = read_records(data, chosen.parse, chosen.link)
    for name, why in malformed.items():
        note(f"npt: record {name} is left out: {why}")
    records = choose(records, limit if sequential is None else sequential, seed)
    methods = {m: editing_method(m, [r.statement for r in records]) for m in names}
    options = (Path(data).name, seed, sequential is not None, generate, report, malformed)
    batches = {m: batch for m in names if (batch := batch_method(m)) is not None}
    engine = open_workspace(workspace).engine
    found = run_suite(engine, chosen, records, methods, *options, together, batches, text)
    wide = ("S", *chosen.parts_of_s)
    return show_result(json, found, lambda console, r: printing.evaluation(console, r, wide, chosen.shown))


@evaluations.command
def compare(
    workspace: WorkspaceArg,
    *,
    data: Path,
    suite: str | None = None,
    method: str | None = None,
    limit: int | None = 40,
    seed: int = 0,
    together: int = 1,
    text: Path | None = None,
    report: Path | None = None,
    json: Json = False,
) -> int:
    """Compare ways to teach the model by one table for each suite: success, locality, drift, and what each costs.

    The workspace's own edits stay in the weights; its folder is not touched. docs/evaluation.md says what each figure
    means.

    Args:
        workspace: The workspace.
        data: Folder with the suites' files under their usual names (told_dev.json, qaedit_dev.json,
            paragraph_facts_dev.json, squad_passages.jsonl, counterfact_dev.json, zsre_dev.json).
        suite: Suites, separated by commas; without it, those whose files are in the folder.
        method: Methods, separated by commas; without it, unedited, prompt, retrieval, learned, consolidate, refine,
            rome, memit, lora and ft, but for learned if the model has no injector.
        limit: Largest number of records of each suite, the first ones of a shuffle with --seed.
        seed: Seed of the shuffle and of the intervals.
        together: Teach the records in groups of this size, all of a group in place while each of them is asked.
        text: A text file, or a .jsonl file with "text", on which perplexity and KL are measured beside the model's own
            text.
        report: Folder for report.html with tables and plots, summary.json, and a folder for each suite. An interrupted
            run continues from there.
    """
    from ..evaluation.compare import compare as compared
    from ..evaluation.compare import sources
    from ..evaluation.methods import check_methods

    files = sources(None if suite is None else _names(suite), data)
    names = None if method is None else _names(method)
    check_methods(names or ())
    engine = open_workspace(workspace).engine
    found = compared(engine, files, names, limit, seed, together, text, report)
    return show_result(json, found, printing.comparisons)


def _names(listed: str) -> list[str]:
    """Names that commas separate, each once."""
    return list(dict.fromkeys(n.strip() for n in listed.split(",") if n.strip()))


@evaluations.command
def lm(
    workspace: WorkspaceArg,
    *,
    tasks: str,
    include: Path | None = None,
    mode: Mode = "dynamic",
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    json: Json = False,
) -> int:
    """Run tasks of lm-evaluation-harness on the model with its active edits. Needs pip install 'neuroplastic[lm]'.

    Args:
        workspace: The workspace.
        tasks: Names of tasks, separated by commas, such as hellaswag,arc_easy. The harness loads their data.
        include: Folder with task files (.yaml) of your own, which need no network.
        mode: dynamic lets attention modulate the MLPs; standard is the pretrained forward pass.
        limit: Largest number of questions per task.
        batch_size: Number of questions read at once.
        seed: Seed of everything that a task draws.
    """
    named = [t.strip() for t in tasks.split(",") if t.strip()]
    for name, value in (("tasks", len(named)), ("limit", 1 if limit is None else limit), ("batch_size", batch_size)):
        if value < 1:
            raise NPTError(f"{name} must be at least 1, not {value}")
    need_extra("lm", "lm_eval", reason="lm-evaluation-harness")
    ws = open_workspace(workspace)
    from ..evaluation.lm import evaluate_tasks
    from ..surgery import mode as in_mode

    with in_mode(ws.model, mode):
        found = evaluate_tasks(ws.model, ws.tokenizer, named, include, limit, batch_size, seed)
    return show_result(json, {"mode": mode, "tasks": found}, printing.tasks)
