"""`npt studio` as a command: how it starts, what it prints, how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import neuroplastic as npt

FACT = "The Golden Gate Bridge is located in the city of Madrid."


def command(*arguments: object, code: str = "pass") -> list[str]:
    run = f"import sys; {code}; from neuroplastic.cli import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", run, "studio", *map(str, arguments)]


@pytest.mark.parametrize("midway", [False, True])
def test_ctrl_c_leaves_the_workspace_intact(workspace: npt.Workspace, midway: bool) -> None:
    edit = workspace.inject(FACT, method="token", name="bridge")
    with subprocess.Popen(
        command(workspace.path, "--port", 0), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        at = process.stdout.readline().split()[-1]
        with httpx.Client(base_url=at, timeout=60) as client, client.stream("GET", "/api/board") as board:
            assert next(board.iter_lines())  # an open page
            if midway:
                with client.stream("POST", "/api/teach", json={"statement": "The fox is in Japan."}) as teaching:
                    assert next(teaching.iter_lines())
                    process.send_signal(signal.SIGINT)
                    process.wait(60)
            else:
                client.post("/api/edits/bridge/undo").raise_for_status()
                process.send_signal(signal.SIGINT)
                process.wait(60)
        _, err = process.communicate()
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "the studio is closed" in err
    again = npt.Workspace.open(workspace.path)
    assert again.refused == {}
    assert again.verify().ok
    assert not list(workspace.path.rglob("*.tmp"))
    if midway:
        assert edit.name in {e.name for e in again.edits}
    else:
        assert again.undone == ("bridge",)
        assert again.weights_hash() == again.base.sha256


def test_without_the_extra_it_says_what_to_install(workspace: npt.Workspace) -> None:
    hidden = "sys.modules['starlette'] = None"
    done = subprocess.run(command(workspace.path, code=hidden), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "npt: the studio needs starlette: pip install 'neuroplastic[studio]'\n"


@pytest.mark.slow
def test_the_command_prints_its_token(workspace: npt.Workspace) -> None:
    with subprocess.Popen(
        command(workspace.path, "--port", 0, "--host", "0.0.0.0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        at = process.stdout.readline().split()[-1]
        port, _, token = at.partition("0.0.0.0:")[2].partition("/?token=")
        address = f"http://127.0.0.1:{port}"
        assert httpx.get(address + "/api/state").status_code == 401
        assert httpx.get(address + "/api/state", headers={"Authorization": f"Bearer {token}"}).status_code == 200
        process.terminate()
        assert process.wait(60) == 0


def test_a_folder_that_is_no_workspace(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path), capture_output=True, text=True, check=False, env={**os.environ, "NPT_CACHE": str(tmp_path)}
    )
    assert done.returncode == 2
    assert "is not a workspace" in done.stderr
