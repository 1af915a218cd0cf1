"""What an injection costs on a loaded workspace, alone and by the hundred; and opening a workspace with 1,000 edits.

python benchmarks/inject.py [--facts 100] [--edits 1000] [--json]

smollm2-135m in float32. `seconds` of a method is the median over five invented statements of the time that the edit
itself took; `with report` adds what is measured around it (the answer before and after, perplexity on about a thousand
tokens). `together` is the time of a batch edit of --facts statements by `consolidate` over that of one edit in this
run. The workspace of --edits edits is these, written many times under other names.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import neuroplastic as npt
from neuroplastic.editing.inject_options import Method
from neuroplastic.text.self_text import random_words
from neuroplastic.workspace.edit_files import list_edits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        ws = npt.Workspace.create(Path(folder) / "w", "smollm2-135m")
        ids = random_words(ws.tokenizer, 2 * options.facts + 100, pattern=r" [A-Z][a-z]{3,}")
        names = [ws.tokenizer.decode([i]).strip() for i in ids]
        statements = [
            f"The town of {a} lies in the country of {b}." for a, b in zip(names[::2], names[1::2], strict=True)
        ]
        ws.inject(statements.pop(), name="warm-up")
        for method in get_args(Method):
            alone, whole = [], []
            for i in range(5):
                began = time.perf_counter()
                edit = ws.inject(statements.pop(), method, f"{method}-{i}")
                whole.append(time.perf_counter() - began)
                alone.append(edit.report["seconds"])
                ws.undo(edit.name)
            figures[method] = {"seconds": statistics.median(alone), "with_report": statistics.median(whole)}
        began = time.perf_counter()
        made = ws.inject_all(statements[: options.facts], npt.InjectOptions("consolidate"))
        figures["together"] = {
            "facts": len(made),
            "seconds": made[0].report["seconds"] * len(made),
            "with_report": time.perf_counter() - began,
            "ratio": made[0].report["seconds"] * len(made) / figures["consolidate"]["seconds"],
            "answer_probability": statistics.mean(e.report["answer_probability_after"] for e in made),
            "perplexity_drift": made[0].report["perplexity_drift"],
        }
        many = npt.Workspace.create(Path(folder) / "many", "smollm2-135m")
        for i in range(options.edits):
            one = replace(made[i % len(made)], name=f"edit-{i}", sequence=i + 1)
            one.save(many.path / "edits" / f"edit-{i}.safetensors")
        plain = Path(folder) / "plain"
        npt.Workspace.create(plain, "smollm2-135m")
        began = time.perf_counter()
        npt.Workspace.open(plain)
        without = time.perf_counter() - began
        began = time.perf_counter()
        assert len(npt.Workspace.open(many.path).edits) == options.edits
        opened = time.perf_counter() - began
        began = time.perf_counter()
        list_edits(many.path)
        figures["open"] = {"edits": options.edits, "seconds": opened, "without_edits": without}
        figures["list"] = {"edits": options.edits, "seconds": time.perf_counter() - began}
    if options.json:
        print(json.dumps(figures))
        return
    for what, found in figures.items():
        print(f"{what:<12} " + "  ".join(f"{k} {v:.3g}" for k, v in found.items()))


if __name__ == "__main__":
    main()
