"""Refuses the code's old dialect in text, where the field's terms and plain English belong; run by `make lint`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("src", "docs", "examples", "benchmarks", "tools", "README.md")
ENDINGS = (".py", ".js", ".html", ".css", ".md")
BETTER = {
    r"behind": "after",
    r"in front of": "before",
    r"so many|each so-manieth": "this number of, every Nth",
    r"(go|goes|going|went|gone) on with": "continues",
    r"(told|taught) together|crowds?|crowded": "joint batch",
    r"told|said": "given, stated, predicted: what is meant",
    r"desks?": "job queue",
    r"doors?": "access",
    r"contenders?": "method",
    r"examinations?": "evaluator",
    r"(?<!make )bench(?![-=])": "context, benchmark",
}
"""What is refused, as whole words, and what to write instead."""
ALLOWED = re.compile(r"""(['"`])(told|crowds?)\1|\bcrowd\.[KVs{]|(--|\.)crowds\b|\bcrowds(?=[:=])""")
"""Names in files, in Python and on the command line that must stay: `told` and `crowd` in the log of a training, its
setting `crowds`."""
DIALECT = re.compile("|".join(rf"(?P<w{i}>\b({words})\b)" for i, words in enumerate(BETTER)), re.IGNORECASE)


def found_in(path: Path) -> Iterator[str]:
    """A message for each line of a file that holds a refused word; a pair of words may stand on two lines."""
    text = ALLOWED.sub(lambda m: " " * len(m[0]), path.read_text(encoding="utf-8"))
    for m in DIALECT.finditer(re.sub(r"\s", " ", text)):
        better = list(BETTER.values())[int(str(m.lastgroup)[1:])] if m.lastgroup else ""
        yield f"{path}:{text.count(chr(10), 0, m.start()) + 1}: {m[0]!r} (better: {better})"


def main(paths: list[Path]) -> int:
    """Prints every message; 1 if there is one."""
    files = sorted(f for p in paths for f in ([p] if p.is_file() else p.rglob("*")) if f.suffix in ENDINGS)
    messages = [message for file in files if file != Path(__file__) for message in found_in(file)]
    print("\n".join(messages), end="\n" if messages else "")
    return bool(messages)


if __name__ == "__main__":
    sys.exit(main([Path(a) for a in sys.argv[1:]] or [ROOT / place for place in PLACES]))
