"""Progress is shown on standard error, or told to whoever listens; nothing drives the terminal."""

from __future__ import annotations

import io
import json

import pytest

from neuroplastic import console
from neuroplastic.console import Terminal, as_json, note, printable, progress, reported_to, stage, status


def test_progress_goes_to_a_listener(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[tuple[str, int, int]] = []
    with reported_to(lambda *step: heard.append(step)):
        stage("one")
        with progress("two") as step:
            step(1, 3)
    assert heard == [("one", 0, 0), ("two", 0, 0), ("two", 1, 3)]
    assert capsys.readouterr().err == ""
    stage("unheard")
    with progress("three") as step:
        step(1, 3)
    assert capsys.readouterr().err == "three\n"
    assert len(heard) == 3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[bold]a[/] :smile: [link=b]c", "[bold]a[/] :smile: [link=b]c"),
        ("two\n\tlines\r\n", "two\n\tlines\n"),
        ("\x1b[2J\x07\x08\r\x00", r"\x1b[2J\x07\x08\r\x00"),
        ("\x7f\x85\x9b31m", r"\x7f\x85\x9b31m"),
        ("\ud83d", r"\ud83d"),
        ("naïve 東京 😀", "naïve 東京 😀"),
    ],
)
def test_control_characters_are_shown_not_sent(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(text) == shown
    note(text)
    assert capsys.readouterr().err == shown + "\n"


def shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch, text: str) -> list[str]:
    """What a bar and a spinner send to a terminal while they last."""
    sent = []
    for show in (progress, status):
        file = io.StringIO()
        terminal = Terminal(file=file, force_terminal=True, color_system=None, width=200)
        monkeypatch.setattr(console, "stderr_console", lambda terminal=terminal: terminal)
        with show(text) as step:
            if step is not None:
                step(1, 3)
        sent.append(file.getvalue())
    return sent


def test_bars_and_spinners_show_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for sent in shown_on_a_terminal(monkeypatch, "[bold]a[/] [/] :smile: \x9b31m"):
        assert r"[bold]a[/] [/] :smile: \x9b31m" in sent
        assert "\x9b" not in sent


def test_json_is_one_line_to_every_reader() -> None:
    said = {"text": "a\u2028b\u2029c\x85d\x0be\x1cf\ng\x7f\ud800 東京"}
    line = as_json(said)
    assert len(line.splitlines()) == 1
    assert "東京" in line
    assert line.encode()
    assert json.loads(line) == said
