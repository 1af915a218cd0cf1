"""How long, how fast and how carefully anything is trained. Imports no torch, so that the command line can answer."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from ..errors import NPTError
from ..files import read_text

Track = Literal["none", "trackio", "wandb", "tensorboard"]
Precision = Literal["no", "bf16"]
T = TypeVar("T")


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the loop that every training shares."""

    steps: int = 1000
    """Optimiser steps."""

    lr: float = 1e-3
    """Highest learning rate; it falls linearly to a twentieth."""

    warmup: int = 50
    """Steps in which the learning rate rises to --lr."""

    weight_decay: float = 0.01
    """Weight decay of AdamW."""

    clip: float = 1.0
    """Gradients longer than this are scaled down to it."""

    grad_accum: int = 1
    """Batches per optimiser step."""

    precision: Precision | None = None
    """Mixed precision: what is multiplied in bf16, while parameters stay in float32 (default: that of `accelerate
    launch`, else no)."""

    seed: int = 0
    """Seed of everything that is drawn."""

    save_every: int = 100
    """Steps between checkpoints."""

    eval_every: int = 100
    """Steps between measurements on held-out data; 0 for none but the last."""

    track: Track = "none"
    """Tracker that gets the log too; it must be installed."""

    def __post_init__(self) -> None:
        for field in ("steps", "grad_accum", "save_every"):
            if getattr(self, field) < 1:
                raise NPTError(f"{field} must be at least 1, not {getattr(self, field)}")
        for field in ("warmup", "eval_every", "weight_decay"):
            if getattr(self, field) < 0:
                raise NPTError(f"{field} must not be negative, not {getattr(self, field)}")
        for field in ("lr", "clip"):
            if not (math.isfinite(getattr(self, field)) and getattr(self, field) > 0):
                raise NPTError(f"{field} must be a number above 0, not {getattr(self, field)}")
        for field, choices in (("precision", get_args(Precision)), ("track", get_args(Track))):
            if (given := getattr(self, field)) not in choices and not (field == "precision" and given is None):
                raise NPTError(f"{field} must be one of {', '.join(choices)}, not {given!r}")

    def rate(self, step: int) -> float:
        """The learning rate of a step (from 0): linear warm-up, then a linear fall to a twentieth."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.lr * rise * max(0.05, 1 - step / self.steps)


INJECTOR_LOOP = LoopSettings(steps=1200, lr=7e-4, warmup=20, save_every=25, eval_every=150)
"""What an injector is trained with by default."""


@dataclass(frozen=True)
class InjectionSettings:
    """What an injector is trained on, beside the loop's settings."""

    batch_size: int = 16
    """Facts per batch."""

    crowds: tuple[int, ...] = (16, 48, 128, 384)
    """Numbers of earlier edits that a batch is solved jointly with, one drawn at a time; smaller ones first."""

    crowd_after: int = 50
    """Steps between the first joint batches of one size and of the next; large ones from the start throw training
    back."""

    crowd_every: int = 2
    """Every Nth step is made on a joint batch."""

    keys_first: int = 100
    """Steps that teach nothing but where the subject ends; they are cheap."""

    alone_first: int = 350
    """Steps before the first joint batch."""

    beta_near: float = 3.0
    """Weight of the KL divergence on neighbours and after answers."""

    beta_text: float = 2.0
    """Weight of the KL divergence on ordinary text."""

    beta_drift: float = 3.0
    """Weight of what a hundred edits would cost ordinary text, as predicted, in nats."""

    beta_key: float = 1.0
    """Weight of finding the subject's last token."""

    near_rows: int = 14
    """Largest number of neighbours read per step, of different facts."""

    behind_rows: int = 0
    """Largest number of rows per step on what follows an answer, so that the model does not repeat it; values are then
    less certain of the answer, too."""

    text_rows: int = 4
    """Ordinary texts read per step."""

    text_length: int = 32
    """Tokens of each."""

    enough: float = 0.8
    """Probability per token at which an answer pulls no further."""

    prefixes: float = 0.3
    """Share of the questions that follow three to eight tokens of unrelated text."""

    def __post_init__(self) -> None:
        for field in ("batch_size", "crowd_every", "crowd_after", "near_rows", "text_rows"):
            if getattr(self, field) < 1:
                raise NPTError(f"{field} must be at least 1, not {getattr(self, field)}")
        for field in (
            "beta_near",
            "beta_text",
            "beta_drift",
            "beta_key",
            "behind_rows",
            "prefixes",
            "keys_first",
            "alone_first",
        ):
            if not getattr(self, field) >= 0:
                raise NPTError(f"{field} must not be negative, not {getattr(self, field)}")
        if not 0 < self.enough <= 1:
            raise NPTError(f"enough must be a probability above 0, not {self.enough}")
        if self.text_length < 4 or not self.crowds or min(self.crowds) < 1:
            raise NPTError("texts need at least 4 tokens, and `crowds` at least one size above 0")
        if list(self.crowds) != sorted(self.crowds):
            raise NPTError(f"`crowds` must be given from the smallest to the largest, not {self.crowds}")

    def crowds_at(self, step: int) -> tuple[int, ...]:
        """Numbers of earlier edits that a joint batch of this step may have."""
        return self.crowds[: 1 + (step - self.alone_first) // self.crowd_after]


@dataclass(frozen=True)
class Variety:
    """How lessons are drawn; shares from 0 to 1."""

    other_answers: float = 0.4
    """Lessons whose answer is another one than the record's."""

    told_otherwise: float = 0.4
    """Lessons stated in another wording than the first, if the record has questions."""

    chats: float = 0.04
    """Questions put through the model's chat template."""

    sentences: float = 0.08
    """Statements that follow an unrelated sentence."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) <= 1:
                raise NPTError(f"{field.name} must be a share from 0 to 1, not {getattr(self, field.name)}")


def from_yaml(kind: type[T], path: Path) -> T:
    """A dataclass of settings from a YAML file. Raises NPTError for a key that it does not have."""
    import yaml

    try:
        given = yaml.safe_load(read_text(path))
    except yaml.YAMLError as e:
        raise NPTError(f"{path} is not YAML: {' '.join(str(e).split())}") from None
    if not isinstance(given, dict):
        raise NPTError(f"{path} is not a mapping of settings")
    return from_mapping(kind, given, str(path))


def from_mapping(kind: type[T], given: dict[str, Any], where: str) -> T:
    """A dataclass from a mapping with - or _ in its keys. Raises NPTError, naming `where`, for an unknown key or a
    value that cannot be."""
    import difflib

    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    chosen = {}
    for key, value in given.items():
        name = str(key).replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
            raise NPTError(f"{where}: there is no setting {key!r}{hint}")
        chosen[name] = _converted(value, known[name].type.split(" | "), f"{where}: {key}")
    try:
        return kind(**chosen)
    except TypeError as e:
        raise NPTError(f"{where}: {e}") from None


def _converted(value: Any, kinds: list[str], what: str) -> Any:
    """A value from YAML as one of the kinds that its setting may have, if there is no doubt how. Raises NPTError."""
    if value is None and "None" in kinds:
        return None
    if "str" in kinds:  # 14 and [14, 15] are layers, too
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)
    if "int" in kinds and (isinstance(value, bool) or not isinstance(value, int)):
        raise NPTError(f"{what} must be a whole number, not {value!r}")
    if "float" in kinds:
        try:  # YAML reads 1e-3 as text
            return float("" if isinstance(value, bool) else value)
        except (TypeError, ValueError):
            raise NPTError(f"{what} must be a number, not {value!r}") from None
    if value is False:  # so YAML reads `precision: no`
        return "no"
    return tuple(value) if isinstance(value, list) else value
