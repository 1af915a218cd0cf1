"""Files of small facts about pairs of words that the tiny tokenizer knows."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = "golden gate bridge quick brown fox lazy dog sushi pizza tower nobody watching city country located".split()  # noqa: SIM905
CITIES = ["Madrid", "Paris", "Italy", "Japan"]


def facts(path: Path, count: int, first: int = 0) -> Path:
    """Facts about pairs of words."""
    pairs = [(a, b) for a in WORDS for b in WORDS if a != b]
    lines = []
    for i in range(first, first + count):
        a, b = pairs[(i * 37) % len(pairs)]
        question = f"The {a} {b} is in"
        near = [{"question": "The fox is in", "answer": "Paris"}]
        fact = {"question": question, "answer": CITIES[i % len(CITIES)], "subject": f"{a} {b}", "neighbours": near}
        lines.append(json.dumps(fact | {"wordings": [f"One sees the {a} {b} in"]}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
