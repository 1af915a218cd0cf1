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
    generate: bool = False,
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
            the statements of all records, the best for a prompt before it), learned, consolidate, refine, token.
        limit: Largest number of records, the first ones of a shuffle with --seed.
        seed: Seed of the shuffle, of the intervals and of what is written freely.
        sequential: Make this number of sequential edits instead of one edit at a time, and ask them again after 1, 3,
            10, 30, 100, ... of them; if more than 200 are in place, a sample of 200.
        generate: Also let the model write freely: whether the answer is in the text (es_gen, ps_gen), and how varied
            the text is (entropy). It takes some seconds per record.
        report: Folder for report.html, summary.json, summary.csv and rows.jsonl. An interrupted run continues from
            there.
    """
    from ..evaluation.methods import check_methods, editing_method
    from ..evaluation.records import choose, read_records
    from ..evaluation.run import run_suite
    from ..evaluation.suites import SUITES

    names = [m.strip() for m in method.split(",") if m.strip()]
    check_methods(names)
    chosen = SUITES[suite]
    records, malformed = read_records(data, chosen.parse, chosen.link)
    for name, why in malformed.items():
        note(f"npt: record {name} is left out: {why}")
    records = choose(records, limit if sequential is None else sequential, seed)
    methods = {m: editing_method(m, [r.statement for r in records]) for m in names}
    options = (Path(data).name, seed, sequential is not None, generate, report, malformed)
    found = run_suite(open_workspace(workspace).engine, chosen, records, methods, *options)
    wide = ("S", *chosen.parts_of_s)
    return show_result(json, found, lambda console, r: printing.evaluation(console, r, wide, chosen.shown))


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
