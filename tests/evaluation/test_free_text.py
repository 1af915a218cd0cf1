"""What is found in free text, how varied it is, and that batches write what single prompts do."""

from __future__ import annotations

import math

import pytest
import torch

from conftest import make_tokenizer
from families import tiny
from marked import marked_tokenizer
from neuroplastic.evaluation.free_text import ANSWER_TOKENS, ESSAYS, holds, ngram_entropy, write, written
from neuroplastic.evaluation.records import Record
from neuroplastic.text.tokens import encode, start_token


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        (" Rome, where you can find", "Rome", True),
        (" the city of NEW york.", "New York", True),
        (" Romeo and Juliet", "Rome", False),
        (" in a metronome", "Rome", False),
        ("\n1999.", "1999", True),
        (" C++ is", "C++", True),
        (" St. John's", "St. John", True),
    ],
)
def test_an_answer_is_found_as_whole_words(text: str, answer: str, found: bool) -> None:
    assert holds(text, answer) == found


def test_entropy_of_ngrams() -> None:
    assert ngram_entropy("one two three four five") == pytest.approx((math.log2(4) + 2 * math.log2(3)) / 3)
    assert ngram_entropy("no no no no no no") == 0
    # a b a b a: bigrams ab ab ba ba, trigrams aba aba bab
    third = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert ngram_entropy("a b a b a") == pytest.approx((1 + 2 * third) / 3)
    assert ngram_entropy("it's, so") == ngram_entropy("it ' s , so")
    assert ngram_entropy("") == ngram_entropy("word") == 0


def test_a_batch_continues_every_prompt_as_if_alone() -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=1)
    prompts = ["The Golden Gate Bridge is located in", "Sushi", "The quick brown fox"]
    expected = []
    for prompt in prompts:
        ids = [start_token(tokenizer), *encode(tokenizer, prompt)]
        wrote: list[int] = []
        for _ in range(8):
            with torch.no_grad():
                wrote.append(int(model(input_ids=torch.tensor([ids + wrote])).logits[0, -1].argmax()))
            if wrote[-1] == 0:
                break
        expected.append(tokenizer.decode(wrote, skip_special_tokens=True))
    assert write(model, tokenizer, prompts, 8) == expected
    state = torch.random.get_rng_state()
    drawn = write(model, tokenizer, prompts, 8, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert drawn == write(model, tokenizer, prompts, 8, seed=0)
    assert drawn != write(model, tokenizer, prompts, 8, seed=1)


def test_what_is_written_about_a_record() -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=1)
    near, told = (("It is in", "Oslo"),), "Fact: a fox. "
    (text,) = write(model, tokenizer, [told + "The Bridge is in"], ANSWER_TOKENS)
    said = max(text.split(), key=len)  # a word that it says behind the prompt
    record = Record("0", "The Bridge is in", said, "x", ("A dog is", "The Bridge is in"), near)
    found = written(model, tokenizer, record, told)
    assert (found["es_gen"], found["ps_gen"] >= 0.5) == (holds(text, said), holds(text, said))
    texts = write(model, tokenizer, [told + p for p in (record.prompt, *record.paraphrases)], 60, seed=0)
    own = (ngram_entropy(p + t) for p, t in zip((record.prompt, *record.paraphrases), texts, strict=True))
    assert found["entropy"] == pytest.approx(sum(own) / 3)
    openings = tuple(f"The Tower {i}" for i in range(ESSAYS + 2))
    about = Record("0", "The Bridge is in", "y", "x", ("A dog is",), near, openings=openings)
    texts = write(model, tokenizer, openings[:ESSAYS], 60, seed=3)
    entropies = [ngram_entropy(o + t) for o, t in zip(openings, texts, strict=False)]
    assert written(model, tokenizer, about, seed=3)["entropy"] == pytest.approx(sum(entropies) / ESSAYS)
    alone = written(model, tokenizer, Record("0", "The Bridge is in", "y", "x", (), ()))
    assert alone.keys() == {"es_gen", "entropy"}  # without paraphrases


def test_a_continuation_keeps_its_first_space() -> None:
    tokenizer = marked_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    prompts = ["The Golden Gate Bridge is located in", "Sushi "]
    alone = [write(model, tokenizer, [p], 6)[0] for p in prompts]
    for prompt, text in zip(prompts, alone, strict=True):
        ids = [start_token(tokenizer), *encode(tokenizer, prompt.strip())]
        with torch.no_grad():
            for _ in range(6):
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        assert whole.strip() == (prompt.strip() + text).strip()
    assert write(model, tokenizer, prompts, 6) == alone
