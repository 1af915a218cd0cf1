"""How generators are distilled. Imports no torch, so that the command line can answer at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import NPTError
from .settings import LoopSettings

Regulariser = Literal["frobenius", "vectors"]
Init = Literal["calibrated", "random", "workspace"]
Stage = Literal["teacher", "mixed", "student"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class TrainSettings(LoopSettings):
    """How the generators of a workspace are distilled from its model."""

    layers: str | None = None
    """Which layers become plastic: all, upper_half, top2, 14,15, 8-15 or -1 (default: the workspace's)."""

    np_rank: int | None = None
    """Width of the bottleneck (default: the workspace's)."""

    num_ranks: int | None = None
    """Rank-1 components per token and site (default: the workspace's)."""

    init: Init = "calibrated"
    """Where training starts: calibrated (the closed form), random, or workspace (the generators it holds)."""

    direct_weight: float = 2.0
    """Weight of the error of each modulated MLP's output, relative to its power."""

    fidelity_weight: float = 5.0
    """Weight of the KL divergence of the logits; it has no part in the teacher stage, which runs no student."""

    reg_weight: float = 1e-4
    """Weight of the regularisation."""

    reg: Regulariser = "frobenius"
    """What is kept small: |dW|_F^2 of each token's weight change, or the squares of its modulation vectors."""

    gate_weight: float = 1.0
    """Weight of the mean gate above --gate-open, if generators have gates."""

    gate_open: float = 0.5
    """Share of modulation that gates may have at no cost, on average over tokens."""

    curriculum: str = "0.8,0.1,0.1"
    """Shares of the steps in which a layer is fed the teacher's hidden state, a moving blend, and its own."""

    batch_size: int = 8
    """Rows per batch and process; an optimiser step reads --batch-size times --grad-accum times processes."""

    max_length: int = 128
    """Tokens per row; texts are packed into rows, longer ones cut."""

    every: int | None = None
    """In the teacher stage each layer learns from every Nth token, while all are read (default: from all if at most
    six layers learn, else from every fourth one)."""

    data: str | None = None
    """Text file (paragraphs), .jsonl with a text field, or a Hugging Face dataset id or a folder that `datasets` reads,
    which is streamed (train split, text column). Default: text that the model writes itself."""

    eval_tokens: int = 1024
    """Held-out tokens of each measurement."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.curriculum, str):
            object.__setattr__(self, "curriculum", ",".join(map(str, self.curriculum)))
        for field, choices in (("init", get_args(Init)), ("reg", get_args(Regulariser))):
            if getattr(self, field) not in choices:
                raise NPTError(f"{field} must be one of {', '.join(choices)}, not {getattr(self, field)!r}")
        for field, least in (("batch_size", 1), ("max_length", 4), ("eval_tokens", 2)):
            if getattr(self, field) < least:
                raise NPTError(f"{field} must be at least {least}, not {getattr(self, field)}")
        if not 0 <= self.gate_open <= 1:
            raise NPTError(f"gate_open must be from 0 to 1, not {self.gate_open}")
        if self.every is not None and self.every < 1:
            raise NPTError(f"every must be at least 1, not {self.every}")
        for field in ("direct_weight", "fidelity_weight", "reg_weight", "gate_weight"):
            if not (math.isfinite(getattr(self, field)) and getattr(self, field) >= 0):
                raise NPTError(f"{field} must not be negative, not {getattr(self, field)}")
        if len(self.shares) != 3 or min(self.shares) < 0 or not math.isclose(sum(self.shares), 1):
            raise NPTError(
                f"curriculum must be three shares that sum to 1, such as 0.8,0.1,0.1, not {self.curriculum!r} "
                f"(sum {sum(self.shares):g})"
            )

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the teacher, mixed and student stages. Raises NPTError if one is no number."""
        try:
            return tuple(float(part) for part in self.curriculum.split(","))
        except ValueError:
            raise NPTError(f"curriculum must be three numbers such as 0.8,0.1,0.1, not {self.curriculum!r}") from None


def stage_at(step: int, steps: int, shares: tuple[float, ...]) -> tuple[Stage, float]:
    """The stage of a step (from 0), and the share of its own hidden state that a converted layer is fed.

    0 in the teacher stage, 1 in the student stage; in between it rises by the same amount with every step.
    """
    begins, ends = (round(steps * share) for share in (shares[0], shares[0] + shares[1]))
    if step < begins:
        return "teacher", 0.0
    if step < ends:
        return "mixed", (step - begins + 1) / (ends - begins + 1)
    return "student", 1.0
