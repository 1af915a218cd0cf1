"""Where an injector's training starts: the regression against explicit formulas, and what it does to an injector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

import neuroplastic as npt
from facts import facts
from neuroplastic.editing.injector import Injector, InjectorConfig, Reading
from neuroplastic.training.closed_form import Examples, find_examples, fit_values, ridge, suitable
from neuroplastic.training.lessons import Topic, read_topics


def test_ridge_is_the_weighted_minimum() -> None:
    torch.manual_seed(0)
    n, d, o, lam = 12, 30, 4, 0.5
    x, u, p = torch.randn(n, d).double(), torch.randn(n, o).double(), torch.rand(n).double() + 0.1
    fit, weight = ridge(x, u, p, lam), p / p.mean()
    scale = ((x - fit.offset).square().mean(0).sqrt() + 1e-6) * d**0.5
    z, target = (x - fit.offset) / scale, u - fit.mean
    W = torch.linalg.solve((z.T * weight) @ z + lam * torch.eye(d), (z.T * weight) @ target)
    assert_close(fit(x), fit.mean + z @ W)
    assert_close(fit.mean, (weight[:, None] * u).sum(0) / weight.sum())


def injector(**options: int) -> Injector:
    torch.manual_seed(1)
    shape: dict[str, Any] = {"width": 8, "heads": 2, "pools": 2, "straight": 24, "hidden": 4, "max_length": 8} | options
    return Injector(InjectorConfig((0, 1), (-1, 0), (1.0, 2.0), 6, 10, **shape)).eval()


def test_the_injector_gives_what_was_fitted() -> None:
    """Facts whose values are a linear function of the answer: an injector of full rank says them exactly."""
    torch.manual_seed(2)
    made, n = injector(), 60
    x = torch.randn(n, 12)
    delta = torch.einsum("nd,dlo->nlo", x, torch.randn(12, 2, 6)) + 0.5
    found = fit_values(made, Examples(x, delta, torch.ones(n)))
    assert found["cosine"] > 0.9
    told = torch.tensor([[False, True, True]])
    features = torch.zeros(n, 3, 12)
    features[:, 2] = x
    reading = Reading(
        told.expand(n, 3), torch.tensor([[False, False, True]]).expand(n, 3), features, torch.ones(n, 2, 3, 10), None
    )
    with torch.no_grad():
        _, V = made(reading)
    cosine = torch.nn.functional.cosine_similarity(V, delta, dim=-1)
    assert cosine.min() > 0.5
    assert cosine.mean() > 0.95
    assert_close(normalize(V, dim=-1).norm(dim=-1), torch.ones(n, 2))
    assert_close(V.norm(dim=-1).mean(0), delta.norm(dim=-1).mean(0), rtol=0.1, atol=0.1)


def test_too_few_facts_are_refused() -> None:
    with pytest.raises(npt.NPTError, match="too few to fit"):
        fit_values(injector(), Examples(torch.randn(5, 12), torch.randn(5, 2, 6), torch.ones(5)))


def test_a_search_goes_on_where_it_was_cut_off(workspace: npt.Workspace, tmp_path: Path) -> None:
    topics = suitable(read_topics(facts(tmp_path / "f.jsonl", 40))[0])
    config = InjectorConfig.fitting(workspace.model, workspace.engine.text[0], width=16, heads=2)
    made = Injector(config)
    first = find_examples(workspace.engine, made, topics[:20], tmp_path / "e")
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "e").rglob("*.safetensors")}
    again = find_examples(workspace.engine, made, topics[:20], tmp_path / "e")
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "e").rglob("*.safetensors")} == files
    other = find_examples(workspace.engine, made, topics[20:40], tmp_path / "e")
    assert not torch.equal(other.x, first.x)  # other facts find nothing of these
    assert len(first.x) == 20
    assert first.delta.shape[1:] == (len(config.layers), config.d_model)


def test_only_facts_with_a_subject_in_two_wordings_serve() -> None:
    good = Topic(("Ann speaks", "The tongue of Ann is"), "Dutch", (), "Ann")
    assert suitable(
        [good, Topic(("Ann speaks", "She speaks"), "Dutch", (), "Ann"), Topic(("a", "b"), "c", (), None)]
    ) == [good]
