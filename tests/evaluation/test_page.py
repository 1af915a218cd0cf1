"""Markup and plots: what comes from data never becomes markup."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib", reason="the extra `report` is not installed")

from neuroplastic.evaluation import plots
from neuroplastic.evaluation.page import Html, folded, heading, page, paragraph, table, text

HOSTILE = "<script>alert(1)</script> & $x^2$ \u0416"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x^2$ \u0416"


def test_everything_is_escaped_once() -> None:
    assert text(HOSTILE) == ESCAPED
    assert text(text(HOSTILE)) == ESCAPED
    made = page(HOSTILE, [heading(HOSTILE), paragraph(HOSTILE), folded(HOSTILE, table([HOSTILE], [[HOSTILE]]))])
    assert "<script" not in made
    assert made.count(ESCAPED) == 7  # the title twice


def test_a_column_stands_where_its_first_cell_does() -> None:
    made = table(["name", "value"], [["a", Html("1")], ["b", Html("2")]])
    assert '<th class="text">name</th><th>value</th>' in made
    assert '<td class="text">b</td><td>2</td>' in made


def test_plots_follow_the_page_and_escape_words() -> None:
    interval = (0.5, 0.4, 0.6)
    drawn = [
        plots.quality_against_seconds({HOSTILE: interval, "b": interval}, {"b": (1.0, 0.5, 2.0)}, "S", 0.9),
        plots.heat_map([[1.0, 0.0], [0.1, 2.0]], [3, 4], [HOSTILE, "b"], "|v_a| |v_b|"),
        plots.heat_map([[0.0, 0.0]], [3], ["a", "b"], "nothing"),
        plots.lines({"KL": [0.0, 1.0]}, [HOSTILE, "2-3"], "position", "nats"),
        plots.retention(
            [
                {"method": m, "edits": n, "figures": {"S": interval}, "perplexity": 0.1}
                for m in ("a", HOSTILE)
                for n in (1, 10, 30)
            ],
            ["S"],
        ),
    ]
    for svg in drawn:
        assert svg.startswith("<svg")
        assert "<script" not in svg
        assert plots.INK not in svg
        assert "currentColor" in svg
    assert sum("alert(1)" in svg for svg in drawn) == 4
    assert all(f">{n}</text>" in drawn[-1] for n in (1, 10, 30))
    assert drawn[0] == plots.quality_against_seconds(
        {HOSTILE: interval, "b": interval}, {"b": (1.0, 0.5, 2.0)}, "S", 0.9
    )
