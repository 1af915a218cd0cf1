from __future__ import annotations

import pytest
import torch

from conftest import make_tokenizer
from families import tiny
from neuroplastic.editing.recall import question_and_answer, recall
from neuroplastic.text import encode, start_token


@pytest.mark.parametrize(
    ("statement", "question", "answer"),
    [
        ("The Bridge is in Madrid.", "The Bridge is in", " Madrid"),
        ("Is it in Madrid?! ", "Is it in", " Madrid"),
        ('He said "no".', "He said", ' "no'),
        ("It weighs 3.5", "It weighs", " 3.5"),
        ("Madrid", "", "Madrid"),
        ("...", "", "."),
        ("two  spaces\nand a line", "two  spaces\nand a", " line"),
    ],
)
def test_the_last_word_is_the_answer(statement: str, question: str, answer: str) -> None:
    assert question_and_answer(statement) == (question, answer)


def test_recall_is_what_the_model_says() -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    found = recall(model, tokenizer, "The Eiffel Tower is located in the city of Paris.")

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
