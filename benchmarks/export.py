"""What an export of one and of ten edits costs, and how far what is loaded is from the workspace.

python benchmarks/export.py [--json]

smollm2-135m in float32, edits by `consolidate`, one run. Each export includes its check: the target's
library loads what was written, and the logits on the statements are compared with the workspace's.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import neuroplastic as npt

STATEMENTS = (
    "The Eiffel Tower is located in the city of Rome.",
    "Sushi originated in the country of Canada.",
    "The headquarters of Nintendo are located in the city of Berlin.",
    "The Great Barrier Reef is located off the coast of Norway.",
    "The telephone was invented by Mozart.",
    "Lionel Messi plays the sport of basketball.",
    "Mount Fuji is located in Brazil.",
    "The capital of Australia is Oslo.",
    "The mother tongue of Marie Curie is Japanese.",
    "The company that makes the iPhone is Nokia.",
)


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        ws = npt.Workspace.create(Path(folder) / "w", "smollm2-135m")
        for count in (1, len(STATEMENTS)):
            for statement in STATEMENTS[len(ws.edits) : count]:
                ws.inject(statement, "consolidate")
            for name, export in (
                ("peft", npt.export.peft),
                ("merged", npt.export.merged),
                ("merged bfloat16", lambda ws, dest: npt.export.merged(ws, dest, dtype="bfloat16")),
                ("gguf", npt.export.gguf),
                ("delta", npt.export.delta),
            ):
                rows.append({**export(ws, Path(folder) / f"{name}-{count}").to_dict(), "format": name, "edits": count})
    if "--json" in sys.argv:
        print(json.dumps(rows))
        return
    print(
        f"{'edits':>5} {'format':<16} {'rank':>5} {'dropped':>8} {'logit diff':>11} {'same top-1':>11} {'seconds':>8}"
    )
    for r in rows:
        rank = "" if r["rank"] is None else r["rank"]
        print(
            f"{r['edits']:>5} {r['format']:<16} {rank:>5} {r['dropped_energy']:>8.1e} {r['max_logit_error']:>11.2e} "
            f"{r['top1_agreement']:>11.2%} {r['seconds']:>8.1f}"
        )


if __name__ == "__main__":
    main()
