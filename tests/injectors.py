"""Injectors for tiny models and workspaces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

import neuroplastic as npt
from families import tokens
from neuroplastic.editing.injector import INJECTOR_FILE, Injector, InjectorConfig
from neuroplastic.editing.methods.learned import Learned
from neuroplastic.editing.thresholds import Gating


def injector_for(model: PreTrainedModel, seed: int = 0) -> Injector:
    """One that was never trained: its values are those of a random network."""
    torch.manual_seed(seed)
    return Injector(
        InjectorConfig.fitting(model, tokens(), width=16, heads=2, straight=8, hidden=8, max_length=40)
    ).eval()


LOOSE = Gating(largest_spread=1.0, highest=10.0)
"""A tiny random model reads names and ordinary text much alike: units open nowhere rather than being refused."""


def with_injector(workspace: npt.Workspace) -> npt.Workspace:
    injector_for(workspace.model).save(workspace.path / INJECTOR_FILE, workspace.base.sha256, {})
    opened = npt.Workspace.open(workspace.path)
    set_learned(opened, gating=LOOSE)
    return opened


def learned_of(workspace: npt.Workspace) -> Learned:
    """The settings of the workspace's method `learned`."""
    found = workspace.engine.methods["learned"]
    assert isinstance(found, Learned)
    return found


def set_learned(workspace: npt.Workspace, **settings: Any) -> None:
    """Gives the workspace's method `learned` other settings; they stay as long as the workspace is open."""
    workspace.engine.methods["learned"] = replace(learned_of(workspace), **settings)
