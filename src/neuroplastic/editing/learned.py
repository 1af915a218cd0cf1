"""Method `learned`: a trained injector reads the fact once and says which update it asks for: no gradient.

An injector's values are long enough for hard facts. For an easy one they are too long: the answer is said again and
again, and ordinary text pays for it. So each update is tried at a few strengths, in one batch, and the smallest is
taken at which its own question is answered with probability ENOUGH.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Site
from ..console import Progress
from ..errors import NPTError
from ..structure import projection
from ..text import batch, encode, start_token
from .consolidate import Bench, Solution
from .edit import Factors
from .fact import Fact, Wording
from .injector import Injector, InjectorConfig, Subject, read_statements

INJECTOR_FILE = "injector.safetensors"
"""of a workspace; where it has none, one that comes with the package serves the model it was trained for"""
PACKAGED = Path(__file__).parent.parent / "injectors"
TOGETHER = 32
"""Statements read in one batch."""
STRENGTHS = (0.5, 0.7, 0.85, 1.0)
ENOUGH = 0.95
"""Probability of the answer, per token, that an update needs no more strength for."""


def find_injector(base: str, folder: Path | None) -> Injector | None:
    """The injector of a workspace's folder, else a packaged one for the base with this content hash, else None.

    Raises NPTError where the workspace's own file is damaged or belongs to another base.
    """
    if folder is not None and (folder / INJECTOR_FILE).exists():
        return Injector.load(folder / INJECTOR_FILE, base)[0]
    for file in sorted(PACKAGED.glob("*.safetensors")):
        if _base_of(file) == base:
            return Injector.load(file, base)[0]
    return None


def _base_of(file: Path) -> str | None:
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as f:
        return json.loads((f.metadata() or {}).get("npt", "{}")).get("base")


@torch.no_grad()
def learned(bench: Bench, facts: Sequence[Fact], progress: Progress | None = None) -> list[Solution]:
    """One solution per fact, to be solved together with all other learned ones. Touches no weight.

    Statements are read by the unedited base, so that an edit does not depend on those made before it. Of a fact with
    several wordings, keys and values are the means over them. Raises NPTError where the model has no injector, and for
    a statement that is too long for it.
    """
    injector = bench.injector
    if injector is None:
        raise NPTError(
            "there is no injector for this model: train one with npt train-injector, or use --method consolidate"
        )
    told = [
        (encode(bench.tokenizer, w.question), encode(bench.tokenizer, w.answer), _subject(bench, w), number)
        for number, fact in enumerate(facts)
        for w in fact.wordings
    ]
    told.sort(key=lambda t: len(t[0]) + len(t[1]))  # batches of like length waste little on padding
    config = injector.config
    keys = torch.zeros(len(facts), len(config.layers), config.d_ffn)
    values = torch.zeros(len(facts), len(config.layers), config.d_model)
    share = [1 / len(fact.wordings) for fact in facts]
    strength = [0.0] * len(facts)
    with bench.unedited():
        for done in range(0, len(told), TOGETHER):
            some = told[done : done + TOGETHER]
            reading = read_statements(bench.model, bench.tokenizer, config, [(q, a) for q, a, *_ in some])
            found = injector.propose(reading, bench.whitening, subjects=[s for _, _, s, _ in some])
            strengths = _strengths(bench, config, [(q, a) for q, a, *_ in some], found.A, found.V)
            for (*_, number), K, V, s in zip(some, found.K, found.V, strengths, strict=True):
                keys[number] += share[number] * K
                values[number] += share[number] * s * V
                strength[number] += share[number] * s
            if progress is not None:
                progress(min(done + TOGETHER, len(told)), len(told))
    rows = injector.rows(keys, bench.whitening)
    places: list[tuple[int, Site]] = [(layer, "down") for layer in config.layers]
    return [
        Solution(
            {place: Factors(A[i : i + 1], V[i][:, None]) for i, place in enumerate(places)},
            {place: K[i : i + 1] for i, place in enumerate(places)},
            {"strength": s},
            config.ridge,
        )
        for A, K, V, s in zip(rows, keys, values, strength, strict=True)
    ]


def _strengths(
    bench: Bench,
    config: InjectorConfig,
    told: Sequence[tuple[Sequence[int], Sequence[int]]],
    A: Tensor,
    V: Tensor,
) -> list[float]:
    """For each statement (question, answer) with its update v a^T, A [n, L, f], V [n, L, d], the smallest of STRENGTHS
    at which the answer is likely enough, else the largest [n]. All are tried by adding s v (a . z) to what is given."""
    n, k, start = len(told), len(STRENGTHS), start_token(bench.tokenizer)
    scaled = (torch.tensor(STRENGTHS, device=A.device)[:, None, None, None] * V).flatten(0, 1)  # [k n, L, d]
    ids, mask = batch([[start, *q, *a[:-1]] for q, a in told], pad=start)
    ids, mask = ids.repeat(k, 1).to(A.device), mask.repeat(k, 1).to(A.device)

    def adding(i: int) -> Callable[[Any, Any, Tensor], Tensor]:
        def add(module: Any, args: Any, output: Tensor) -> Tensor:
            answered = torch.einsum("rtf,rf->rt", args[0].float(), A[:, i].repeat(k, 1))
            return output + (answered[..., None] * scaled[:, i, None]).to(output)

        return add

    parts = {p.index: p for p in bench.parts}
    handles = [
        projection(parts[layer].mlp, "down").register_forward_hook(adding(i)) for i, layer in enumerate(config.layers)
    ]
    try:
        states = bench.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    finally:
        for handle in handles:
            handle.remove()
    at = [(i, len(q) + j, token) for i, (q, a) in enumerate(told) for j, token in enumerate(a)]
    row, column, wanted = torch.tensor(at, device=A.device).T
    logits = bench.model.get_output_embeddings()(states.unflatten(0, (k, n))[:, row, column]).float()
    each = logits.log_softmax(-1).gather(-1, wanted.expand(k, -1)[..., None])[..., 0]
    mean = each.new_zeros(k, n).index_add(1, row, each) / torch.tensor([len(a) for _, a in told], device=A.device)
    likely = mean.exp() >= ENOUGH
    likely[-1] = True
    return [STRENGTHS[i] for i in likely.int().argmax(0)]


def _subject(bench: Bench, wording: Wording) -> Subject | None:
    if wording.subject is None:
        return None
    before, through = (len(encode(bench.tokenizer, wording.question[:at])) for at in wording.subject)
    last = min(through, len(encode(bench.tokenizer, wording.question)))
    return Subject(min(before + 1, last), last, wording.subject_given)
