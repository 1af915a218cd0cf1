"""What a model writes by itself: greedy, in batches, to the end of a turn or of a line."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from conftest import make_tokenizer
from families import FAMILIES, tiny
from neuroplastic.errors import NPTError
from neuroplastic.evaluation.replies import (
    LARGEST_GROUP,
    NEW_TOKENS,
    Group,
    Reply,
    replies,
    replies_to_groups,
    turn_ends,
)
from neuroplastic.text.generation import generate
from neuroplastic.text.tokens import batch, encode, start_token
from serving import CHAT_TEMPLATE

PROMPTS = ["The Golden Gate Bridge is located in", "Sushi", "The quick brown fox", "Pizza\n", "watching it", "is"]


def alone(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[int], ends: set[int]) -> Reply:
    """Token by token, without a cache or a batch."""
    new: list[int] = []
    while len(new) < NEW_TOKENS:
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax())
        if token in ends:
            break
        new.append(token)
        if "\n" in tokenizer.decode(new).lstrip():
            break
    return Reply(tokenizer.decode(new, skip_special_tokens=True).lstrip().split("\n")[0], new)


def test_a_batch_writes_what_each_prompt_alone_gets() -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=1)
    rows = [[start_token(tokenizer), *encode(tokenizer, p)] for p in PROMPTS]
    model.generation_config.repetition_penalty = 3.0  # a setting of the model's own, which is ignored
    plain = replies(model, tokenizer, rows)
    assert plain == [alone(model, tokenizer, r, {0}) for r in rows]
    assert plain == replies(model, tokenizer, rows)
    assert any(len(r.tokens) == NEW_TOKENS for r in plain)
    # a token that it writes becomes the end of its turn, another one the end of a line
    end = plain[0].tokens[3]
    model.generation_config.eos_token_id = [0, end]
    ended = replies(model, tokenizer, rows)
    assert ended == [alone(model, tokenizer, r, {0, end}) for r in rows]
    assert ended[0].tokens == plain[0].tokens[: plain[0].tokens.index(end)]


def test_a_line_ends_a_reply() -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=1)
    rows = [[start_token(tokenizer), *encode(tokenizer, p)] for p in PROMPTS]
    before = [r.tokens for r in replies(model, tokenizer, rows)]
    (newline,) = encode(tokenizer, "\n")
    often = max({t for r in before for t in r}, key=lambda t: sum(r.count(t) for r in before))
    with torch.no_grad():  # the token that it writes most often is the end of a line from now on
        head = model.get_output_embeddings().weight
        head[[newline, often]] = head[[often, newline]]
    found = replies(model, tokenizer, rows)
    assert found == [alone(model, tokenizer, r, {0}) for r in rows]
    assert any(r.tokens[-1] == newline and len(r.tokens) < NEW_TOKENS for r in found)
    assert all("\n" not in r.text for r in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_are_those_of_generate(family: str) -> None:
    tokenizer = make_tokenizer()
    model = tiny(family, vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=1)
    rows = [[start_token(tokenizer), *encode(tokenizer, p)] for p in PROMPTS]
    free = [r.tokens for r in replies(model, tokenizer, rows)]
    # tokens that some rows write end a turn, so that rows finish at different times and leave the batch
    ends = sorted({0, *(tokens[n] for n, tokens in zip((2, 9, 20), free, strict=False) if len(tokens) > n)})
    model.generation_config.eos_token_id = ends
    ids, mask = batch(rows, 0, model.device, left=True)
    out = generate(model, ids, mask, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=ends, pad_token_id=0)
    wanted = []
    for row in out[:, ids.shape[1] :].tolist():
        row = row[: next((i for i, t in enumerate(row) if t in ends), len(row))]
        texts = [tokenizer.decode(row[: i + 1]).lstrip() for i in range(len(row))]
        wanted.append(row[: next((i + 1 for i, t in enumerate(texts) if "\n" in t), len(row))])
    found = [r.tokens for r in replies(model, tokenizer, rows)]
    assert found == wanted
    assert len({len(tokens) for tokens in found}) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_group_gets_the_same_tokens_in_whatever_company(dtype: torch.dtype) -> None:
    """A batch of all groups that are alike gives what each of them gets alone, though some finish early."""
    tokenizer = make_tokenizer()
    model = tiny("llama", dtype, vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=1)
    rows = [[start_token(tokenizer), *encode(tokenizer, p)] for p in PROMPTS]
    model.generation_config.eos_token_id = [0, replies(model, tokenizer, rows)[0].tokens[3]]
    groups = [rows[:1], rows[1:4], [], rows * 7, rows[4:], rows[:5], [[*rows[0], *rows[0]]]]
    alone = [replies(model, tokenizer, g) for g in groups]
    assert replies_to_groups(model, tokenizer, [Group(g, len(g)) for g in groups]) == alone
    assert replies_to_groups(model, tokenizer, []) == []
    some = replies_to_groups(model, tokenizer, [Group(g, len(g) // 2) for g in groups])
    assert some == [written[len(written) - len(written) // 2 :] for written in alone]
    assert len(some[3]) > LARGEST_GROUP  # this group is cut


def test_more_prompts_than_a_batch_holds_and_none() -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=1)
    rows = [[0, *encode(tokenizer, "fox" * (1 + i % 3))] for i in range(LARGEST_GROUP + 3)]
    found = replies(model, tokenizer, rows)
    assert found == found[:3] * (len(found) // 3) + found[: len(found) % 3]
    assert replies(model, tokenizer, []) == []
    with pytest.raises(NPTError, match="does not fit into the model's 128"):
        replies(model, tokenizer, [[0] * 100])


def test_what_ends_a_turn() -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer), eos_token_id=[0, 7], pad_token_id=1)
    assert turn_ends(model, tokenizer) == {0, 7}
    tokenizer.chat_template = CHAT_TEMPLATE  # which ends a turn with a line
    assert turn_ends(model, tokenizer) == {0, 7}
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|pad|>\n{% endfor %}"
    assert turn_ends(model, tokenizer) == {0, 1, 7}
