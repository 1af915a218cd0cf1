"""What all exports share: which edits, one uniform rank, a folder that appears whole or not at all, and the check."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import Place
from ..editing.edit import Edit, Factors
from ..editing.joint_solve import active_factors
from ..errors import CheckFailed, NPTError
from ..modulation import compress, frobenius_norm
from ..structure import projection
from ..surgery import mode
from ..text.tokens import encode, start_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..workspace.workspace import Workspace

RANKS = (8, 16, 32, 64, 128)
"""The ranks that vLLM, SGLang, llama.cpp and PEFT all take."""
TOLERANCE = 1e-6
"""Share of |dW|_F^2 that compression may drop unless more is allowed: a thousandth of the norm."""
LARGEST_LOGIT_ERROR = 1e-2
"""In float32. Another order of operations makes 1e-5 to 1e-3 of it by rounding; a wrong scale or a lost site, more."""

ROUNDING = 16
"""In float16 and bfloat16: units in the last place by which a logit may be off at the end of a network."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far what the target's library loads is from the workspace."""

    format: str
    path: str
    edits: list[str]
    rank: int | None
    """uniform rank of an adapter; None if the format has none"""
    dropped_energy: float
    """share of |dW|_F^2 that compression dropped"""
    max_logit_error: float
    """largest absolute difference of any logit on the statements, against the same factors in the workspace"""
    top1_agreement: float
    """share of the statements' positions at which both think the same token likeliest"""
    seconds: float
    ungated: dict[str, float] | None = None
    """of gated edits that were written as changes of weights, which answer a little to every token: what both forms do,
    in the workspace; None if there are none, or the format keeps the gates"""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def chosen_edits(ws: Workspace, names: Sequence[str] | None) -> tuple[Edit, ...]:
    """The active edits of these names, or all of them. Raises NPTError if there is none, or not that one."""
    if not ws.edits:
        raise NPTError("the workspace has no active edit to export; make one with: npt inject")
    if names is None:
        return ws.edits
    known = {e.name: e for e in ws.edits}
    if not names:
        raise NPTError("no edit was named; leave --edits out to export all active ones")
    for name in names:
        if name not in known:
            raise NPTError(f"there is no active edit {name!r}; active are: {', '.join(known)}")
    return tuple(e for e in ws.edits if e.name in set(names))


def chosen_changes(ws: Workspace, names: Sequence[str] | None) -> tuple[tuple[Edit, ...], dict[str, float] | None]:
    """The same edits as changes of weights, for formats that know no gates; and, if some are gated, the share of them
    that hold and the perplexity of ordinary text in both forms."""
    chosen = chosen_edits(ws, names)
    if not any(e.units for e in chosen):
        return chosen, None
    changes, found = tuple(e.ungated for e in chosen), {}
    for form, edits in (("gated", chosen), ("ungated", changes)):
        with ws.engine.only(edits):
            held = ws.engine.held()
            found[f"holding_{form}"] = sum(h.holds for h in held) / len(held) if held else math.nan
            found[f"perplexity_{form}"] = ws.engine.perplexity()
    return changes, found


def combine(edits: Sequence[Edit]) -> dict[Place, Factors]:
    """What the edits put into the weights together: factors concatenated per layer and site."""
    return {
        p: Factors(torch.cat([f.A for f in fs]), torch.cat([f.B for f in fs], 1))
        for p, fs in active_factors(edits).items()
    }


def at_uniform_rank(
    factors: Mapping[Place, Factors], rank: int | None, tolerance: float = TOLERANCE
) -> tuple[dict[Place, Factors], int, float]:
    """All factors at one rank from RANKS, compressed or padded with zeros; that rank; the share of energy dropped.

    Without a rank, the smallest that drops nothing to speak of, else the largest. Raises NPTError if the rank is not
    one of RANKS or drops more than `tolerance`.
    """
    if rank is not None and rank not in RANKS:
        raise NPTError(f"rank must be one of {', '.join(map(str, RANKS))} (all that serving tools take), not {rank}")
    if not 0 <= tolerance <= 1:
        raise NPTError(f"tolerance must be a share from 0 to 1, not {tolerance}")
    total = sum(frobenius_norm(*f).item() ** 2 for f in factors.values())
    tried = 0.0
    for r in (rank,) if rank else RANKS:
        small = {p: compress(f.A, f.B, r) if len(f.A) > r else (f.A, f.B, 0.0) for p, f in factors.items()}
        tried = sum(s[2] for s in small.values()) / total if total else 0.0
        if tried <= (tolerance if rank or r == RANKS[-1] else min(tolerance, 1e-12)):
            return {p: _padded(A, B, r) for p, (A, B, _) in small.items()}, r, tried
    raise NPTError(
        f"at rank {rank or RANKS[-1]} the edits lose {tried:.2%} of their energy, more than the tolerance of "
        f"{tolerance:.2%}; export fewer edits, a larger rank, or allow it with --tolerance"
    )


def _padded(A: Tensor, B: Tensor, rank: int) -> Factors:
    pad = rank - len(A)
    return Factors(torch.nn.functional.pad(A, (0, 0, 0, pad)), torch.nn.functional.pad(B, (0, pad)))


def projection_names(ws: Workspace) -> dict[str, Place]:
    """The name in the pretrained model of every MLP projection, and where it is."""
    places = {projection(p.mlp, site): (p.index, site) for p in ws.engine.parts for site in ("gate", "up", "down")}
    return {name: places[m] for name, m in ws.model.named_modules() if m in places}  # type: ignore[misc]


def as_edit(ws: Workspace, factors: Mapping[Place, Factors]) -> Edit:
    """Factors as they were exported, as an edit to compare with."""
    return Edit("exported", "", "export", 1.0, ws.base.sha256, 0, "", dict(factors))


@torch.no_grad()
def statement_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, statements: Sequence[str]
) -> list[Tensor]:
    """Float32 logits (T, vocabulary) of each statement after the start token, on the CPU."""
    start = start_token(tokenizer)
    rows = [torch.tensor([[start, *encode(tokenizer, s)]], device=model.device) for s in statements]
    return [model(input_ids=ids, use_cache=False).logits[0].float().cpu() for ids in rows]


def workspace_logits(ws: Workspace, edits: Sequence[Edit], statements: Sequence[str]) -> list[Tensor]:
    """What the workspace's model answers in standard mode with exactly these edits."""
    with ws.engine.only(edits), mode(ws.model, "standard"):
        return statement_logits(ws.model, ws.tokenizer, statements)


def compare(target: Sequence[Tensor], reference: Sequence[Tensor]) -> tuple[float, float]:
    """Largest logit difference, and share of positions with the same likeliest token."""
    errors = torch.stack([(t - r).abs().max() for t, r in zip(target, reference, strict=True)])
    error = errors.max().item()  # not a number if one of them is not, which Python's max could pass over
    same = torch.cat([t.argmax(-1) == r.argmax(-1) for t, r in zip(target, reference, strict=True)])
    return error, same.float().mean().item()


def require_match(
    format: str, target: Sequence[Tensor], reference: Sequence[Tensor], *dtypes: str
) -> tuple[float, float]:
    """What `compare` says. Raises CheckFailed if what was written does not do what the workspace does.

    `dtypes` are those in which the two were computed. In float32 and wider the logits must be the same. In narrower
    ones a position's likeliest token may be another one, if the reference thinks that nearly as likely.
    """
    error, agreement = compare(target, reference)
    eps = max(torch.finfo(getattr(torch, dtype)).eps for dtype in dtypes)
    if eps <= torch.finfo(torch.float32).eps:
        if not error <= LARGEST_LOGIT_ERROR:
            raise CheckFailed(
                f"the {format} export was checked and is wrong: logits differ by up to {error:.3g} (at most "
                f"{LARGEST_LOGIT_ERROR:g} is rounding); nothing was written"
            )
    elif not math.isfinite(error) or (wrong := _beyond_rounding(target, reference, eps)):
        what = f"{wrong} of the statements' positions have another" if math.isfinite(error) else "there is no"
        raise CheckFailed(
            f"the {format} export was checked and is wrong: {what} likeliest token, by more than rounding in "
            f"{' and '.join(sorted(set(dtypes)))} explains; nothing was written"
        )
    return error, agreement


def _beyond_rounding(target: Sequence[Tensor], reference: Sequence[Tensor], eps: float) -> int:
    """At how many positions the reference's logit of the target's likeliest token is below its own largest one by more
    than ROUNDING units in the last place of its largest magnitude."""
    found = 0
    for t, r in zip(target, reference, strict=True):
        short = r.amax(-1) - r.gather(-1, t.argmax(-1, keepdim=True))[:, 0]
        found += int((short > ROUNDING * eps * r.abs().amax(-1)).sum())
    return found


def finish(ws: Workspace, report: ExportReport) -> ExportReport:
    """Writes the export down in the workspace (exports.jsonl, one line each)."""
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), **report.to_dict()}, ensure_ascii=False)
    with (ws.path / "exports.jsonl").open("a", encoding="utf-8") as f:
        f.write(line + "\n")
        f.flush()
        os.fsync(f.fileno())
    return report


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.began = time.perf_counter()

    def __call__(self) -> float:
        return time.perf_counter() - self.began
