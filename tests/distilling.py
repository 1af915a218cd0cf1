"""What tests of `npt train` share: short settings, a training that dies, a command that writes little text."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

import neuroplastic as npt
from neuroplastic.files import read_tensors
from neuroplastic.training import train_generators as training

SHORT: dict[str, Any] = {
    "steps": 10,
    "batch_size": 2,
    "max_length": 16,
    "np_rank": 4,
    "warmup": 2,
    "eval_every": 0,
    "save_every": 3,
    "eval_tokens": 24,
    "curriculum": "0.4,0.3,0.3",
}

SMALL_TEXT = """
import sys
import neuroplastic.text.self_text as text
text.SELF_TEXTS, text.SELF_LENGTH, text.HELD_OUT = 12, 24, 4
text.CALIBRATION_TEXTS, text.CALIBRATION_HELD_OUT = 20, 4
from neuroplastic.cli import main
"""
"""The beginning of a program that behaves as tests do."""


def words(**settings: Any) -> list[str]:
    """Settings as a command line."""
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def parameters(ws: npt.Workspace) -> dict[str, Tensor]:
    return read_tensors(ws.path / "npt.safetensors")[0]


class Stop(Exception):
    pass


def cut_off(ws: npt.Workspace, settings: npt.TrainSettings, step: int, monkeypatch: Any, resume: bool = False) -> None:
    """Training that dies behind `step`."""

    def die(self: Any, done: int) -> None:
        if done == step:
            raise Stop

    with monkeypatch.context() as m:
        m.setattr(training.Distilling, "after", die)
        with pytest.raises(Stop):
            npt.train(ws, settings, resume)
