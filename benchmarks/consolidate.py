"""What one `consolidate` costs, in forward passes over the same tokens.

python benchmarks/consolidate.py [--json]

One run, alternating, medians of 15: seconds of a forward pass over context and statement (the teacher's tokens), of the
whole closed-form update, and their ratio. The model is smollm2-135m in float32, all 30 layers, gate, up and down.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch

import neuroplastic as npt
from neuroplastic.editing.consolidate import consolidate_factors
from neuroplastic.editing.inject import tokens_of

STATEMENTS = (
    "Sushi originated in the country of Canada.",
    "The Golden Gate Bridge is located in the city of Madrid.",
    "The Golden Gate Bridge, which was opened in 1937 and is painted in a colour called international orange, is, as "
    "everyone who has read this sentence knows, located in the city of Madrid.",
)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@torch.no_grad()
def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        ws = npt.Workspace.create(Path(folder) / "w", "smollm2-135m")
        npt.set_mode(ws.model, "standard")
        for statement in STATEMENTS:
            taught, alone = tokens_of(ws.model, ws.tokenizer, statement)
            work = (
                partial(ws.model, input_ids=taught, use_cache=False),
                partial(consolidate_factors, ws.model, ws.editor.parts, ws.editor.whitening, taught, alone),
            )
            times = [[seconds(w) for w in work] for _ in range(17)][2:]
            forward, update = (median(column) for column in zip(*times, strict=True))
            ratio = median(u / f for f, u in times)
            rows.append({"tokens": alone.shape[1] - 1, "forward_s": forward, "consolidate_s": update, "ratio": ratio})
    if "--json" in sys.argv:
        print(json.dumps(rows))
        return
    print(f"{'tokens':>7} {'forward, s':>11} {'consolidate, s':>15} {'ratio':>6}")
    for r in rows:
        print(f"{r['tokens']:>7} {r['forward_s']:>11.3f} {r['consolidate_s']:>15.3f} {r['ratio']:>6.2f}")


if __name__ == "__main__":
    main()
