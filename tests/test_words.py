"""The lint step that refuses the code's old dialect."""

from pathlib import Path

import pytest

import words


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("# The norm behind the MLP.\n", 1, "behind"),
        ("x = 1\n# So many rows are read.\n", 2, "So many"),
        ('"""A space stands in\nfront of it."""\n', 1, "in front of"),
        ("# They are told apart.\n", 1, "told"),
        ("# A space stands in front\n    # of it.\n", 1, "in front # of"),
        ("\n\nself.crowds = 3\ncrowd = 3\n", 4, "crowd"),
        ("class Desk:\n", 1, "Desk"),
        ("A run goes on with the next.\n", 1, "goes on with"),
        ("for contender in contenders:\n", 1, "contender"),
        ("context = Bench()\n", 1, "Bench"),
    ],
)
def test_a_word_of_the_dialect_is_refused_with_its_line(
    text: str, line: int, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "some.py"
    file.write_text(text, encoding="utf-8")
    assert words.main([tmp_path]) == 1
    assert capsys.readouterr().out.startswith(f"{file}:{line}: {word!r} belongs to the old dialect; better: ")


@pytest.mark.parametrize(
    "text",
    [
        'share = report["told"]\n',
        "found['locality_told'], --told-otherwise, told_together\n",
        "npt train-injector W --crowds 16 48 --behind-rows 2\n",
        "npt eval edits W --suite told --data told_dev.json\n",
        "from .told import TOLD\n",
        "settings.crowds, kept[f'crowd.{n}']\n",
        "make bench; make bench-check; make study BENCH=--json\n",
        "benchmarks, handheld, outdoors, crowdsourced\n",
    ],
)
def test_names_that_must_stay_are_let_through(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    assert words.main([tmp_path]) == 0


def test_this_repository_is_free_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert words.main([words.ROOT / place for place in words.PLACES]) == 0, capsys.readouterr().out
