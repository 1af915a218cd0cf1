"""The probability that a word continues a prompt."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from conftest import make_tokenizer
from families import tiny
from marked import marked_tokenizer
from neuroplastic import NPTError
from neuroplastic.text.tokens import encode, start_token
from neuroplastic.text.word_probabilities import word_probabilities


@pytest.mark.parametrize("make", [make_tokenizer, marked_tokenizer])
def test_words_that_begin_alike_are_told_apart(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = make()
    model = tiny("llama", vocab_size=len(tokenizer))
    prompt, words = "The Eiffel Tower was built in", ["1889", " 1925", "Madrid", "San Francisco", "San Diego"]
    found = word_probabilities(model, tokenizer, prompt + " ", words)
    expected = [said_after(model, tokenizer, prompt, f" {word.strip()}") for word in words]
    assert found == pytest.approx(expected, rel=1e-4)
    assert len({f"{p:.3e}" for p in found}) == len(words)
    with pytest.raises(NPTError, match="a word to track is empty"):
        word_probabilities(model, tokenizer, prompt, ["a", " "])


def said_after(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, question: str, answer: str) -> float:
    """The product of the probabilities of the tokens that the whole text has beyond the question."""
    ids = [start_token(tokenizer), *encode(tokenizer, question + answer)]
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    first = 1 + len(encode(tokenizer, question))
    return float(sum(logprobs[i - 1, ids[i]] for i in range(first, len(ids))).exp())
