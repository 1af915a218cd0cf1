"""The injector against its bars: quality beside ROME, time, many edits in place, zsRE, free writing.

python benchmarks/learned.py [--data FOLDER] [--workspace W] [--quick] [--records 200] [--asked 100]
    [--kept 1,10,30,100,300,1000] [--first 0] [--skip rome] [--seed 0] [--report DIR] [--json]

Records of counterfact_dev.json and zsre_dev.json in --data, or in the folder $NPT_DATA; no injector that comes with the
package was trained on their subjects. --first leaves that number of records out, those that are reported on, to choose
on others. Without --workspace, a fresh one of smollm2-135m in float32. --kept: numbers of edits in place, made in one
call, first as gated units and then as the joint solution of their ungated form; CounterFact edits come first, zsRE's
fill up, and a sample of --asked of those CounterFact records is asked, and perplexity is measured on two thousand
tokens of held-out text that the model wrote, and on as many of general_text.jsonl. A fact that is refused by name is
asked like the others. The model writes freely about --asked records,
or not at all with 0. Prints what was measured, and which bars are met. With --report, an interrupted run continues from
there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

import neuroplastic as npt
from baselines.data import records_file
from neuroplastic.console import Terminal, progress
from neuroplastic.editing.edit import Edit
from neuroplastic.editing.engine import EditableModel
from neuroplastic.editing.fact import Fact, asked
from neuroplastic.errors import NotTeachable
from neuroplastic.evaluation.edits import Row, evaluate, summarise
from neuroplastic.evaluation.evaluator import Evaluator
from neuroplastic.evaluation.methods import editing_method, injected
from neuroplastic.evaluation.ordinary import OrdinaryText
from neuroplastic.evaluation.records import Record, choose, read_records
from neuroplastic.evaluation.result_store import ResultStore
from neuroplastic.evaluation.suite import SuiteName
from neuroplastic.evaluation.suites import SUITES
from neuroplastic.evaluation.summary import Interval, harmonic, summary
from neuroplastic.text.tokens import read_texts, windows

HOW = ("gated", "ungated", "unedited")


@dataclass(frozen=True)
class InPlace:
    """Figures of a number of edits in place."""

    edits: int
    how: str
    figures: dict[str, Interval]
    perplexity: float
    """relative rise on held-out text that the model wrote itself"""
    kl: float
    read_perplexity: float
    """the same on text that people wrote"""
    read_kl: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--quick", action="store_true", help="edits as of npt inject --quick")
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--asked", type=int, default=100)
    parser.add_argument("--kept", default="1,10,30,100,300,1000")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--skip", default="", help="parts left out, separated by commas: alone, rome, zsre, time, kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    skip = set(filter(None, options.skip.split(",")))
    if options.asked < 1 and "kept" not in skip:
        raise npt.NPTError("many edits in place are measured on --asked records: give some, or --skip kept")
    with tempfile.TemporaryDirectory() as folder:
        if options.workspace is None:
            ws = npt.Workspace.create(Path(folder) / "w", "smollm2-135m")
        else:
            ws = npt.Workspace.open(options.workspace)
        if ws.engine.injector is None:
            raise npt.NPTError("the workspace has no injector; make one with: npt train-injector")
        found: dict[str, Any] = {}
        counterfact = records(options, "counterfact")
        if "alone" not in skip:
            methods = ["unedited", "learned", *(["rome"] if "rome" not in skip else [])]
            found["counterfact"] = alone(ws.engine, "counterfact", counterfact[: options.records], methods, options)
        if "zsre" not in skip:
            chosen = records(options, "zsre")[: options.records]
            found["zsre"] = alone(ws.engine, "zsre", chosen, ["unedited", "learned"], options)
        if "time" not in skip:
            found["time"] = timed(ws, counterfact[:100], npt.InjectOptions("learned", quick=options.quick))
        if "kept" not in skip:
            sizes = [int(n) for n in options.kept.split(",")]
            more = [replace(r, id=f"zsre {r.id}") for r in records(options, "zsre")]
            found["kept"] = [asdict(c) for c in in_place(ws.engine, counterfact, more, sizes, options)]
    if options.json:
        print(json.dumps({**found, "bars": bars(found)}))
        return
    show(found)
    for bar, met in bars(found).items():
        print(f"{'met' if met else 'NOT MET':<8} {bar}")


def records(options: argparse.Namespace, suite: SuiteName) -> list[Record]:
    """All of a suite's development records, in a seeded order."""
    name = f"{suite}_dev.json"
    file = records_file(None if options.data is None else options.data / name, name)
    return choose(read_records(file, SUITES[suite].parse)[0], None, options.seed)[options.first :]


def alone(
    engine: EditableModel,
    name: SuiteName,
    chosen: Sequence[Record],
    methods: Sequence[str],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Each record taught alone, and asked; the first of them also in free writing."""
    suite, compared = SUITES[name], {m: editing_method(m) for m in methods}
    compared["learned"] = injected(npt.InjectOptions("learned", quick=options.quick))
    settings = {
        "suite": name,
        "quick": options.quick,
        "records": [r.id for r in chosen],
        "methods": methods,
        "base": engine.sha256,
    }
    store = None if options.report is None else ResultStore(options.report / name, settings, Row)
    with progress(f"{name}: {len(chosen)} records, {', '.join(methods)}") as step:
        found = summarise(evaluate(Evaluator(engine, suite), chosen, compared, store, step), suite, options.seed)
    if not options.asked:
        return found
    written = Evaluator(engine, suite, generate=True, seed=options.seed)
    store = None if options.report is None else ResultStore(options.report / f"{name}-written", settings, Row)
    with progress(f"{name}: free writing") as step:
        rows = evaluate(written, chosen[: options.asked], {"learned": compared["learned"]}, store, step)
    own = found["methods"]["learned"]["figures"]
    free = summarise(rows, suite, options.seed)["methods"]["learned"]["figures"]
    own |= {n: free[n] for n in ("es_gen", "ps_gen", "entropy")}
    return found


def timed(ws: npt.Workspace, chosen: Sequence[Record], options: npt.InjectOptions) -> dict[str, float]:
    """Seconds of an edit itself, of a whole call of `inject` with all that it measures, and of a batch of facts, with
    the first attempt if some of them are refused by name."""
    facts = [asked(r.prompt, r.new) for r in chosen]
    own, whole = [], []
    for fact in facts[:11]:  # the first warms up
        began = time.perf_counter()
        (edit,) = ws.inject_all([fact], options)
        whole.append(time.perf_counter() - began)
        own.append(edit.report["seconds"])
        ws.undo(edit.name)
        ws.drop(edit.name)
    began = time.perf_counter()
    made = made_of(ws.engine, facts, options)
    together = time.perf_counter() - began
    return {
        "edit": sorted(own[1:])[5],
        "whole_call": sorted(whole[1:])[5],
        "facts_together": len(made),
        "per_second_together": len(made) / together,
        "per_second_injector_alone": 1 / made[0].report["seconds"],
    }


def in_place(
    engine: EditableModel,
    first: Sequence[Record],
    more: Sequence[Record],
    sizes: Sequence[int],
    options: argparse.Namespace,
) -> list[InPlace]:
    """Figures of the first records' facts as the number of edits in the weights grows."""
    taught = [*first, *more][: max(sizes)]
    if len(taught) < max(sizes):
        raise npt.NPTError(f"there are {len(taught)} records for {max(sizes)} edits; give smaller --kept")
    facts = [asked(r.prompt, r.new) for r in taught]
    chosen = npt.InjectOptions("learned", quick=options.quick)
    suite = SUITES["counterfact"]
    evaluator, written = Evaluator(engine, suite), OrdinaryText(engine, engine.text[1])
    read = OrdinaryText(engine, text_of_people(engine, options))
    settings = {"taught": [r.id for r in (*first, *more)], "asked": options.asked, "quick": options.quick}
    settings |= {"base": engine.sha256, "seed": options.seed}
    store = None if options.report is None else ResultStore(options.report / "kept", settings, InPlace)
    known = {(c.edits, c.how): c for c in (store.done if store is not None else ())}
    found: list[InPlace] = []
    with progress("many edits in place") as step:
        for size in sizes:
            if all((size, how) in known for how in HOW):
                found += [known[size, how] for how in HOW]
                continue
            made = made_of(engine, facts[:size], chosen)
            placed = [replace(e, sequence=i) for i, e in enumerate(made, 1)]
            some = choose(list(first[:size]), options.asked, options.seed)
            evaluator.remember(some)
            for how, edits in zip(HOW, (placed, [e.ungated for e in placed], []), strict=True):
                with engine.only(edits):
                    figures = summary([evaluator.ask(r) for r in some], suite.parts_of_s, options.seed)
                    found.append(InPlace(size, how, figures, *written.drift(), *read.drift()))
                if store is not None:
                    store.keep(found[-1])
                step(len(found), len(HOW) * len(sizes))
    return found


def made_of(engine: EditableModel, facts: Sequence[Fact], chosen: npt.InjectOptions) -> list[Edit]:
    """The edits of all facts in one call, without those that are refused by name, which are printed."""
    try:
        return engine.make(facts, chosen, [f"kept-{i}" for i in range(len(facts))])
    except NotTeachable as e:
        print(f"{len(e.facts)} of {len(facts)} refused: {e}", file=sys.stderr)
        refused = set(e.facts)
        return made_of(engine, [f for i, f in enumerate(facts) if i not in refused], chosen)


def text_of_people(engine: EditableModel, options: argparse.Namespace) -> Tensor:
    """Two thousand tokens from all over general_text.jsonl."""
    name = "general_text.jsonl"
    texts = read_texts(records_file(None if options.data is None else options.data / name, name))
    return windows(engine.tokenizer, texts[:: len(texts) // 64 or 1], 128, 4096, engine.model.device)


def bars(found: dict[str, Any]) -> dict[str, bool]:
    """Of what was measured: the bar, with the figure, and whether it is met."""
    checked: dict[str, bool] = {}

    def bar(name: str, value: float, least: float) -> None:
        checked[f"{name}: {value:.3f}, at least {least:.3f}"] = value >= least

    def limit(name: str, value: float, most: float) -> None:
        checked[f"{name}: {value:.4f}, at most {most:g}"] = value <= most

    if "counterfact" in found:
        methods, ceiling = found["counterfact"]["methods"], found["counterfact"]["ceiling"]
        own, base = methods["learned"]["figures"], methods["unedited"]["figures"]
        bar("ES", own["ES"][0], 0.99)
        bar("PS", own["PS"][0], 0.96)
        bar("NS", own["NS"][0], base["NS"][0] - 0.02)
        bar("S of its ceiling", own["S"][0] / ceiling, 0.97)
        limit("rise of perplexity per edit", own["perplexity"][0], 0.005)
        if "es_gen" in own:
            bar("free writing, edit prompts", own["es_gen"][0], 0.9)
            bar("free writing, paraphrases", own["ps_gen"][0], 0.8)
        if "rome" in methods:
            rome = methods["rome"]["figures"]
            bar("S beside ROME's", own["S"][0], rome["S"][0])
            bar("times faster than ROME", rome["seconds"][0] / own["seconds"][0], 30)
    if "zsre" in found:
        own = found["zsre"]["methods"]["learned"]["figures"]
        bar("zsRE edit", own["edit"][0], 0.9)
        bar("zsRE locality", own["locality"][0], 0.95)
    if "time" in found:
        limit("seconds an edit", found["time"]["edit"], 0.12)
        bar("edits a second, a hundred at once", found["time"]["per_second_together"], 20)
    measured = {(c["edits"], c["how"]): c for c in found.get("kept", ())}
    for edits, share, drift in ((100, 0.92, 0.03), (1000, 0.80, 0.10)):
        if (edits, "gated") in measured:
            c, base = measured[edits, "gated"], measured[edits, "unedited"]["figures"]
            bar(f"{edits} edits, S of its ceiling", c["figures"]["S"][0] / harmonic(1, 1, base["NS"][0]), share)
            limit(f"{edits} edits, rise of perplexity", c["perplexity"], drift)
    return checked


def show(found: dict[str, Any]) -> None:
    console = Terminal() if sys.stdout.isatty() else Terminal(width=160)
    for name in ("counterfact", "zsre"):
        if name in found:
            parts, ceiling = found[name]["parts_of_s"], found[name]["ceiling"]
            table = Table(name, *parts, "S", "of ceiling", "seconds", "perplexity", "es_gen", "ps_gen")
            for method, own in found[name]["methods"].items():
                f = own["figures"]
                cells = ["{:.3f} [{:.2f}, {:.2f}]".format(*f[n]) for n in (*parts, "S")]
                more = [(n, form.format(f[n][0]) if n in f else "") for n, form in FORMS.items()]
                table.add_row(method, *cells, f"{f['S'][0] / ceiling:.3f}", *(text for _, text in more))
            console.print(f"{len(found[name]['records'])} records; ceiling of S {ceiling:.3f}")
            console.print(table)
    if "time" in found:
        console.print(*(f"{name} {value:.3f}" for name, value in found["time"].items()), sep="\n")
    if "kept" in found:
        table = Table("edits in place", "how", "ES", "PS", "NS", "S", "own text", "KL", "people's", "KL")
        for c in found["kept"]:
            cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*c["figures"][n]) for n in ("ES", "PS", "NS", "S")]
            drift = [f for at in ("", "read_") for f in (f"{c[at + 'perplexity']:+.2%}", f"{c[at + 'kl']:.4f}")]
            table.add_row(str(c["edits"]), c["how"], *cells, *drift)
        console.print(table)


FORMS = {"seconds": "{:.3f}", "perplexity": "{:+.2%}", "es_gen": "{:.2f}", "ps_gen": "{:.2f}"}


if __name__ == "__main__":
    try:
        main()
    except npt.NPTError as e:
        print(f"learned: {e}", file=sys.stderr)
        sys.exit(2)
