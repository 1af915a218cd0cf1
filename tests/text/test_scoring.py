"""The one reader of answers, against a forward pass for each row, and its batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from families import FAMILIES, tiny
from neuroplastic.text.scoring import (
    COST_OF_A_BATCH,
    LARGEST_BATCH,
    Continuation,
    batches_of_like_length,
    longest_rows,
    score,
)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_each_row_alone(family: str) -> None:
    model = tiny(family, torch.float64)
    rows = [
        Continuation([0, 5, 6, 7], [8, 9]),
        Continuation([0, 5, 6, 7], [8, 10, 11]),
        Continuation([0], [5, 6]),
        Continuation([0, 3, 4, 5, 6, 7, 8, 9, 10, 11], [12]),
        Continuation([0, 5, 6, 7], [8, 9]),
    ]
    near: Any = {"atol": 1e-4, "rtol": 1e-4} if family == "gemma2" else {}  # its attention softmax is in float32
    for row, found in zip(rows, score(model, rows), strict=True):
        logits = model(input_ids=torch.tensor([[*row.read, *row.wanted]])).logits[0]
        own = logits[len(row.read) - 1 : -1].log_softmax(-1)
        assert_close(found.logprobs, own[range(len(row.wanted)), list(row.wanted)], **near)
        assert found.likeliest.tolist() == own.argmax(-1).tolist()
        assert found.right.tolist() == [a == b for a, b in zip(own.argmax(-1).tolist(), row.wanted, strict=True)]


def test_rows_are_read_off_those_that_begin_with_them() -> None:
    found = longest_rows([(1, 2), (1, 2, 3), (1,), (1, 3), (2, 3, 4), (1, 2)])
    assert found == {(1, 2): (1, 2, 3), (1, 2, 3): (1, 2, 3), (1,): (1, 2, 3), (1, 3): (1, 3), (2, 3, 4): (2, 3, 4)}


def test_batches_cost_no_more_than_any_other_cut() -> None:
    lengths = [10, 5, 130, 12, 6, 140, 7]
    batches = batches_of_like_length(lengths)
    assert [sorted(lengths[i] for i in b) for b in batches] == [[5, 6, 7, 10, 12], [130, 140]]

    def cost(cut: list[list[int]]) -> int:
        return sum(len(b) * max(lengths[i] for i in b) + COST_OF_A_BATCH for b in cut)

    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for mask in range(1 << (len(order) - 1)):
        cut: list[list[int]] = [[order[0]]]
        for n, i in enumerate(order[1:]):
            if mask >> n & 1:
                cut.append([])
            cut[-1].append(i)
        assert cost(batches) <= cost(cut)
    many = batches_of_like_length([3] * (2 * LARGEST_BATCH + 1))
    assert max(map(len, many)) <= LARGEST_BATCH
    assert sorted(i for b in many for i in b) == list(range(2 * LARGEST_BATCH + 1))
    assert batches_of_like_length([]) == []
