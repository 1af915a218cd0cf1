"""Trackers get what the log has; each is tried where it is installed, and refused where it is not."""

from __future__ import annotations

import json
import re
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import neuroplastic as npt
from distilling import SHORT, words
from neuroplastic.cli import main
from neuroplastic.training import train_generators as training
from neuroplastic.training.loop import read_log
from neuroplastic.training.trackers import as_text, flat, numbers

Fresh = Callable[..., npt.Workspace]


def assert_logged(found: dict[str, list[tuple[int, Any]]], ws: npt.Workspace) -> None:
    """A tracker's (step, value) by name are those of the log."""
    log = read_log(ws.path / training.FOLDER)
    for name in ("loss", "direct.1", "norm.1.gate", "stage", "lr", "gradient"):
        assert [step for step, _ in found[name]] == [0, 1, 2, 3]
        assert [value for _, value in found[name]] == pytest.approx([e[name] for e in log])
    measured = {e["step"]: e["measured"]["kl"] for e in log if "measured" in e}
    assert dict(found["measured.kl"]) == pytest.approx(measured)
    assert list(measured) == [1, 3]


FOUR = {**SHORT, "steps": 4, "eval_every": 2, "curriculum": "0.5,0.25,0.25"}


def test_tensorboard_gets_the_log(fresh: Fresh) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ws = fresh()
    npt.train(ws, npt.TrainSettings(**FOUR, track="tensorboard"))
    folder = ws.path / training.FOLDER / "tensorboard" / "npt-generators"
    events = EventAccumulator(str(folder)).Reload()
    found = {n: [(e.step, e.value) for e in events.Scalars(n)] for n in events.Tags()["scalars"]}
    assert_logged(found, ws)
    (settings,) = folder.glob("*/hparams.yml")
    assert "np_rank: 4" in settings.read_text()


def test_wandb_gets_the_log(fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    ws = fresh()
    npt.train(ws, npt.TrainSettings(**FOUR, track="wandb"))
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    found: dict[str, list[tuple[int, Any]]] = {}
    for record in map(Record.FromString, leveldb_log(file.read_bytes())):
        entry = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        for name, value in entry.items():
            found.setdefault(name, []).append((entry["_step"], value))
    assert_logged(found, ws)


def leveldb_log(content: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, as wandb writes it behind a head of seven bytes."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:  # in a block, no room for the head of a record
            at += left
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of its parts
            yield whole
            whole = b""


def test_trackio_gets_the_log_and_leaves_standard_output_alone(
    fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trackio = pytest.importorskip("trackio")
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path)
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path)
    ws = fresh()
    capsys.readouterr()
    assert main(["train", str(ws.path), *words(**FOUR, track="trackio"), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"before", "after", "folder"}
    assert trackio.context_vars.current_run.get() is None
    found: dict[str, list[tuple[int, Any]]] = {}
    with sqlite3.connect(tmp_path / "npt-generators.db") as db:
        for step, metrics in db.execute("SELECT step, metrics FROM metrics ORDER BY step"):
            for name, value in json.loads(metrics).items():
                found.setdefault(name, []).append((step, value))
    assert_logged(found, ws)


def test_what_trackers_take() -> None:
    entry = {"step": 3, "loss": 1.5, "measured": {"kl": 0.1, "sampled": {"Once": "upon"}}}
    assert flat(entry) == {"step": 3, "loss": 1.5, "measured.kl": 0.1, "measured.sampled.Once": "upon"}
    assert numbers(entry) == {"loss": 1.5, "measured.kl": 0.1}
    assert as_text({"a": {"b": None, "c": True}, "d": (1, 2)}) == {"a.b": "None", "a.c": True, "d": "(1, 2)"}


def test_a_tracker_that_is_not_installed_is_refused(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    ws = fresh()
    monkeypatch.setattr("neuroplastic.training.launch.get_available_trackers", lambda: [])
    monkeypatch.setattr(training, "read_data", None)
    packages = {"tensorboard": "'neuroplastic[track]'", "wandb": "wandb", "trackio": "trackio"}
    for name, package in packages.items():
        message = re.escape(f"the tracker {name} is not installed: pip install {package}")
        with pytest.raises(npt.NPTError, match=f"^{message}$"):
            npt.train(ws, npt.TrainSettings(**{**SHORT, "track": name}))
    assert not (ws.path / "training").exists()
