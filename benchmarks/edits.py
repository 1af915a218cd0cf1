"""Our methods and the baselines on the same model and records, in one table.

make bench-edits
    or: python benchmarks/edits.py [--data FILE] [--workspace W] [--method M[,M...]] [--limit 100] [--seed 0]
        [--together N] [--report DIR] [--json]

CounterFact records, each taught alone: quality, share of the ceiling, seconds per edit, the effect on ordinary text,
and the tokens that a statement in the prompt costs with every question. --together N makes N sequential edits instead,
and a batch edit of all N if the method has one. Without --workspace, a fresh one of smollm2-135m in float32. Without
--method, every method of the package and every baseline; one that this workspace cannot do is left out, and named. The
data is --data, or counterfact_dev.json in the folder $NPT_DATA. With --report, an interrupted run continues from there,
and may continue with other methods.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from rich.table import Table

import neuroplastic as npt
from baselines.data import records_file
from neuroplastic.console import Terminal, note, progress
from neuroplastic.editing.engine import EditableModel
from neuroplastic.editing.inject_options import InjectOptions, Method
from neuroplastic.evaluation.baselines import BASELINES, BATCHES
from neuroplastic.evaluation.edits import Row, evaluate, summarise
from neuroplastic.evaluation.evaluator import Evaluator
from neuroplastic.evaluation.methods import WITHOUT_EDIT, BatchMethod, EditingMethod, all_injected, editing_method
from neuroplastic.evaluation.ordinary import OrdinaryText
from neuroplastic.evaluation.plots import need_matplotlib
from neuroplastic.evaluation.records import Record, before, choose, read_records
from neuroplastic.evaluation.report import entries, write_report
from neuroplastic.evaluation.result_store import ResultStore
from neuroplastic.evaluation.sequential import Step, in_a_row, summarise_steps
from neuroplastic.evaluation.suites import SUITES
from neuroplastic.evaluation.summary import mean_interval, summary
from neuroplastic.text.tokens import encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--method", default="")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--together", type=int)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    suite, data = SUITES["counterfact"], records_file(options.data)
    if options.report is not None:
        need_matplotlib()
    everything, malformed = read_records(data, suite.parse)
    for name, why in malformed.items():
        note(f"record {name} is left out: {why}")
    records = choose(everything, options.limit if options.together is None else options.together, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        if options.workspace is None:
            ws = npt.Workspace.create(Path(folder) / "w", "smollm2-135m")
        else:
            ws = npt.Workspace.open(options.workspace)
        methods, left_out = chosen(ws.engine, records[0], options.method)
        evaluator = Evaluator(ws.engine, suite, seed=options.seed)
        settings = {"base": ws.base.sha256, "data": data.name, "edits": [e.name for e in ws.edits]}
        settings |= {"records": [r.id for r in records], "seed": options.seed, "together": options.together}
        if options.together is None:
            store = None if options.report is None else ResultStore(options.report, settings, Row)
            with progress("teaching and asking, one record at a time") as step:
                found = summarise(evaluate(evaluator, records, methods, store, step), suite, options.seed)
            for method, cost in context_tokens(ws.engine, records, methods).items():
                found["methods"][method]["context_tokens"] = cost
        else:
            steps = None if options.report is None else ResultStore(options.report, settings, Step)
            found = summarise_steps(together(evaluator, records, methods, steps), records, suite, options.seed)
    found |= {"malformed": malformed, "missing": sorted(evaluator.missing), "left_out": left_out}
    if options.report is not None:
        write_report(options.report, found, settings, [])
    if options.json:
        print(json.dumps(found))
    else:
        show(found)


def chosen(engine: EditableModel, record: Record, named: str) -> tuple[dict[str, EditingMethod], dict[str, str]]:
    """The methods by name, and why others are left out.

    Nothing is left out of those that are named. Raises NPTError for one that does not exist.
    """
    every: dict[str, EditingMethod] = {m: editing_method(m) for m in (*WITHOUT_EDIT, *get_args(Method))}
    every.update(BASELINES)
    names = [m.strip() for m in named.split(",") if m.strip()]
    if wrong := [m for m in names if m not in every]:
        raise npt.NPTError(f"there is no method {wrong[0]!r}; there are {', '.join(every)}")
    if names:
        return {m: every[m] for m in names}, {}
    found, left_out = {}, {}
    for name, teach in every.items():
        try:
            with teach(engine, record):
                found[name] = teach
        except npt.NPTError as e:  # a method that needs a generator which this workspace does not have
            left_out[name] = str(e)
            note(f"{name} is left out: {e}")
    return found, left_out


def context_tokens(
    engine: EditableModel, records: Sequence[Record], methods: Mapping[str, EditingMethod]
) -> dict[str, float]:
    """Per method, the mean number of tokens that stand before every question while a record is asked."""
    tokens = dict.fromkeys(methods, 0.0)
    for name in tokens.keys() & set(WITHOUT_EDIT):  # the others need no context
        for record in records:
            with methods[name](engine, record) as taught:
                tokens[name] += len(encode(engine.tokenizer, before(taught.context, record.prompt))) / len(records)
    return tokens


# --- many facts -----------------------------------------------------------------------------------------------------


def together(
    evaluator: Evaluator,
    records: Sequence[Record],
    methods: Mapping[str, EditingMethod],
    store: ResultStore[Step] | None,
) -> list[Step]:
    """Each method that changes weights: sequential edits of all records, and then a batch edit if it has one."""
    batches: dict[str, BatchMethod] = {"consolidate": all_injected(InjectOptions("consolidate")), **BATCHES}
    steps: list[Step] = []
    for name, teach in methods.items():
        if name not in WITHOUT_EDIT:
            with progress(f"{name}, sequential") as step:
                steps += in_a_row(evaluator, records, name, teach, store, step)
        if name in batches:
            steps.append(in_one(evaluator, records, f"{name}, one batch", batches[name], store))
    return steps


def in_one(
    evaluator: Evaluator, records: Sequence[Record], name: str, teach: BatchMethod, store: ResultStore[Step] | None
) -> Step:
    """All records taught by one call, and then all asked."""
    for known in store.done if store is not None else ():
        if known.method == name:
            return known
    evaluator.remember(records)
    ordinary = OrdinaryText(evaluator.engine)
    with progress(name) as step, teach(evaluator.engine, records) as taught:
        rows = []
        for number, record in enumerate(records, 1):
            rows.append(evaluator.ask(record))
            step(number, len(records))
        figures = summary(rows, evaluator.suite.parts_of_s, evaluator.seed)
        figures |= {"seconds": mean_interval([taught.seconds], evaluator.seed)}
        made = Step(name, len(records), len(records), figures, *ordinary.drift())
    if store is not None:
        store.keep(made)
    return made


# --- the table ------------------------------------------------------------------------------------------------------


def show(found: dict[str, Any]) -> None:
    parts, ceiling = found["parts_of_s"], found.get("ceiling")
    costs = {m: own["context_tokens"] for m, own in found.get("methods", {}).items() if own["context_tokens"]}
    kept = ["edits kept"] if "steps" in found else []
    table = Table("method", *kept, *parts, "S", "of ceiling", "s per edit", "perplexity", "KL", "context tokens")
    for name, edits, figures in entries(found):
        cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*figures[n]) for n in (*parts, "S")]
        cells.append("" if not ceiling else f"{figures['S'][0] / ceiling:.2f}")
        for n, form in (("seconds", "{:.2f}"), ("perplexity", "{:+.2%}"), ("kl", "{:.4f}")):
            cells.append(form.format(figures[n][0]) if n in figures else "")
        table.add_row(name, *(str(edits) for _ in kept), *cells, f"{costs[name]:.1f}" if name in costs else "")
    console = Terminal() if sys.stdout.isatty() else Terminal(width=200)
    console.print(f"{len(found['records'])} records, seed {found['seed']}")
    if ceiling is not None:
        console.print(f"ceiling of S {ceiling:.3f}")
    console.print(table)


if __name__ == "__main__":
    try:
        main()
    except npt.NPTError as e:
        print(f"bench-edits: {e}", file=sys.stderr)
        sys.exit(2)
