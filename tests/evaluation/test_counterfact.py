"""The figures of CounterFact on hand-made numbers, and from a model."""

from __future__ import annotations

import pytest
import torch

from conftest import make_tokenizer
from families import tiny
from marked import marked_tokenizer
from neuroplastic.evaluation.answer_scores import ask
from neuroplastic.evaluation.counterfact import score, shares
from neuroplastic.evaluation.records import Record
from neuroplastic.text.tokens import encode, start_token


def test_shares_of_prompts() -> None:
    """edit | two paraphrases | three neighbours"""
    new = torch.tensor([0.6, 0.5, 0.2, 0.1, 0.9, 0.3])
    true = torch.tensor([0.5, 0.3, 0.5, 0.5, 0.1, 0.3])
    new_right = torch.tensor([True, True, False, False, True, False])
    true_right = torch.tensor([False, False, True, True, False, False])
    found = shares(new.log(), true.log(), new_right, true_right, paraphrases=2)
    assert found == pytest.approx(
        {
            "ES": 1.0,
            "PS": 0.5,
            "NS": 1 / 3,
            "EM": 0.1,
            "PM": -0.05,
            "NM": (0.4 - 0.8 + 0.0) / 3,
            "ES_acc": 1.0,
            "PS_acc": 0.5,
            "NS_acc": 1 / 3,
        }
    )


def test_answers_are_those_of_single_unpadded_passes() -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    pairs = [("The Golden Gate Bridge is in", "Madrid"), ("Sushi", "the country of Japan"), ("It is in", "a")]
    pairs += [("Sushi", "the"), ("Sushi", "the fox"), ("The Golden Gate Bridge is in", "the city of Paris")]
    found = ask(model, tokenizer, pairs)
    for i, (prompt, answer) in enumerate(pairs):
        before, wanted = [start_token(tokenizer), *encode(tokenizer, prompt)], encode(tokenizer, f" {answer}")
        with torch.no_grad():
            said = model(input_ids=torch.tensor([before + wanted])).logits[0].log_softmax(-1)[len(before) - 1 : -1]
        logprob = sum(said[j, t].item() for j, t in enumerate(wanted)) / len(wanted)
        assert found.logprob[i].item() == pytest.approx(logprob, rel=1e-4)
        assert found.likeliest[i] == said.argmax(-1).tolist()
        right = [s == t for s, t in zip(found.likeliest[i], wanted, strict=True)]
        assert found.accuracy[i].item() == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("told", ["", "Fact: it is. "])
def test_the_score_of_a_record(told: str) -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    near, hop = (("It is in", "Japan"), ("One is in", "Oslo")), (("Where is it?", "the south"),)
    record = Record("0", "The Bridge is in", "Madrid", "Japan", ("Sushi is in",), near, None, hop)
    asked = [("The Bridge is in", "Japan"), ("Sushi is in", "Japan"), *near]
    asked = [(told + q, a) for q, a in asked]
    new, true = (ask(model, tokenizer, pairs) for pairs in ([(q, "Madrid") for q, _ in asked], asked))
    expected = shares(new.logprob, true.logprob, new.accuracy == 1, true.accuracy == 1, 1)
    distracted = [(f"{told}The Bridge is in Madrid. {q}", a) for q, a in near]
    new, true = (ask(model, tokenizer, p) for p in ([(q, "Madrid") for q, _ in distracted], distracted))
    expected["NS_told"] = (true.logprob > new.logprob).float().mean().item()
    expected["portability"] = ask(model, tokenizer, [(told + hop[0][0], hop[0][1])]).accuracy.item()
    assert score(model, tokenizer, record, told, []) == pytest.approx(expected, abs=1e-6)


def test_answers_follow_their_prompts_as_text_does() -> None:
    """No mark of the tokenizer's between them, no space in scripts without one, and one where the prompt ends in it."""
    tokenizer = marked_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    pairs = [("Sushi is from ", "Italy"), ("埃菲尔铁塔位于", "巴黎")]
    found = ask(model, tokenizer, pairs)
    for i, (prompt, answer) in enumerate((("Sushi is from", " Italy"), ("埃菲尔铁塔位于", "巴黎"))):
        ids = [start_token(tokenizer), *encode(tokenizer, prompt + answer)]
        first = 1 + len(encode(tokenizer, prompt))
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        own = torch.stack([logprobs[at - 1, ids[at]] for at in range(first, len(ids))])
        assert len(found.likeliest[i]) == len(own)
        assert found.logprob[i].item() == pytest.approx(own.mean().item(), rel=1e-4)
