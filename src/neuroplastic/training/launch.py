"""How a training was launched: settled, or refused if it cannot be, before any work is done."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import parse_flag_from_env

from ..errors import NPTError
from .settings import LoopSettings

Settings = TypeVar("Settings", bound=LoopSettings)
SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


def launched(settings: Settings) -> Settings:
    """The settings, with the mixed precision of `accelerate launch` if they leave it open.

    Raises NPTError for a tracker that is not installed, a precision that is not supported, sharding, and processes that
    would not know of each other.
    """
    for flag, name in SHARDING.items():
        if parse_flag_from_env(flag):
            raise NPTError(
                f"{name} is not supported: it splits what is trained over devices, but that is a few small parts of a "
                "frozen model, which read them whole; launch without it, and each device gets a copy (DDP)"
            )
    if settings.track != "none" and settings.track not in map(str, get_available_trackers()):
        package = "'neuroplastic[track]'" if settings.track == "tensorboard" else settings.track
        raise NPTError(f"the tracker {settings.track} is not installed: pip install {package}")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > process().num_processes:
        raise NPTError(
            f"WORLD_SIZE is {world}, but this process finds no accelerator of its own and would train alone; on CPUs "
            "launch with accelerate launch --cpu, or with ACCELERATE_USE_CPU=1"
        )
    launched_with: Any = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return replace(settings, precision=settings.precision or launched_with)


def process() -> PartialState:
    """Which of several processes this is. A bare PartialState() would not know that it runs on CPUs, and would take
    itself for the only one."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
