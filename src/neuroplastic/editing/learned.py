"""Method `learned`: a trained injector reads the fact once and says which update it asks for: no gradient."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ..config import Site
from ..console import Progress
from ..errors import NPTError
from ..text import encode
from .consolidate import Bench, Solution
from .edit import Factors
from .fact import Fact, Wording
from .injector import Injector, Subject, read_statements

INJECTOR_FILE = "injector.safetensors"
"""of a workspace; where it has none, one that comes with the package serves the model it was trained for"""
PACKAGED = Path(__file__).parent.parent / "injectors"
TOGETHER = 32
"""Statements read in one batch."""


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
    with bench.unedited():
        for done in range(0, len(told), TOGETHER):
            some = told[done : done + TOGETHER]
            reading = read_statements(bench.model, bench.tokenizer, config, [(q, a) for q, a, *_ in some])
            found = injector.propose(reading, bench.whitening, subjects=[s for _, _, s, _ in some])
            for (*_, number), K, V in zip(some, found.K, found.V, strict=True):
                keys[number] += share[number] * K
                values[number] += share[number] * V
            if progress is not None:
                progress(min(done + TOGETHER, len(told)), len(told))
    rows = injector.rows(keys, bench.whitening)
    places: list[tuple[int, Site]] = [(layer, "down") for layer in config.layers]
    return [
        Solution(
            {place: Factors(A[i : i + 1], V[i][:, None]) for i, place in enumerate(places)},
            {place: K[i : i + 1] for i, place in enumerate(places)},
            {},
            config.ridge,
        )
        for A, K, V in zip(rows, keys, values, strict=True)
    ]


def _subject(bench: Bench, wording: Wording) -> Subject | None:
    if wording.subject is None:
        return None
    before, through = (len(encode(bench.tokenizer, wording.question[:at])) for at in wording.subject)
    last = min(through, len(encode(bench.tokenizer, wording.question)))
    return Subject(min(before + 1, last), last, wording.subject_given)
