"""The metrics on hand-made numbers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import make_tokenizer
from families import tiny
from neuroplastic import NPTError
from neuroplastic.evaluation.counterfact import (
    Score,
    harmonic,
    read_records,
    score,
    shares,
    summary,
    target_logprobs,
)
from neuroplastic.evaluation.records import Record
from neuroplastic.text import encode, start_token

FULL: dict[str, Any] = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} is in",
        "subject": "The Bridge",
        "target_new": {"str": "Madrid"},
        "target_true": {"str": "Oslo"},
    },
    "paraphrase_prompts": ["One finds it in", "It stands in"],
    "neighborhood_prompts": ["The Tower is in", "The Gate is in", "The Wall is in"],
}


FLAT: dict[str, Any] = {
    "prompt": "The Bridge is in",
    "target_new": "Madrid",
    "ground_truth": "Oslo",
    "rephrase_prompt": "One finds the Bridge in",
    "locality_prompt": "The Tower is in",
    "locality_ground_truth": "Rome",
}


def test_shares_of_prompts() -> None:
    """edit | two paraphrases | three neighbours"""
    new = torch.tensor([0.6, 0.5, 0.2, 0.1, 0.9, 0.3])
    true = torch.tensor([0.5, 0.3, 0.5, 0.5, 0.1, 0.3])
    new_right = torch.tensor([True, True, False, False, True, False])
    true_right = torch.tensor([False, False, True, True, False, False])
    found = shares(new.log(), true.log(), new_right, true_right, paraphrases=2)
    assert (found.es, found.ps, found.ns) == (1.0, 0.5, pytest.approx(1 / 3))
    assert (found.em, found.pm) == (pytest.approx(0.1), pytest.approx(-0.05))
    assert found.nm == pytest.approx((0.4 - 0.8 + 0.0) / 3)
    assert (found.es_acc, found.ps_acc, found.ns_acc) == (1.0, 0.5, pytest.approx(1 / 3))


def test_the_harmonic_mean() -> None:
    assert harmonic(1, 1, 1) == 1
    assert harmonic(1, 0.5, 0.25) == pytest.approx(3 / 7)
    assert harmonic(1, 1, 0) == 0


def test_the_summary_has_means_and_intervals() -> None:
    rest = (0.1, 0.2, 0.3, 1.0, 0.5, 0.25)
    scores = [Score(1, 1, 0.5, *rest)] * 30 + [Score(0, 0.5, 0.5, *rest)] * 10
    found = summary(scores)
    assert found["ES"][0] == 0.75
    assert found["PS"][0] == 0.875
    assert found["NS"] == (0.5, 0.5, 0.5)
    assert found["S"][0] == pytest.approx(harmonic(0.75, 0.875, 0.5))
    low, high = found["ES"][1:]
    half = 1.96 * (0.75 * 0.25 / 40) ** 0.5
    assert low == pytest.approx(0.75 - half, abs=0.04)
    assert high == pytest.approx(0.75 + half, abs=0.04)
    assert found["NM"][0] == pytest.approx(0.3)
    assert found["ns_acc"][0] == 0.25
    assert summary(scores) == found


def test_records_are_read_and_malformed_ones_named(tmp_path: Path) -> None:
    broken = {k: v for k, v in FULL.items() if k != "paraphrase_prompts"} | {"case_id": 8}
    empty = FULL | {"case_id": 9, "neighborhood_prompts": []}
    (tmp_path / "r.json").write_text(json.dumps([FULL, broken, empty, "no"]))
    (record,), malformed = read_records(tmp_path / "r.json")
    assert (record.id, record.prompt, record.statement) == ("7", "The Bridge is in", "The Bridge is in Madrid.")
    assert (record.new, record.true, len(record.paraphrases), len(record.neighbours)) == ("Madrid", "Oslo", 2, 3)
    assert record.neighbours[0] == ("The Tower is in", "Oslo")
    assert record.subject == "The Bridge"
    assert set(malformed) == {"8", "9", "3"}
    (tmp_path / "flat.json").write_text(json.dumps([FLAT, FLAT | {"rephrase_prompt": 7}, FLAT | {"target_new": " "}]))
    (flat,), malformed = read_records(tmp_path / "flat.json")
    assert (flat.statement, flat.true, flat.paraphrases) == (record.statement, "Oslo", (FLAT["rephrase_prompt"],))
    assert flat.neighbours == (("The Tower is in", "Rome"),)
    assert set(malformed) == {"1", "2"}
    for content, cause in (("{}", "is not a list"), ("[", "cannot read")):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(NPTError, match=cause):
            read_records(tmp_path / "bad.json")
    with pytest.raises(NPTError, match="there is no file"):
        read_records(tmp_path / "none.json")


def test_logprobs_are_those_of_single_unpadded_passes() -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    pairs = [("The Golden Gate Bridge is in", "Madrid"), ("Sushi", "the country of Japan"), ("It is in", "a")]
    expected, likeliest = [], []
    for prompt, target in pairs:
        before, wanted = [start_token(tokenizer), *encode(tokenizer, prompt)], encode(tokenizer, f" {target}")
        with torch.no_grad():
            said = model(input_ids=torch.tensor([before + wanted])).logits[0].log_softmax(-1)
        expected.append(sum(said[len(before) - 1 + j, t].item() for j, t in enumerate(wanted)) / len(wanted))
        likeliest.append(all(said[len(before) - 1 + j].argmax() == t for j, t in enumerate(wanted)))
    found, right = target_logprobs(model, tokenizer, pairs)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert right.tolist() == likeliest
    near = (("It is in", "Japan"), ("One is in", "Oslo"))
    record = Record("0", pairs[0][0], "Madrid", "Japan", ("Sushi is in",), near)
    asked = [(record.prompt, "Japan"), ("Sushi is in", "Japan"), *near]
    sides = ([(q, "Madrid") for q, _ in asked], asked)
    (new, new_right), (true, true_right) = (
        [torch.cat(ts) for ts in zip(*(target_logprobs(model, tokenizer, [p]) for p in side), strict=True)]
        for side in sides
    )
    expected_score = shares(new, true, new_right, true_right, 1)
    assert asdict(score(model, tokenizer, record)) == pytest.approx(asdict(expected_score), abs=1e-6)
