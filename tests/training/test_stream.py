"""Data sets that are streamed with `datasets`: real ones, in folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import neuroplastic as npt
from distilling import SHORT, cut_off, parameters
from neuroplastic.training import train_generators as training
from neuroplastic.training.loop import read_log
from neuroplastic.training.packing import from_dataset

Fresh = Callable[..., npt.Workspace]
TEXTS = [f"Fox {i} jumps over {'the lazy dog and ' * (i % 5)}the fence." for i in range(40)]


def parquet(folder: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": TEXTS, "number": list(range(40))}), folder / "part-0.parquet")


def jsonl(folder: Path) -> None:
    for part in (0, 1):
        lines = [json.dumps({"text": t}) for t in TEXTS[20 * part : 20 * part + 20]]
        (folder / f"part-{part}.jsonl").write_text("\n".join(lines))


def text(folder: Path) -> None:
    (folder / "all.txt").write_text("\n".join(TEXTS))


@pytest.fixture(params=[parquet, jsonl, text])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A data set of 40 texts."""
    made = tmp_path / "data"
    made.mkdir()
    request.param(made)
    return made


def test_a_folder_is_read_from_any_place_in_it(folder: Path) -> None:
    behind = from_dataset(str(folder))
    assert list(behind(0)) == TEXTS
    assert list(behind(37)) == TEXTS[37:]
    assert list(behind(40)) == []


def test_a_streamed_training_that_was_cut_off_ends_in_the_same_bits(
    fresh: Fresh, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = npt.TrainSettings(**SHORT, data=str(folder))
    whole, pieces = fresh("whole"), fresh("pieces")
    npt.train(whole, settings)
    for step, resume in ((4, False), (8, True)):
        cut_off(pieces, settings, step, monkeypatch, resume)
        pieces = npt.Workspace.open(pieces.path)
    opened: list[int] = []

    def counting(name: str) -> Any:
        behind = from_dataset(name)

        def from_there(count: int) -> Iterator[str]:
            opened.append(count)
            return behind(count)

        return from_there

    with monkeypatch.context() as m:
        m.setattr(training, "from_dataset", counting)
        npt.train(pieces, settings, resume=True)
    assert max(opened) > 0  # it went on in the middle of the data
    expected, found = parameters(whole), parameters(pieces)
    assert all(torch.equal(t, found[n]) for n, t in expected.items())
    curves = [[e["loss"] for e in read_log(ws.path / training.FOLDER)] for ws in (whole, pieces)]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 10
    file = next(folder.iterdir())
    shutil.copy(file, file.with_stem("more"))
    with pytest.raises(npt.NPTError, match="another data_hash"):
        npt.train(whole, settings, resume=True)


@pytest.mark.parametrize(
    ("files", "cause"),
    [
        ({}, "neither a file nor a data set that can be read"),
        ({"test.jsonl": '{"text": "a"}'}, "neither a file nor a data set that can be read"),
        ({"a.jsonl": '{"words": "a", "number": 1}'}, "no column text with text in it; it has words, number"),
        ({"a.jsonl": '{"text": 1}'}, "no column text with text in it"),
        ({"a.jsonl": '{"text": null}\n{"text": ""}'}, "holds no text"),
        ({"a.jsonl": '{"text": "a"'}, "cannot be read|can be read"),
    ],
)
def test_data_sets_that_cannot_be_read_are_refused_before_any_work(
    fresh: Fresh, tmp_path: Path, files: dict[str, str], cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    for name, content in files.items():
        (tmp_path / "data" / name).write_text(content)
    ws = fresh()
    monkeypatch.setattr(training, "fit_generators", None)
    with pytest.raises(npt.NPTError, match=cause) as refused:
        npt.train(ws, npt.TrainSettings(**{**SHORT, "data": str(tmp_path / "data")}))
    assert "\n" not in str(refused.value)
    assert not (ws.path / "training").exists()
