"""The shell on a tiny workspace, driven by lines as a person types them."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

import neuroplastic as npt
from neuroplastic.cli.common import LOADED
from neuroplastic.cli.shell import Names, Shell, _text_and_options


@pytest.fixture
def shell(workspace: npt.Workspace) -> Shell:
    return Shell(workspace)


def run(monkeypatch: pytest.MonkeyPatch, shell: Shell, *lines: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    return shell.run()


def test_a_session(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ws = shell.workspace
    status = run(
        monkeypatch,
        shell,
        "# a comment",
        "",
        "track Madrid Paris",
        "inject The Golden Gate Bridge is located in Madrid. --method token --name bridge",
        "edits",
        "compare The Golden Gate Bridge is located in --max-new-tokens 3",
        "layers",
        "undo bridge",
        "extract one The Golden Gate Bridge",
        "scale two one 0.5",
        "add three one two",
        "sub three three one",
        f"save three {tmp_path / 'three.safetensors'}",
        "transfer three The Eiffel Tower is",
        "mode standard",
        "ask The Eiffel Tower's --max-new-tokens 3",
        "help",
        "quit",
        "no command is read behind quit",
    )
    out = capsys.readouterr().out
    assert status == 0
    assert ws.edits == ()
    assert ws.undone == ("bridge",)
    for shown in (
        "bridge",
        "with them",
        "'Madrid'",
        "' Paris'",
        "mode: standard",
        "extract NAME CONTEXT",
        "plastic: 0, 1",
    ):
        assert shown in out, shown
    one, two, three = (shell.modulations[n] for n in ("one", "two", "three"))
    assert two.norm() == pytest.approx(one.norm() / 2, rel=1e-5)
    assert (three - two).norm() == pytest.approx(0, abs=1e-3 * one.norm())
    assert npt.Modulation.load(tmp_path / "three.safetensors").norm() == pytest.approx(three.norm(), rel=1e-6)
    assert not LOADED


@pytest.mark.parametrize(
    ("line", "cause", "status"),
    [
        ("dance", "there is no command 'dance'", 2),
        ("undo nobody", "there is no active edit 'nobody'", 2),
        ("inject", "give one of STATEMENT", 2),
        ("mode sideways", "mode must be dynamic or standard", 2),
        ("scale a", "usage: scale NAME A FACTOR", 2),
        ("extract a", "usage: extract NAME CONTEXT", 2),
        ("transfer a the fox", "there is no modulation 'a'", 2),
        ("inject the fox is lazy --max-drift -0.99", "perplexity on ordinary text would rise", 1),
        ("ask the fox --hop", "", 2),
        ('show "a', "No closing quotation", 2),
        ('ask "The fox', "the quotation that begins at '\"The fox' has no end", 2),
        ('inject The fox is "lazy --name x', "the quotation that begins at '\"lazy --name x' has no end", 2),
        ("inject The fox is lazy. --subject 'fox", "No closing quotation", 2),
    ],
)
def test_piped_input_stops_at_an_error(
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    cause: str,
    status: int,
) -> None:
    assert run(monkeypatch, shell, line, "extract after The fox") == status
    assert cause in capsys.readouterr().err
    assert not shell.modulations
    assert shell.workspace.edits == ()


def test_completion(shell: Shell) -> None:
    def offered(text: str) -> list[str]:
        return [c.text for c in Names(shell).get_completions(Document(text), CompleteEvent())]

    shell.workspace.inject("the fox is lazy", method="token", name="lazy-fox")
    assert offered("und") == ["undo"]
    assert offered("undo la") == ["lazy-fox"]
    assert offered("redo ") == []
    assert offered("mode s") == ["standard"]
    shell.command("extract told The fox")
    assert offered("add x t") == ["told"]


@pytest.mark.parametrize(
    ("typed", "text", "options"),
    [
        ("The Tower's height --mode standard", "The Tower's height", " --mode standard"),
        ('"The sign says --stop here" --mode standard', "The sign says --stop here", " --mode standard"),
        ('The sign says "go --stop now" here. --name x', 'The sign says "go --stop now" here.', " --name x"),
        ("He said 'go --stop' and --name x", "He said 'go --stop' and", " --name x"),
        ("'The Tower's sign --stop' --name x", "The Tower's sign --stop", " --name x"),
        ("The sign says “go --stop now” --name x", "The sign says “go --stop now”", " --name x"),
        ('"--stop is a sign"', "--stop is a sign", ""),
        ('"a" or "b"', '"a" or "b"', ""),
        (r'"He said \"go --stop\"" --name x', 'He said "go --stop"', " --name x"),
        ('A 5" disk --name x', 'A 5" disk', " --name x"),
        ("'Twas the night --name x", "'Twas the night", " --name x"),
        ("The tower -- a landmark -- is in --name x", "The tower -- a landmark -- is in", " --name x"),
        ("--json", "", " --json"),
    ],
)
def test_what_stands_between_quotes_is_text(typed: str, text: str, options: str) -> None:
    assert _text_and_options(typed) == (text, options)


def test_text_reaches_the_command_as_it_was_typed(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (
        ('ask\t"--stop is [bold]a[/] sign :smile:" --max-new-tokens 2', "--stop is [bold]a[/] sign :smile:"),
        ('ask The sign says "go --stop now" --max-new-tokens 2', 'The sign says "go --stop now"'),
        ("ask -5 degrees \x1b[31m --max-new-tokens 2", "-5 degrees \\x1b[31m"),
    )
    for line, prompt in asked:
        assert run(monkeypatch, shell, line) == 0
        assert capsys.readouterr().out.startswith(prompt)
    assert run(monkeypatch, shell, "track --stop [red]x[/red]", "compare The sign says [/] --max-new-tokens 2") == 0
    out = capsys.readouterr().out
    for shown in ("tracked: --stop, [red]x[/red]", "'--stop'", "'[red]x[/red]'", "The sign says [/]"):
        assert shown in out
    assert run(monkeypatch, shell, 'extract say The fox says "hi"') == 0
    assert "say" in shell.modulations
