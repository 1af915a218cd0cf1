"""How generators are calibrated. Imports no torch, so that the command line can answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config import GeneratorInput
from ..errors import NPTError


@dataclass(frozen=True)
class CalibrateOptions:
    """How low-rank generators are fitted to the pretrained model in closed form."""

    data: Path | None = None
    """Text file (paragraphs) or .jsonl with a text field. Default: text that the model writes itself, once."""

    tokens: int = 24_576
    """Number of its tokens, at most, that are read, approximately."""

    np_rank: int | Literal["auto"] | None = None
    """Width of every layer's bottleneck, or `auto`: spent over the layers where it lowers the output error most.
    Default: what the workspace has."""

    budget: str | None = None
    """What `auto` may spend: a share of the base model's parameters such as 3%, or a number of parameters (default
    3%)."""

    input: GeneratorInput | None = None
    """What the generators read: the attention output a, or its effect e = n(h + a) - n(h), which is closer. Default:
    what the workspace has, or the effect if its generators are analytic."""

    sequential: bool = False
    """Fit the layers in order, each on what it reads once the layers before it are converted: one more pass over the
    text per layer."""

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise NPTError(f"tokens must be at least 2, not {self.tokens}")
        if isinstance(self.np_rank, int) and self.np_rank < 1:
            raise NPTError(f"np_rank must be at least 1, not {self.np_rank}")
        if isinstance(self.np_rank, str) and self.np_rank != "auto":
            raise NPTError(f"np_rank must be a whole number or auto, not {self.np_rank!r}")
        if self.budget is not None and self.np_rank != "auto":
            raise NPTError("a budget has no meaning without --np-rank auto")
        if self.sequential and self.np_rank == "auto":
            raise NPTError("--np-rank auto compares all layers before any is fitted; leave --sequential out")
        self.parameters(100)

    def parameters(self, base: int) -> int:
        """What `auto` may spend on a base model of `base` parameters."""
        text = (self.budget or "3%").strip()
        try:
            spend = round(float(text[:-1]) / 100 * base) if text.endswith("%") else int(text)
        except ValueError:
            raise NPTError(f"budget must be a share such as 3% or a number of parameters, not {text!r}") from None
        if float(text.rstrip("%")) <= 0:
            raise NPTError(f"budget must be above 0, not {text!r}")
        return spend
