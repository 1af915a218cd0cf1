"""Injectors for tiny models and workspaces."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

import neuroplastic as npt
from families import tokens
from neuroplastic.editing.injector import Injector, InjectorConfig
from neuroplastic.editing.methods.learned import INJECTOR_FILE


def injector_for(model: PreTrainedModel, seed: int = 0) -> Injector:
    """One that was never trained: its values are those of a random network."""
    torch.manual_seed(seed)
    return Injector(
        InjectorConfig.fitting(model, tokens(), width=16, heads=2, straight=8, hidden=8, max_length=40)
    ).eval()


def with_injector(workspace: npt.Workspace) -> npt.Workspace:
    injector_for(workspace.model).save(workspace.path / INJECTOR_FILE, workspace.base.sha256, {})
    return npt.Workspace.open(workspace.path)
