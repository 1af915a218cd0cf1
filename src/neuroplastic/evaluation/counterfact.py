"""CounterFact as ROME and MEMIT define it (Meng et al. 2202.05262, 2210.07229): does an edit stick, carry over, stay.

For a prompt, p(new) and p(true) are the length-normalised probabilities of the two targets, exp of the mean
log-probability per target token, under teacher forcing.

    ES  share of edit prompts with p(new) > p(true)           PS  the same for paraphrases
    NS  share of neighbourhood prompts with p(true) > p(new)  S   harmonic mean of the three
    EM, PM, NM  the mean difference of the two probabilities, in the direction of success
    *_acc       share of prompts whose wanted target is the likeliest at each of its tokens
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import NPTError
from ..text import batch, encode, start_token
from .records import Record

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Score:
    """Means over one record's prompts; shares from 0 to 1, magnitudes from -1 to 1."""

    es: float
    ps: float
    ns: float
    em: float
    pm: float
    nm: float
    es_acc: float
    ps_acc: float
    ns_acc: float


def read_records(path: Path) -> tuple[list[Record], dict[str, str]]:
    """The records of a CounterFact file, full or flat, and, by id, what is wrong with those that are malformed.

    Full records have `requested_rewrite`, `paraphrase_prompts` and `neighborhood_prompts`; flat ones `prompt`,
    `target_new`, `ground_truth`, `rephrase_prompt`, `locality_prompt` and `locality_ground_truth`.

    Raises NPTError where the file is no JSON list.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NPTError(f"there is no file {str(path)!r}") from None
    except (OSError, ValueError) as e:
        raise NPTError(f"cannot read {str(path)!r}: {e}") from None
    if not isinstance(data, list):
        raise NPTError(f"{path} is not a list of CounterFact records")
    records, malformed = [], {}
    for number, item in enumerate(data):
        try:
            records.append(_record(item, number))
        except (KeyError, TypeError, ValueError, IndexError) as e:
            malformed[str(item.get("case_id", number)) if isinstance(item, dict) else str(number)] = repr(e)
    return records, malformed


def _record(item: Any, number: int) -> Record:
    if not isinstance(item, dict):
        raise TypeError("not an object")
    name = str(item.get("case_id", number))
    if "requested_rewrite" in item:
        rewrite = item["requested_rewrite"]
        prompt = rewrite["prompt"].format(rewrite["subject"])
        new, true = rewrite["target_new"]["str"].strip(), rewrite["target_true"]["str"].strip()
        paraphrases = tuple(item["paraphrase_prompts"])
        neighbours = tuple((near, true) for near in item["neighborhood_prompts"])
        subject = rewrite["subject"]
    else:
        prompt, new, true = item["prompt"], item["target_new"].strip(), item["ground_truth"].strip()
        paraphrases = (item["rephrase_prompt"],)
        neighbours = ((item["locality_prompt"], item["locality_ground_truth"].strip()),)
        subject = item.get("subject")
    texts = [prompt, new, true, *paraphrases, *(text for pair in neighbours for text in pair)]
    if not (paraphrases and neighbours and all(isinstance(t, str) and t.strip() for t in texts)):
        raise ValueError("a prompt or a target is missing, empty or no text")
    return Record(name, prompt, new, true, paraphrases, neighbours, subject)


@torch.no_grad()
def target_logprobs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> tuple[Tensor, Tensor]:
    """Mean log-probability per token (nats) of each target behind its prompt, (N,), and whether each of its tokens is
    the likeliest one, (N,) bool; in one padded batch.

    Targets of one token behind the same prompt are read off one row.
    """
    start = start_token(tokenizer)
    prompts = [[start, *encode(tokenizer, prompt)] for prompt, _ in pairs]
    targets = [encode(tokenizer, f" {target}") for _, target in pairs]
    needed = [tuple(p + t[:-1]) for p, t in zip(prompts, targets, strict=True)]
    rows = {read: i for i, read in enumerate(dict.fromkeys(needed))}
    ids, mask = (t.to(model.device) for t in batch(list(rows), pad=start))
    states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    at = [
        (pair, rows[read], len(p) - 1 + j)
        for pair, (read, p, t) in enumerate(zip(needed, prompts, targets, strict=True))
        for j in range(len(t))
    ]
    pair, row, column = torch.tensor(at, device=ids.device).T
    # the vocabulary is large: only the positions that predict a target token get logits
    logits = model.get_output_embeddings()(states[row, column]).float()
    wanted = torch.tensor([t for target in targets for t in target], device=ids.device)
    found = logits.log_softmax(-1)[torch.arange(len(wanted), device=ids.device), wanted]
    lengths = torch.tensor([len(t) for t in targets], device=ids.device)
    total = torch.zeros(len(pairs), device=ids.device).index_add_(0, pair, found)
    wrong = torch.zeros(len(pairs), device=ids.device).index_add_(0, pair, (logits.argmax(-1) != wanted).float())
    return (total / lengths).cpu(), (wrong == 0).cpu()


def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: Record) -> Score:
    """How the model, in the mode and with the edits that it has, answers one record's prompts."""
    asked = [(p, record.true) for p in (record.prompt, *record.paraphrases)] + list(record.neighbours)
    pairs = [(p, record.new) for p, _ in asked] + asked
    logprobs, right = target_logprobs(model, tokenizer, pairs)
    new, true = logprobs.chunk(2)
    new_right, true_right = right.chunk(2)
    return shares(new, true, new_right, true_right, len(record.paraphrases))


def shares(new: Tensor, true: Tensor, new_right: Tensor, true_right: Tensor, paraphrases: int) -> Score:
    """From log p(new) and log p(true), and which of the two are likeliest throughout, of the edit prompt, the
    paraphrases and the neighbours, in this order."""
    parts = [1, paraphrases, len(new) - 1 - paraphrases]
    success = [(d > 0).float().mean().item() for d in (new - true).split(parts)]
    success[2] = (new < true)[1 + paraphrases :].float().mean().item()
    magnitude = [d.mean().item() for d in (new.exp() - true.exp()).split(parts)]
    wanted = torch.cat([new_right[: 1 + paraphrases], true_right[1 + paraphrases :]]).float()
    accuracy = [r.mean().item() for r in wanted.split(parts)]
    magnitude[2] *= -1
    return Score(**dict(zip((f.name for f in fields(Score)), [*success, *magnitude, *accuracy], strict=True)))


def harmonic(es: float, ps: float, ns: float) -> float:
    """S; 0 where one of the three is 0."""
    return 3 / (1 / es + 1 / ps + 1 / ns) if min(es, ps, ns) > 0 else 0.0


def summary(scores: Sequence[Score], seed: int = 0, draws: int = 2000) -> dict[str, tuple[float, float, float]]:
    """(mean, low, high) of S and of every figure of a Score; the 95 % interval is from a seeded bootstrap over
    records."""
    names = [f.name for f in fields(Score)]
    table = torch.tensor([[getattr(s, n) for n in names] for s in scores], dtype=torch.float64)
    rng = torch.Generator().manual_seed(seed)
    drawn = table[torch.randint(len(table), (draws, len(table)), generator=rng)].mean(1)  # (draws, figures)

    def with_s(means: Tensor) -> list[float]:
        return [harmonic(*means[:3].tolist()), *means.tolist()]

    mean, all_drawn = with_s(table.mean(0)), torch.tensor([with_s(d) for d in drawn], dtype=torch.float64)
    low, high = (torch.quantile(all_drawn, q, dim=0).tolist() for q in (0.025, 0.975))
    shown = ["S", *(n if n.endswith("_acc") else n.upper() for n in names)]
    return {n: (m, lo, hi) for n, m, lo, hi in zip(shown, mean, low, high, strict=True)}
