"""Training as it is launched: several processes, mixed precision, gradient accumulation; refused where it cannot be."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import neuroplastic as npt
from distilling import SHORT, SMALL_TEXT, parameters, words
from facts import facts
from neuroplastic.editing.injector import find_injector
from neuroplastic.files import read_tensors
from neuroplastic.training import train_generators as training
from neuroplastic.training.checkpoint import checkpoints
from neuroplastic.training.launch import launched
from neuroplastic.training.loop import LOG, read_log
from neuroplastic.training.settings import LoopSettings

Fresh = Callable[..., npt.Workspace]
SIX = words(steps=6, max_length=16, np_rank=4, eval_every=0, eval_tokens=24, curriculum="0.4,0.3,0.3")


@pytest.fixture
def script(tmp_path: Path) -> str:
    """The command line as a program that `accelerate launch` can start."""
    (tmp_path / "npt.py").write_text(SMALL_TEXT + "sys.exit(main(sys.argv[1:]))\n")
    return str(tmp_path / "npt.py")


def accelerate(*flags: str) -> list[str]:
    launch = [sys.executable, "-m", "accelerate.commands.launch", *flags]
    return [*launch, "--num_machines", "1", "--dynamo_backend", "no"]


def ended(command: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def curve(ws: npt.Workspace, name: str = "loss") -> list[float]:
    return [e[name] for e in read_log(ws.path / training.FOLDER)]


def assert_same_training(one: npt.Workspace, other: npt.Workspace) -> None:
    for name in ("loss", "direct", "fidelity", "regularisation", "gradient"):
        assert curve(one, name) == pytest.approx(curve(other, name), rel=1e-4, abs=1e-9)
    found = parameters(other)
    assert all(torch.allclose(t, found[n], atol=1e-4) for n, t in parameters(one).items())


def test_batches_that_are_accumulated_are_one_larger_batch(fresh: Fresh) -> None:
    one, two = fresh("one"), fresh("two")
    npt.train(one, npt.TrainSettings(**{**SHORT, "batch_size": 4}))
    npt.train(two, npt.TrainSettings(**{**SHORT, "batch_size": 2, "grad_accum": 2}))
    assert_same_training(one, two)


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(fresh: Fresh, script: str) -> None:
    """Real gloo processes, started by `accelerate launch`."""
    one, two = fresh("one"), fresh("two")
    assert ended([sys.executable, script, "train", str(one.path), *SIX, "--batch-size", "4"]).returncode == 0
    said = by_two_processes([script, "train", str(two.path), *SIX, "--batch-size", "2", "--json"])
    assert ['"before"' in s for s in said] == [True, False]
    assert_same_training(one, two)


@pytest.mark.slow
def test_an_injector_is_trained_by_two_processes_with_one_crowd(fresh: Fresh, script: str, tmp_path: Path) -> None:
    ws, data = fresh("w"), facts(tmp_path / "train.jsonl", 60)
    short = words(steps=6, warmup=1, eval_every=0, held_out=4, examples=12, width=16, batch_size=4, keys_first=1)
    crowds = words(alone_first=2, crowd_every=2, crowds=8, text_rows=2, text_length=8)
    said = by_two_processes([script, "train-injector", str(ws.path), "--data", str(data), *short, *crowds, "--json"])
    assert ['"measured"' in s for s in said] == [True, False]
    assert find_injector(ws.base.sha256, ws.path) is not None
    folder = ws.path / "training/injector"
    log = read_log(folder)
    assert [e["step"] for e in log] == list(range(6))
    assert log[3]["crowd"] == 12  # of one process: four of its own and eight earlier ones
    crowd = read_tensors(checkpoints(folder)[-1])[0]["kept.crowd.subject"]
    assert len(crowd) == 8 + 4  # as many as are kept, of what both have proposed
    assert len(set(crowd[-8:].tolist())) == 8


def by_two_processes(command: Sequence[str]) -> list[str]:
    """What each of them said, both ended well."""
    # on CPUs `accelerate launch` starts one process; what starts several of it (mpirun, a cluster) gives each its rank
    launch = accelerate("--cpu", "--num_processes", "2", "--mixed_precision", "no")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [*launch, *command],
            env={**os.environ, "OMP_NUM_THREADS": "1", **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [p.communicate()[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(said)
    return said


@pytest.mark.slow
def test_mixed_precision_is_what_accelerate_launch_was_told(fresh: Fresh, script: str) -> None:
    full, mixed = fresh("full"), fresh("mixed")
    for ws, precision in ((full, "no"), (mixed, "bf16")):
        launch = accelerate("--cpu", "--num_processes", "1", "--mixed_precision", precision)
        done = ended([*launch, script, "train", str(ws.path), *SIX, "--batch-size", "2"])
        assert done.returncode == 0, done.stderr
        begun = json.loads((ws.path / training.FOLDER / LOG).read_text().splitlines()[0])
        assert begun["settings"]["precision"] == precision
    assert all(math.isfinite(v) for v in curve(mixed) + curve(mixed, "gradient"))
    assert curve(mixed) != curve(full)
    assert curve(mixed) == pytest.approx(curve(full), rel=0.1)
    assert {t.dtype for t in parameters(mixed).values()} == {torch.float32}


def test_settings_go_before_what_accelerate_launch_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert launched(LoopSettings()).precision == "bf16"
    assert launched(LoopSettings(precision="no")).precision == "no"
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert launched(LoopSettings()).precision == "no"


@pytest.mark.parametrize(
    ("environment", "cause"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP is not supported.*launch without it"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is not supported"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "precision must be one of no, bf16, not 'fp16'"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "WORLD_SIZE is 2, but this process .* would train alone"),
    ],
)
def test_what_cannot_be_launched_is_refused_before_any_work(
    fresh: Fresh, environment: dict[str, str], cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = fresh()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(training, "read_data", None)
    with pytest.raises(npt.NPTError, match=cause):
        npt.train(ws, npt.TrainSettings(**SHORT))
    assert not (ws.path / "training").exists()


@pytest.mark.slow
def test_fsdp_is_refused_as_accelerate_launches_it(fresh: Fresh, script: str) -> None:
    ws = fresh()
    launch = accelerate("--use_fsdp", "--num_processes", "2", "--mixed_precision", "no")
    done = ended([*launch, script, "train", str(ws.path), *SIX])
    assert done.returncode != 0
    # each process says so, unless the launcher ends the second one because the first has failed
    assert 1 <= done.stderr.count("npt: FSDP is not supported") <= 2
    assert not (ws.path / "training").exists()
