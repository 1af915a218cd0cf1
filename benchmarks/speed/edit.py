"""What edits cost: making one, by method, statement length and number of layers; taking it back; having a thousand.

cd benchmarks && python -m speed.edit [--edits 1,100,1000] [--json]

smollm2-135m in float32. Seconds and peak memory of an edit alone, without what is measured around it, medians of three
invented statements; `undo` is one edit taken out of those in place; `open` a workspace with this number of edits; and
the forward pass with them over that of the model without.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import neuroplastic as npt
from neuroplastic.editing.edit import Edit
from neuroplastic.evaluation.memory import peak_memory
from neuroplastic.text.self_text import random_words

from .paired import in_mode, paired, show, verdict

LONG = "In a report that nobody had asked for, and that few have read since, somebody who knew the place wrote that "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", default="1,100,1000")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    counts = [int(n) for n in options.edits.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        ws = npt.Workspace.create(Path(folder) / "w", "smollm2-135m")
        made, rows = making(ws)
        show("making an edit", ("method", "layers", "statement", "seconds", "MB"), rows, options.json)
        rows = [having(ws, made, count, Path(folder) / str(count)) for count in counts]
        columns = ("edits in place", "undo one, seconds", "open, seconds", "forward pass over the unedited", "bar")
        show("having edits", columns, rows, options.json)


def making(ws: npt.Workspace) -> tuple[list[Edit], list[tuple[object, ...]]]:
    ids = random_words(ws.tokenizer, 400, pattern=r" [A-Z][a-z]{3,}")
    names = iter([ws.tokenizer.decode([i]).strip() for i in ids])
    made: list[Edit] = []
    rows: list[tuple[object, ...]] = []
    learned = ["learned"] if ws.engine.injector is not None else []
    for method in [*learned, "consolidate", "refine", "token"]:
        for layers in (None, "4") if method == "consolidate" else (None,):
            for start in ("", LONG, 3 * LONG):
                if method == "learned" and start == 3 * LONG:
                    continue  # longer than it was trained for
                options = npt.InjectOptions(method, layers=layers)  # type: ignore[arg-type]
                seconds, peaks = [], []
                for i in range(4):
                    fact = npt.asked(f"{start}The town of {next(names)} lies in the country of", next(names))
                    with peak_memory() as peak:
                        (edit,) = ws.engine.make([fact], options, [f"{method}-{i}"])
                    seconds.append(edit.report["seconds"])
                    peaks.append(float("nan") if peak.bytes is None else peak.bytes / 1e6)
                made.append(edit)
                length = f"{len(ws.tokenizer(fact.statement)['input_ids'])} tokens"
                where = layers or f"{len(edit.layers)}"
                row = (method, where, length, f"{statistics.median(seconds[1:]):.2f}", f"{max(peaks[1:]):.0f}")
                rows.append(row)
    return [e for e in made if "consolidate" in e.name], rows


def having(ws: npt.Workspace, made: list[Edit], count: int, folder: Path) -> tuple[object, ...]:
    """One edit written many times under other names."""
    edits = [replace(made[i % len(made)], name=f"edit-{i}", sequence=i + 1) for i in range(count)]
    many = npt.Workspace.create(folder, "smollm2-135m")
    for e in edits:
        e.save(many.path / "edits" / f"{e.name}.safetensors")
    began = time.perf_counter()
    many = npt.Workspace.open(folder)
    opened = time.perf_counter() - began
    ids = torch.randint(100, 40_000, (1, 512), generator=torch.Generator().manual_seed(0))

    def run(w: npt.Workspace) -> object:
        return w.model(input_ids=ids, use_cache=False).logits

    ratio = paired(in_mode(ws.model, False, lambda: run(ws)), in_mode(many.model, False, lambda: run(many)), repeat=9)
    began = time.perf_counter()
    many.undo(edits[0].name)
    undone = time.perf_counter() - began
    return count, f"{undone:.2f}", f"{opened:.2f}", ratio, verdict("with edits", ratio.median)


if __name__ == "__main__":
    main()
