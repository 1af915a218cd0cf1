"""Two processes at once, a killed one, and any order of inject, undo, redo and reopen."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import neuroplastic as npt
from neuroplastic.surgery import base_state

FACT = "The Golden Gate Bridge is located in the city of Madrid."
OTHER = "Sushi originated in the country of Italy."

INJECT = """
import sys
import neuroplastic as npt
from neuroplastic.text import self_text as text
text.SELF_TEXTS, text.SELF_LENGTH, text.HELD_OUT = 12, 24, 4
ws = npt.Workspace.open(sys.argv[1])
print("open", flush=True)
for i in range(int(sys.argv[3])):
    ws.inject(f"The fox number {i} of {sys.argv[2]} is lazy.", method="token", name=f"{sys.argv[2]}-{i}")
"""


def injecting(ws: npt.Workspace, tag: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", INJECT, str(ws.path), tag, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_inject_at_once(workspace: npt.Workspace) -> None:
    both = [injecting(workspace, tag, 6) for tag in ("a", "b")]
    for process in both:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    opened = npt.Workspace.open(workspace.path)
    assert {e.name for e in opened.edits} == {f"{tag}-{i}" for tag in "ab" for i in range(6)}
    assert sorted(e.sequence for e in opened.edits) == list(range(1, 13))


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.05, 0.3])
def test_a_killed_process_leaves_whole_edits_only(workspace: npt.Workspace, delay: float) -> None:
    process = injecting(workspace, "k", 10_000)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    time.sleep(delay)
    process.kill()
    process.communicate()
    opened = npt.Workspace.open(workspace.path)
    assert opened.refused == {}
    assert [e.name for e in opened.edits] == [f"k-{i}" for i in range(len(opened.edits))]
    opened.inject(FACT, name="after")
    for edit in opened.edits:
        opened.undo(edit.name)
    assert opened.weights_hash() == opened.base.sha256


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(st.tuples(st.sampled_from(["inject", "undo", "redo", "open"]), st.integers(0, 9)), max_size=8))
def test_any_sequence_ends_bit_identical_to_a_fresh_application(
    tmp_path: Path, cache: Path, tiny_base: Path, actions: list[tuple[str, int]]
) -> None:
    shutil.rmtree(tmp_path / "w", ignore_errors=True)
    ws = npt.Workspace.create(tmp_path / "w", tiny_base)
    statements = [FACT, OTHER, "The quick brown fox is lazy."]
    for action, n in actions:
        active = [e.name for e in ws.edits]
        match action:
            case "inject":
                ws.inject(statements[n // 3 % 3], method=("token", "consolidate", "refine")[n % 3])
            case "undo" if active:
                ws.undo(active[n % len(active)])
            case "redo" if ws.undone:
                ws.redo(ws.undone[n % len(ws.undone)])
            case "open":
                ws = npt.Workspace.open(tmp_path / "w")
    fresh = npt.Workspace.open(tmp_path / "w")
    before, after = base_state(ws.model), base_state(fresh.model)
    assert all(torch.equal(t, after[n]) for n, t in before.items())
    for edit in ws.edits:
        ws.undo(edit.name)
    assert ws.weights_hash() == ws.base.sha256
