from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from conftest import make_tokenizer
from families import tiny
from marked import marked_tokenizer
from neuroplastic.editing.fact import asked
from neuroplastic.editing.recall import Query, recall
from neuroplastic.editing.targets import rows_of
from neuroplastic.text.tokens import encode, start_token


def test_recall_is_what_the_model_says() -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    question = "The Eiffel Tower is located in the city of"
    other = Query("Sushi is from Italy.", "Sushi is from", " Italy")
    found, _ = recall(model, tokenizer, [Query(f"{question} Paris.", question, " Paris"), other], [[5, 6, 7], [8, 9]])

    def logprobs(text: str) -> tuple[list[int], torch.Tensor]:
        ids = [start_token(tokenizer), *encode(tokenizer, text)]
        with torch.no_grad():
            return ids, model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)

    ids, said = logprobs("The Eiffel Tower is located in the city of Paris.")
    mean = sum(said[i, t].item() for i, t in enumerate(ids[1:])) / (len(ids) - 1)
    assert found.statement_logprob == pytest.approx(mean, rel=1e-5)
    ids, said = logprobs("The Eiffel Tower is located in the city of Paris")
    n = len(encode(tokenizer, " Paris"))
    last = range(len(ids) - n, len(ids))
    expected = torch.stack([said[i - 1, ids[i]] for i in last]).sum().exp().item()
    assert found.answer_probability == pytest.approx(expected, rel=1e-4)
    assert found.holds == all(said[i - 1].argmax() == ids[i] for i in last)
    elsewhere = []
    for prefix in ([5, 6, 7], [8, 9]):
        with torch.no_grad():
            behind = [ids[0], *prefix, *ids[1:]]
            logits = model(input_ids=torch.tensor([behind])).logits[0].log_softmax(-1)
        elsewhere.append(sum(logits[i - 1, behind[i]].item() for i in range(len(behind) - n, len(behind))))
    assert found.elsewhere_probability == pytest.approx(torch.tensor(elsewhere).exp().mean().item(), rel=1e-4)
    (alone,) = recall(model, tokenizer, [Query(f"{question} Paris.", question, " Paris")])
    assert alone.elsewhere_probability == alone.answer_probability == pytest.approx(found.answer_probability, rel=1e-4)


def test_a_statement_that_says_question_and_answer_is_read_once_for_both() -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    question, answer = "Sushi is from", " Italy"
    read: list[int] = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    (told,) = recall(model, tokenizer, [Query(f"{question}{answer}.", question, answer)])
    (apart,) = recall(model, tokenizer, [Query("Pizza is from Italy.", question, answer)])
    assert read == [1, 2]
    assert told.answer_probability == pytest.approx(apart.answer_probability, rel=1e-5)
    assert told.holds == apart.holds


def test_the_answer_is_read_as_its_text_would_be() -> None:
    """Also by a tokenizer that puts a mark in front of each text that it is given alone."""
    tokenizer = marked_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    question, answer = "Sushi is from", " Italy"
    (found,) = recall(model, tokenizer, [Query("Pizza is from Italy.", question, answer)])
    assert found.answer_probability == pytest.approx(said_after(model, tokenizer, question, answer), rel=1e-4)
    (row,), _ = rows_of(tokenizer, [asked(question, "Italy", subject="Sushi")], ())
    assert [*row.ids, row.answer[-1]] == [start_token(tokenizer), *encode(tokenizer, question + answer)]


def said_after(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, question: str, answer: str) -> float:
    """The product of the probabilities of the tokens that the whole text has beyond the question."""
    ids = [start_token(tokenizer), *encode(tokenizer, question + answer)]
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    first = 1 + len(encode(tokenizer, question))
    return float(sum(logprobs[i - 1, ids[i]] for i in range(first, len(ids))).exp())
