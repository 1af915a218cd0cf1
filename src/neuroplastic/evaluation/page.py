"""A self-contained HTML page: headings, tables, plots. Everything that comes from data is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #e4e6ea; } }
h1 { font-size: 1.6rem; margin-bottom: .3rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { font-weight: 600; background: var(--soft); } th:first-child, td:first-child { text-align: left; }
.text { text-align: left; } small { opacity: .7; white-space: nowrap; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; } figcaption { opacity: .8; font-size: .92rem; }
.wide { overflow-x: auto; } summary { cursor: pointer; } code { font-size: .92em; }
"""


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def text(value: object) -> Html:
    """Anything as markup: escaped, unless it is markup already."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def page(title: str, blocks: Iterable[Html]) -> str:
    body = "\n".join(blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style>\n</head>\n<body>\n'
        f"<h1>{text(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def heading(title: str) -> Html:
    return Html(f"<h2>{text(title)}</h2>")


def paragraph(words: object) -> Html:
    return Html(f"<p>{text(words)}</p>")


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """Columns of numbers or markup stand on the right, those of text on the left, as their first cells are."""
    body = list(rows)
    left = [isinstance(c, str) and not isinstance(c, Html) for c in (body[0] if body else head)]
    lines = [_line("th", head, left), *(_line("td", row, left) for row in body)]
    return Html('<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>")


def _line(tag: str, cells: Sequence[object], left: Sequence[bool]) -> str:
    marks = (' class="text"' if at_left else "" for at_left in left)
    return "<tr>" + "".join(f"<{tag}{m}>{text(c)}</{tag}>" for m, c in zip(marks, cells, strict=True)) + "</tr>"


def figure(svg: str, caption: str) -> Html:
    """`svg` is markup as `plots.py` makes it."""
    return Html(f"<figure>\n{svg}\n<figcaption>{text(caption)}</figcaption>\n</figure>")


def folded(title: str, block: Html) -> Html:
    return Html(f"<details>\n<summary>{text(title)}</summary>\n{block}\n</details>")
