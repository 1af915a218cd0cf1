"""Progress is shown on standard error, or told to whoever listens."""

from __future__ import annotations

import pytest

from neuroplastic.console import progress, reported_to, stage


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
