"""What an MLP should have written for a fact's answer to follow: the targets that `consolidate` solves for.

ROME asks which value v* at the subject's last token makes the answer likely (Meng et al. 2202.05262, section 3.1). Here
several layers are asked at once: one change delta of a projection's output per fact and layer is found by a few steps
of Adam on the answer's mean log-probability, over the wordings of the fact, each alone and after unrelated text.

Only the subject's last token and those after it depend on delta. Everything before is read once and kept as a cache of
keys and values; a step costs a forward and a backward pass over the few tokens that follow, and no weight gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..capture import capturing
from ..config import Place, Site
from ..errors import NPTError
from ..kv_cache import cache_argument, cache_of
from ..structure import LayerParts, projection
from ..text.scoring import log_probabilities
from ..text.tokens import batch, encode_after, start_token, tokens_through
from .fact import Fact, Wording
from .optimise import optimise

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Row:
    """One sequence that an answer should continue."""

    ids: list[int]
    """start token, unrelated text, question, and all of the answer but its last token; with `whole`, that one too"""
    answer: list[int]
    keys: list[tuple[int, int]]
    """(position, slot): at this position, the slot's delta is added"""
    whole: bool = False
    shared: tuple[tuple[int, int], ...] = ()
    """the same for slots of other facts about the subject: their deltas are added, and do not learn from this row"""

    @property
    def first(self) -> int:
        """The first position that depends on a delta."""
        return min(position for position, _ in self.keys)

    @property
    def answer_positions(self) -> range:
        """The positions whose logits predict the answer."""
        end = len(self.ids) - self.whole
        return range(end - len(self.answer), end)


def rows_of(
    tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], prefixes: Sequence[Sequence[int]]
) -> tuple[list[Row], list[int]]:
    """Rows of all facts, and the fact that each slot belongs to.

    With a subject, a fact has one slot, at the subject's last token in every wording. Rows of facts that share a
    subject are there twice, without the deltas of the other facts and with them, so that each fact holds alone and with
    all of them in the weights. Without a subject, each token of each question has its own slot. Raises NPTError for a
    fact that has no question.
    """
    rows: list[Row] = []
    owner: list[int] = []
    of_subject: dict[str, list[int]] = {}
    for number, fact in enumerate(facts):
        shared = None
        for wording in fact.wordings:
            question, answer = encode_after(tokenizer, wording.question, wording.answer)
            if wording.subject is not None:
                if shared is None:
                    shared = len(owner)
                    owner.append(number)
                    of_subject.setdefault(topic_of(fact, number), []).append(shared)
                keys = [(key_position(tokenizer, wording, question), shared)]
            else:
                keys = [(i, len(owner) + i) for i in range(len(question))]
                owner += [number] * len(question)
            if not question:
                raise NPTError(
                    f"{fact.statement!r} is an answer without a question; give a sentence, or --ask and --answer"
                )
            for prefix in ((), *prefixes):
                ahead = 1 + len(prefix)
                ids = [start_token(tokenizer), *prefix, *question, *answer[:-1]]
                rows.append(Row(ids, answer, [(ahead + position, slot) for position, slot in keys]))
    peers = {slot: [s for s in slots if s != slot] for slots in of_subject.values() for slot in slots}
    for row in list(rows):
        position, slot = row.keys[0]
        if others := peers.get(slot):
            rows.append(replace(row, shared=tuple((position, other) for other in others)))
    return rows, owner


def topic_of(fact: Fact, number: int) -> str:
    """Equal for facts about one subject; of its own for a fact, given by its number, whose subject is unknown."""
    if fact.subject is None:
        return f"#{number}"
    return " ".join(fact.subject.casefold().split()).removeprefix("the ")


def key_position(tokenizer: PreTrainedTokenizerBase, wording: Wording, question: Sequence[int]) -> int:
    """The index among the question's tokens of the one that the subject ends in."""
    assert wording.subject is not None
    return min(tokens_through(tokenizer, wording.question, wording.subject[1]), len(question)) - 1


@dataclass(frozen=True, eq=False)
class Past:
    """Tokens that were read already, padded on the right. A padded position on the left would attend to nothing, which
    some models answer with NaN."""

    mask: Tensor
    """[rows, length]"""
    layers: list[tuple[Tensor, Tensor]]
    """keys and values"""

    @classmethod
    def of(cls, cache: Any, mask: Tensor, longest: int, times: int = 1) -> Past | None:
        """From what a model kept of some rows, whose tokens in `mask` count; None if some layer would not keep it
        for `longest` tokens more. With `times`, all rows are repeated that number of times."""
        windows = [layer.sliding_window for layer in cache.layers if layer.is_sliding]
        if any(mask.shape[1] + longest > w for w in windows):
            return None
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        if times > 1:
            layers = [(k.repeat(times, 1, 1, 1), v.repeat(times, 1, 1, 1)) for k, v in layers]
        return cls(mask.repeat(times, 1), layers)


class Reader:
    """Reads rows with deltas added at their keys; what lies before the first key is read once, without them."""

    def __init__(
        self,
        model: PreTrainedModel,
        parts: Sequence[LayerParts],
        sites: Sequence[Site],
        rows: Sequence[Row],
        past: Past | None = None,
    ):
        """`past` is what comes before each row's first key, if that was read already."""
        self.model, self.rows = model, rows
        self.linears = {(p.index, site): projection(p.mlp, site) for p in parts for site in sites}
        device = model.device
        starts = [r.first for r in rows]
        longest = max(len(r.ids) - s for r, s in zip(rows, starts, strict=True))
        self.past = self._read_past(starts, longest) if past is None else past
        if self.past is None:
            starts = [0] * len(rows)
        self.ids, here = batch([r.ids[s:] for r, s in zip(rows, starts, strict=True)], 0, device)
        self.position = torch.tensor(starts, device=device)[:, None] + torch.arange(here.shape[1], device=device)
        self.mask = here if self.past is None else torch.cat([self.past.mask, here], 1)

        def index(entries: Iterator[tuple[int, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
            row, column, value = (torch.tensor(list(c), device=device) for c in zip(*entries, strict=True))
            return row, column, value

        self.key_row, self.key_column, self.slot = index(
            (i, at - s, slot) for i, (r, s) in enumerate(zip(rows, starts, strict=True)) for at, slot in r.keys
        )
        self.shared = [
            (i, at - s, slot) for i, (r, s) in enumerate(zip(rows, starts, strict=True)) for at, slot in r.shared
        ]
        self.row, self.column, self.wanted = index(
            (i, at - s, token)
            for i, (r, s) in enumerate(zip(rows, starts, strict=True))
            for at, token in zip(r.answer_positions, r.answer, strict=True)
        )
        self.slots = int(self.slot.max()) + 1

    @torch.no_grad()
    def _read_past(self, starts: Sequence[int], longest: int) -> Past | None:
        """What comes before the first key, or None if some layer would not keep it for the `longest` rest."""
        if min(starts) < 1:
            return None
        ids, mask = batch([r.ids[:s] for r, s in zip(self.rows, starts, strict=True)], 0, self.model.device)
        read = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=True)
        return Past.of(cache_of(read), mask, longest)

    def logprobs(
        self, deltas: dict[Place, Tensor], see: Callable[[Place, Tensor, Tensor], None] | None = None
    ) -> Tensor:
        """Mean log-probability (nats) of each row's answer, (R,), with deltas [slots, d_out] added at the keys.

        see(place, z, y), if given, is called with what a projection reads and gives at the keys: z [n, d_in],
        y [n, d_out], without the delta.
        """
        return self.of_answers(self.predictions(deltas, see))

    def predictions(
        self, deltas: dict[Place, Tensor], see: Callable[[Place, Tensor, Tensor], None] | None = None
    ) -> Tensor:
        """Log-probabilities (nats) of every token at the positions that predict answers, row after row
        [positions, vocabulary]; arguments as of `logprobs`."""
        with self._adding(deltas, see):
            return self.read()

    def read(self) -> Tensor:
        """Predictions without any delta: of the model as it is, with whatever hooks it has."""
        return self._predicted(self._states(), self.row, self.column)

    def read_on(self) -> tuple[Tensor, Tensor]:
        """The same, and what is predicted after each whole row's end [R, vocabulary]."""
        states = self._states()
        each = torch.arange(len(self.rows), device=states.device)
        ends = torch.tensor([len(r.ids) - 1 for r in self.rows], device=states.device) - self.position[:, 0]
        return self._predicted(states, self.row, self.column), self._predicted(states, each, ends)

    def _states(self) -> Tensor:
        """The last hidden states [R, T, d]."""
        reader = self.model.base_model
        states: Tensor = reader(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.position,
            use_cache=self.past is not None,
            **cache_argument(reader, self._cache()),
        )[0]
        return states

    def _predicted(self, states: Tensor, row: Tensor, column: Tensor) -> Tensor:
        # the vocabulary is large: only the positions that are asked about get logits
        return log_probabilities(self.model.get_output_embeddings(), states[row, column])

    def of_answers(self, predictions: Tensor) -> Tensor:
        """The mean of each row's answer, (R,), from [positions, vocabulary]."""
        found = predictions[torch.arange(len(self.wanted), device=predictions.device), self.wanted]
        total = found.new_zeros(len(self.rows)).index_add(0, self.row, found)
        return total / torch.tensor([len(r.answer) for r in self.rows], device=found.device)

    def mean_by_slot(self, z: Tensor) -> Tensor:
        """z [n, d], one row per key -> the mean of each slot's rows [slots, d]."""
        count = z.new_zeros(self.slots).index_add(0, self.slot, z.new_ones(len(z)))
        return z.new_zeros(self.slots, z.shape[1]).index_add(0, self.slot, z) / count[:, None]

    def _cache(self) -> Any:
        if self.past is None:
            return None
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        for i, (k, v) in enumerate(self.past.layers):
            cache.update(k, v, i)
        return cache

    @contextmanager
    def _adding(
        self, deltas: dict[Place, Tensor], see: Callable[[Place, Tensor, Tensor], None] | None
    ) -> Iterator[None]:
        at = (self.key_row, self.key_column)
        others = torch.tensor(self.shared, device=self.slot.device).T if self.shared else None

        def add(place: Place, z: Tensor, output: Tensor) -> Tensor:
            if see is not None:
                see(place, z[at].detach(), output[at].detach())
            output = output.index_put(at, deltas[place][self.slot].to(output.dtype), accumulate=True)
            if others is not None:
                row, column, slot = others
                added = deltas[place].detach()[slot].to(output.dtype)
                output = output.index_put((row, column), added, accumulate=True)
            return output

        with capturing(self.linears, add):
            yield


@dataclass(frozen=True, eq=False)
class Targets:
    """Per place, one key and one change of output for each slot; and how likely the answers are with them."""

    keys: dict[Place, Tensor]
    """[slots, d_in]"""
    deltas: dict[Place, Tensor]
    """[slots, d_out]"""
    probability: list[float]
    """per fact, the answer's probability per token (geometric mean) in its worst row"""
    steps: int


def find_targets(reader: Reader, owner: Sequence[int], steps: int, rate: float, enough: float) -> Targets:
    """Adam on the deltas of all facts at once; each fact stops when its answer's probability reaches `enough`.

    `rate` is the length of a step in units of the projection's own output at the keys (root mean square).
    """
    wide = torch.float32 if reader.model.dtype != torch.float64 else torch.float64
    fact_of_row = torch.tensor([owner[r.keys[0][1]] for r in reader.rows], device=reader.slot.device)
    fact_of_slot = torch.tensor(owner, device=reader.slot.device)
    facts = max(owner) + 1
    deltas: dict[Place, Tensor] = {
        place: torch.zeros(reader.slots, linear.out_features, dtype=wide, device=linear.weight.device)
        for place, linear in reader.linears.items()
    }
    keys: dict[Place, Tensor] = {}
    scale: dict[Place, Tensor] = {}

    def see(place: Place, z: Tensor, y: Tensor) -> None:
        keys[place] = reader.mean_by_slot(z.to(wide))
        if place not in scale:
            scale[place] = reader.mean_by_slot(y.to(wide)).square().mean(1, keepdim=True).sqrt()

    def worst(logprobs: Tensor) -> Tensor:
        lowest = torch.full((facts,), torch.inf, dtype=logprobs.dtype, device=logprobs.device)
        return lowest.scatter_reduce(0, fact_of_row, logprobs, "amin").exp()

    def look() -> tuple[Tensor, list[float], dict[Place, Tensor] | None]:
        logprobs = reader.logprobs(deltas, see)
        probability = worst(logprobs.detach())
        moving = (probability < enough)[fact_of_slot][:, None]
        step = {place: moving * rate * unit for place, unit in scale.items()} if moving.any() else None
        return -logprobs.sum(), probability.tolist(), step

    probability, taken = optimise(deltas, look, steps)
    return Targets(keys, deltas, probability, taken)
