"""Refuses the code's old dialect in text, where the field's terms and plain English belong; run by `make lint`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("src", "docs", "examples", "benchmarks", "README.md")
ENDINGS = (".py", ".js", ".html", ".css", ".md")
BETTER = {
    "behind": "after",
    "in front of": "before",
    "so many|so-manieth": "this number of, every Nth",
    "(go|goes|going|went|gone) on with": "continue",
    "crowds?|crowded|taught together": "joint batch",
    "told|said": "given, stated, predicted: what is meant",
    "desks?": "job queue",
    "doors?": "access",
    "contenders?": "method",
    "examinations?": "evaluator",
    r"(?<!make\x20)bench(?![-=])": "context, benchmark",
}
"""What is refused, as whole words that may be parted by the end of a line, and what to write instead."""
ALLOWED = re.compile(
    r"""(['"`])(told|crowds?)\1|\bcrowd\.[KVs{]|(--|\.)crowds\b|\bcrowds[:=]|--(behind|told)-\w+|--suite told\b"""
    r"""|\.told import\b|\bTOLD\b"""
)
"""Names in files and on the command line that must stay: `told` and `crowd` in the log of a training, its setting
`crowds`, flags, and a suite."""


def found_in(path: Path) -> Iterator[str]:
    """A message for each refused word of a file."""
    text = ALLOWED.sub(lambda m: "-" * len(m[0]), path.read_text(encoding="utf-8"))
    for words, better in BETTER.items():
        parted = words.replace(" ", r"[\s#]+")
        for m in re.finditer(rf"\b({parted})\b", text, re.IGNORECASE):
            line = text.count("\n", 0, m.start()) + 1
            yield f"{path}:{line}: {' '.join(m[0].split())!r} belongs to the old dialect; better: {better}"


def main(paths: list[Path]) -> int:
    """Prints every message; 1 if there is one."""
    files = sorted(f for p in paths for f in ([p] if p.is_file() else p.rglob("*")) if f.suffix in ENDINGS)
    messages = [message for file in files for message in found_in(file)]
    print(*messages, sep="\n", end="\n" if messages else "")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main([Path(a) for a in sys.argv[1:]] or [ROOT / place for place in PLACES]))
