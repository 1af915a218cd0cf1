"""What a model writes by itself when it is asked: greedy, to the end of its turn or of a line.

Sums of floats may depend on the shape of a batch in their last bit, and a tie of two tokens then on the other questions
that are asked at the same time. So that a question gets the same tokens from an edited model as from the unedited one
unless the edit changes them, every group of questions (those of one record) is padded to a length of its own. On a CPU,
in float32, the number of rows is a multiple of ROWS at any time, for which matrix products are summed in one order, and
attention takes the plain form, which reads each row by itself. Questions of groups of one length then share a batch,
and those that are answered leave it. Elsewhere each group is a batch that keeps its shape to the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..errors import NPTError
from ..kv_cache import cache_argument, cache_of
from ..text.tokens import context_length, decode_after, encode, require_finite, start_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW_TOKENS = 50
"""Number of tokens after which a reply is cut."""
LARGEST_GROUP, LARGEST_BATCH = 16, 64
"""Number of prompts that are continued at once, of one group and of several."""
ROWS, LENGTH = 4, 16
"""Where groups share a batch, its number of rows, and the padded length of its prompts, are multiples of these."""
IDLE = -1
"""Stands for a row that nobody looks at."""

Prompt = Sequence[int]


class Reply(NamedTuple):
    text: str
    """up to the end of its first line that is not blank"""
    tokens: list[int]
    """those that were written, without what ended the turn"""


class Group(NamedTuple):
    """Questions that are asked together."""

    prompts: Sequence[Prompt]
    wanted: int
    """number of the last of them whose replies are wanted; the others only take their part in the shape of a batch"""


def replies(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[Reply]:
    """The reply to each prompt, given as tokens. Raises NPTError if one does not fit into the model's context."""
    return replies_to_groups(model, tokenizer, [Group(prompts, len(prompts))])[0]


@torch.no_grad()
def replies_to_groups(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, groups: Sequence[Group]
) -> list[list[Reply]]:
    """The wanted replies of several groups of prompts, those of each as if it were asked alone. Raises as `replies`
    does."""
    longest = max((len(p) for group in groups for p in group.prompts), default=0)
    if longest and longest + NEW_TOKENS > (room := context_length(model)):
        raise NPTError(
            f"a question has {longest} tokens; with {NEW_TOKENS} new ones it does not fit into the model's {room}"
        )
    writer, sharing = _Writer(model, tokenizer), _rows_are_independent(model)
    rows = [row for number, group in enumerate(groups) for row in _rows(number, group)]
    written: dict[int, Reply] = {}
    for numbers, length in _shared(rows) if sharing else _apart(rows):
        made = writer.write([rows[i].prompt for i in numbers], length, sharing)
        written |= dict(zip(numbers, made, strict=True))
    found: list[list[Reply]] = [[] for _ in groups]
    for i, row in enumerate(rows):
        if row.wanted:
            found[row.group].append(written[i])
    return found


class _Row(NamedTuple):
    prompt: Prompt
    group: int
    part: int
    """of the group, in prompts that are asked together"""
    length: int
    """of the longest prompt of this part"""
    wanted: bool


def _rows(number: int, group: Group) -> Iterator[_Row]:
    """The rows of a group; one that is too large is cut, always in the same way."""
    first = len(group.prompts) - group.wanted
    for part, start in enumerate(range(0, len(group.prompts), LARGEST_GROUP)):
        some = group.prompts[start : start + LARGEST_GROUP]
        length = max(map(len, some))
        for i, prompt in enumerate(some, start):
            yield _Row(prompt, number, part, length, i >= first)


def _shared(rows: Sequence[_Row]) -> Iterator[tuple[list[int], int]]:
    """Batches of rows, by number, that are padded to the same length, and that length; those that are wanted."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if row.wanted:
            by_length[-(-row.length // LENGTH) * LENGTH].append(i)
    for length, alike in by_length.items():
        yield from ((alike[i : i + LARGEST_BATCH], length) for i in range(0, len(alike), LARGEST_BATCH))


def _apart(rows: Sequence[_Row]) -> Iterator[tuple[list[int], int]]:
    """A batch for each part of a group of which something is wanted."""
    parts: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        parts[row.group, row.part].append(i)
    yield from ((part, rows[part[0]].length) for part in parts.values() if any(rows[i].wanted for i in part))


def _rows_are_independent(model: PreTrainedModel) -> bool:
    """Whether what a row gives is the same to the bit in batches of any multiple of ROWS rows."""
    return bool(model.device.type == "cpu" and model.dtype == torch.float32)


class _Writer:
    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer
        self.ends, self.pad = turn_ends(model, tokenizer), start_token(tokenizer)
        self._breaks: dict[int, bool] = {}
        """of each token that was seen, whether it holds the end of a line"""

    def write(self, prompts: Sequence[Prompt], length: int, shrinks: bool) -> list[Reply]:
        """The replies to prompts padded on the left to `length` tokens. If the batch `shrinks`, rows that are finished
        leave it as soon as it can be smaller by ROWS of them."""
        new: list[list[int]] = [[] for _ in prompts]
        fill = -len(prompts) % ROWS if shrinks else 0
        rows = [*prompts, *[prompts[-1]] * fill]
        at = [*range(len(prompts)), *[IDLE] * fill]
        """of each row of the batch, which prompt it continues as long as that is not finished"""
        device = self.model.device
        ids = torch.tensor([[self.pad] * (length - len(row)) + [*row] for row in rows], device=device)
        begins = torch.tensor([length - len(row) for row in rows], device=device)[:, None]
        mask = (torch.arange(length, device=device) >= begins).long()
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        read: dict[str, Any] = {}
        while True:
            how = {"attention_mask": mask, "position_ids": positions, "use_cache": True, "logits_to_keep": 1}
            with _plain_attention() if shrinks and read else nullcontext():
                out = self.model(input_ids=ids, **how, **read)
            logits = out.logits[:, -1]
            require_finite(logits)
            chosen = logits.argmax(-1)
            for row, token in enumerate(chosen.tolist()):
                if at[row] != IDLE and not self._goes_on(new[at[row]], token):
                    at[row] = IDLE
            going = [row for row, i in enumerate(at) if i != IDLE]
            if not going:
                return [self._reply(prompt, tokens) for prompt, tokens in zip(prompts, new, strict=True)]
            ids, positions, cache = chosen[:, None], positions[:, -1:] + 1, cache_of(out)
            if shrinks and len(going) <= len(at) - ROWS:
                finished = [row for row, i in enumerate(at) if i == IDLE]
                left = sorted([*going, *finished[: -len(going) % ROWS]])
                at = [at[row] for row in left]
                chosen_rows = torch.tensor(left, device=device)
                ids, positions, mask = ids[chosen_rows], positions[chosen_rows], mask[chosen_rows]
                cache.batch_select_indices(chosen_rows)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            read = cache_argument(self.model, cache)

    def _goes_on(self, new: list[int], token: int) -> bool:
        """Adds the next token to those of a reply, unless it ends the turn; whether another one follows."""
        if token in self.ends:
            return False
        new.append(token)
        return len(new) < NEW_TOKENS and not self._ends_a_line(new)

    def _ends_a_line(self, new: list[int]) -> bool:
        """Whether the last of these tokens ends a line that is not blank."""
        last = new[-1]
        if last not in self._breaks:
            self._breaks[last] = "\n" in str(self.tokenizer.decode([last]))
        return self._breaks[last] and "\n" in str(self.tokenizer.decode(new)).lstrip()

    def _reply(self, prompt: Prompt, new: list[int]) -> Reply:
        text = decode_after(self.tokenizer, prompt, new)
        return Reply(text.lstrip().partition("\n")[0], new)


def _plain_attention() -> AbstractContextManager[None]:
    """Attention as two matrix products for each row: the fused one divides the work of a single query among threads in
    a way that depends on the size of the batch."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)


def turn_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end what a model writes: those that it names, the end of a text, the beginning of another one,
    and what its chat template writes after a turn of its own."""
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = set(own if isinstance(own, list | tuple) else [own]) | {tokenizer.eos_token_id, start_token(tokenizer)}
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "mark of the end"}]
        after = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition("mark of the end")[2]
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        ends |= set([t for t in encode(tokenizer, after) if t in special][:1])
    return {int(t) for t in ends if t is not None}
