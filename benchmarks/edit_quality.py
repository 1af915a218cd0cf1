"""ES, PS, NS and S of the injection methods on CounterFact records.

python benchmarks/edit_quality.py --data counterfact_dev.json [--limit 100] [--methods consolidate,refine] [--json]

smollm2-135m in float32. One edit at a time, put into the weights, asked, and undone; a method is given the statement
alone. Beside the methods the unedited model, and the statement in the prompt. Records are shuffled with seed 0, then
the first --limit are taken. 95 % intervals by bootstrap over records. Perplexity is on about five hundred held-out
tokens of ordinary text, over the first ten records.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import neuroplastic as npt
from neuroplastic.evaluation.counterfact import Record, Score, harmonic, read_records, score, summary


def in_prompt(record: Record) -> Record:
    """The same questions behind the statement, in the words with which the teacher of `consolidate` is told it."""
    told = f"Fact: {record.statement}\n"
    return replace(
        record,
        prompt=told + record.prompt,
        paraphrases=tuple(told + p for p in record.paraphrases),
        neighbours=tuple(told + p for p in record.neighbours),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--methods", default="consolidate,refine,token")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    records, malformed = read_records(options.data)
    for name, why in malformed.items():
        print(f"record {name} is left out: {why}", file=sys.stderr)
    random.Random(0).shuffle(records)
    records = records[: options.limit]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        ws = npt.Workspace.create(Path(folder) / "w", "smollm2-135m")
        npt.set_mode(ws.model, "standard")
        editor = ws.editor
        base = editor.perplexity()
        unedited = [score(ws.model, ws.tokenizer, r) for r in records]
        ceiling = harmonic(1, 1, sum(s.ns for s in unedited) / len(unedited))
        told = [score(ws.model, ws.tokenizer, in_prompt(r)) for r in records]
        rows.append({"method": "unedited", **summary(unedited)})
        rows.append({"method": "statement in the prompt", **summary(told)})
        for method in options.methods.split(","):
            scores: list[Score] = []
            seconds, drifts = 0.0, []
            for i, record in enumerate(records):
                (edit,) = editor.make([npt.fact_of(record.statement)], npt.InjectOptions(method), ["edit"])
                seconds += edit.report["seconds"]
                with editor.only([replace(edit, sequence=1)]):
                    scores.append(score(ws.model, ws.tokenizer, record))
                    if i < 10:
                        drifts.append(editor.perplexity() / base - 1)
                print(f"\r{method}: {i + 1}/{len(records)}", end="", file=sys.stderr, flush=True)
            print(file=sys.stderr)
            drift = sum(drifts) / len(drifts)
            rows.append({"method": method, **summary(scores), "seconds": seconds / len(records), "drift": drift})
    if options.json:
        print(json.dumps({"records": [r.id for r in records], "ceiling": ceiling, "rows": rows}))
        return
    print(f"{len(records)} records, ceiling of S {ceiling:.3f}")
    for row in rows:
        figures = "  ".join(
            f"{k} {mean:.3f} [{low:.3f}, {high:.3f}]"
            for k, (mean, low, high) in ((k, row[k]) for k in ("ES", "PS", "NS", "S"))
        )
        cost = f"  {row['seconds']:.2f} s, perplexity {row['drift']:+.1%}" if "seconds" in row else ""
        print(f"{row['method']:<24} {figures}{cost}")


if __name__ == "__main__":
    main()
