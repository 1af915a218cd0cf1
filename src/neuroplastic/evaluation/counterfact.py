"""CounterFact as ROME and MEMIT define it (Meng et al. 2202.05262, 2210.07229): does an edit stick, carry over, stay.

For a prompt, p(new) and p(true) are the length-normalised probabilities of the two targets, exp of the mean
log-probability per target token, under teacher forcing.

    ES  share of edit prompts with p(new) > p(true)           PS  the same for paraphrases
    NS  share of neighbourhood prompts with p(true) > p(new)  S   harmonic mean of the three
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import NPTError
from ..text import batch, encode, start_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Record:
    """One counterfactual: `prompt` should be followed by `new` instead of `true`; neighbours should keep `true`."""

    id: str
    prompt: str
    new: str
    true: str
    paraphrases: tuple[str, ...]
    neighbours: tuple[str, ...]

    @property
    def statement(self) -> str:
        return f"{self.prompt} {self.new}."


@dataclass(frozen=True)
class Score:
    """Shares of one record's prompts, each from 0 to 1."""

    es: float
    ps: float
    ns: float


def read_records(path: Path) -> tuple[list[Record], dict[str, str]]:
    """The records of a file of full CounterFact records, and, by id, what is wrong with those that are malformed.

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


def _record(item: dict[str, Any], number: int) -> Record:
    rewrite = item["requested_rewrite"]
    new, true = rewrite["target_new"]["str"].strip(), rewrite["target_true"]["str"].strip()
    paraphrases, neighbours = tuple(item["paraphrase_prompts"]), tuple(item["neighborhood_prompts"])
    if not (new and true and paraphrases and neighbours):
        raise ValueError("a target or a list of prompts is empty")
    prompt = rewrite["prompt"].format(rewrite["subject"])
    return Record(str(item.get("case_id", number)), prompt, new, true, paraphrases, neighbours)


@torch.no_grad()
def target_logprobs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> Tensor:
    """Mean log-probability per token (nats) of each target behind its prompt, (N,), in one padded batch.

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
    total = torch.zeros(len(pairs), device=ids.device).index_add_(0, pair, found)
    return (total / torch.tensor([len(t) for t in targets], device=ids.device)).cpu()


def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: Record) -> Score:
    """How the model, in the mode and with the edits that it has, answers one record's prompts."""
    prompts = (record.prompt, *record.paraphrases, *record.neighbours)
    pairs = [(p, record.new) for p in prompts] + [(p, record.true) for p in prompts]
    new, true = target_logprobs(model, tokenizer, pairs).chunk(2)
    return shares(new - true, len(record.paraphrases))


def shares(margins: Tensor, paraphrases: int) -> Score:
    """From log p(new) - log p(true) of the edit prompt, the paraphrases and the neighbours, in this order."""
    edit, rephrased, near = margins.split([1, paraphrases, len(margins) - 1 - paraphrases])
    return Score(
        es=(edit > 0).float().mean().item(),
        ps=(rephrased > 0).float().mean().item(),
        ns=(near < 0).float().mean().item(),
    )


def harmonic(es: float, ps: float, ns: float) -> float:
    """S; 0 where one of the three is 0."""
    return 3 / (1 / es + 1 / ps + 1 / ns) if min(es, ps, ns) > 0 else 0.0


def summary(scores: Sequence[Score], seed: int = 0, draws: int = 2000) -> dict[str, tuple[float, float, float]]:
    """(mean, low, high) of ES, PS, NS and S; the 95 % interval is from a seeded bootstrap over records."""

    def figures(chosen: Sequence[Score]) -> tuple[float, ...]:
        means = tuple(sum(getattr(s, k) for s in chosen) / len(chosen) for k in ("es", "ps", "ns"))
        return (*means, harmonic(*means))

    rng = random.Random(seed)
    drawn = [figures(rng.choices(scores, k=len(scores))) for _ in range(draws)]
    result = {}
    for i, (name, mean) in enumerate(zip(("ES", "PS", "NS", "S"), figures(scores), strict=True)):
        ordered = sorted(d[i] for d in drawn)
        result[name] = (mean, ordered[int(0.025 * draws)], ordered[int(0.975 * draws) - 1])
    return result
