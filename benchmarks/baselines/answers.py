"""Records as rows of tokens, what modules read and give in them, and how likely a model finds their answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neuroplastic.editing.fact import asked
from neuroplastic.editing.targets import Row, rows_of
from neuroplastic.errors import NPTError
from neuroplastic.text.tokens import batch, encode, start_token, tokens_through

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from neuroplastic.evaluation.records import Record


def beginnings(text: Tensor, count: int, seed: int) -> list[list[int]]:
    """`count` pieces of ordinary text [N, T], two to ten tokens each: the random x_j of ROME (section 3.1)."""
    rng = random.Random(seed)
    rows = text.tolist()
    found = []
    for _ in range(count):
        row, length = rng.choice(rows), rng.randint(2, 10)
        first = rng.randint(1, max(1, len(row) - length))  # after the start token
        found.append(row[first : first + length])
    return found


def question_rows(
    tokenizer: PreTrainedTokenizerBase, record: Record, prefixes: Sequence[Sequence[int]] = ()
) -> list[Row]:
    """The record's question with its new answer, alone and after each prefix; the key is the subject's last token.

    Raises NPTError if the record has no subject.
    """
    if record.subject is None:
        raise NPTError(f"record {record.id} has no subject, and this baseline has to be given one")
    rows, _ = rows_of(tokenizer, [asked(record.prompt, record.new, subject=record.subject)], prefixes)
    return rows


def statement_row(tokenizer: PreTrainedTokenizerBase, record: Record) -> Row:
    """The whole statement, every token of which is to be learned."""
    ids = encode(tokenizer, record.statement)
    return Row([start_token(tokenizer), *ids[:-1]], ids, [])


def essence_row(tokenizer: PreTrainedTokenizerBase, record: Record) -> Row:
    """'{subject} is a', whose continuation should stay what it is (ROME, section 3.1): any token, all are looked at."""
    assert record.subject is not None
    text = f"{record.subject} is a"
    ids, last = encode(tokenizer, text), tokens_through(tokenizer, text, len(record.subject))
    return Row([start_token(tokenizer), *ids], [start_token(tokenizer)], [(last, 0)])


def states_of(model: PreTrainedModel, rows: Sequence[Row]) -> Tensor:
    """The last hidden states [R, T, d] of rows padded on the right."""
    ids, mask = batch([row.ids for row in rows], 0, model.device)
    states: Tensor = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    return states


def answer_loss(model: PreTrainedModel, rows: Sequence[Row], states: Tensor) -> Tensor:
    """Mean over rows of the negative log-probability (nats) per token of the row's answer; a scalar.

    The vocabulary is large: only the positions that predict an answer get logits.
    """
    at = [(i, column) for i, row in enumerate(rows) for column in row.answer_positions]
    number, column = torch.tensor(at, device=states.device).T
    wanted = torch.tensor([token for row in rows for token in row.answer], device=states.device)
    weight = torch.tensor([1 / len(row.answer) for row in rows for _ in row.answer], device=states.device)
    logits = model.get_output_embeddings()(states[number, column])
    found = logits.float().log_softmax(-1)[torch.arange(len(wanted)), wanted]
    return -(found * weight).sum() / len(rows)


@torch.no_grad()
def read_at_keys(
    model: PreTrainedModel, rows: Sequence[Row], inputs_of: nn.Module, outputs_of: nn.Module
) -> tuple[Tensor, Tensor]:
    """What the one module reads, and what the other gives, at each row's key: [R, d_in] and [R, d_out]."""
    at, seen = (torch.arange(len(rows)), torch.tensor([row.keys[0][0] for row in rows])), {}

    def see_input(module: nn.Module, args: Any) -> None:
        seen["input"] = args[0][at]

    def see_output(module: nn.Module, args: Any, output: Any) -> None:
        seen["output"] = (output[0] if isinstance(output, tuple) else output)[at]

    handles = [inputs_of.register_forward_pre_hook(see_input), outputs_of.register_forward_hook(see_output)]
    try:
        states_of(model, rows)
    finally:
        for handle in handles:
            handle.remove()
    return seen["input"], seen["output"]
