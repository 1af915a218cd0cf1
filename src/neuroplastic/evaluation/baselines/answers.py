"""Records as rows of tokens, what modules read and give in them, and how likely a model finds their answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...editing.fact import Fact, asked
from ...editing.targets import Row, rows_of
from ...errors import NPTError
from ...text.tokens import batch, encode, start_token, tokens_through
from ..methods import left_out

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..records import Record


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


def about_subjects(record: Record) -> tuple[list[Fact], str]:
    """The record's facts with the subject that the data marks, or else the name that is found in the question; of
    several only those with a name, and what is left out, if anything is.

    Raises NPTError if there is no subject in any.
    """
    if record.subject is not None and not record.sentence:
        return [asked(record.prompt, record.new, subject=record.subject)], ""
    facts = record.facts
    found = [f for f in facts if f.subject is not None]
    if not found:
        nameless = f"no name stands in {facts[0].question!r}" + (" and the other sentences" if len(facts) > 1 else "")
        raise NPTError(f"no subject is marked, and {nameless}; this method has to know one")
    without = len(facts) - len(found)
    return found, left_out(without, len(facts), "no name stands before the answer") if without else ""


def question_rows(tokenizer: PreTrainedTokenizerBase, fact: Fact, prefixes: Sequence[Sequence[int]] = ()) -> list[Row]:
    """A fact's question with its answer, alone and after each prefix; the key is the subject's last token."""
    rows, _ = rows_of(tokenizer, [fact], prefixes)
    return rows


def statement_row(tokenizer: PreTrainedTokenizerBase, record: Record) -> Row:
    """The whole statement, every token of which is to be learned."""
    ids = encode(tokenizer, record.statement)
    return Row([start_token(tokenizer), *ids[:-1]], ids, [])


def essence_row(tokenizer: PreTrainedTokenizerBase, fact: Fact) -> Row:
    """'{subject} is a', whose continuation should stay what it is (ROME, section 3.1): any token, all are looked at."""
    assert fact.subject is not None
    text = f"{fact.subject} is a"
    ids, last = encode(tokenizer, text), tokens_through(tokenizer, text, len(fact.subject))
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
    loss: Tensor = -(found * weight).sum() / len(rows)
    return loss


@torch.no_grad()
def read_at_keys(
    model: PreTrainedModel, rows: Sequence[Row], inputs_of: nn.Module, outputs_of: nn.Module
) -> tuple[Tensor, Tensor]:
    """What the one module reads, and what the other gives, at each row's key: [R, d_in] and [R, d_out]."""
    at = (torch.arange(len(rows)), torch.tensor([row.keys[0][0] for row in rows]))
    seen: dict[str, Tensor] = {}

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
