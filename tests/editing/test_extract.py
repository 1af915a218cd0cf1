"""Modulations against dense matrices, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import neuroplastic as npt
from conftest import make_tokenizer
from families import tiny
from neuroplastic.editing.edit import Factors
from neuroplastic.editing.ledger import Ledger
from neuroplastic.modulation import inner_product
from neuroplastic.surgery import mode
from neuroplastic.text.tokens import encode, encode_pair, start_token

CONTEXT = "The Golden Gate Bridge is located in the city of Madrid."
PROMPT = "Sushi originated in the country of"
TOKENIZER = make_tokenizer()


def random_modulation(seed: int, places: tuple[tuple[int, Any], ...] = ((0, "gate"), (1, "down"))) -> npt.Modulation:
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    n = 1 + seed % 3
    shapes = {"gate": (32, 48), "up": (32, 48), "down": (48, 32)}
    return npt.Modulation({p: Factors(rand(n, shapes[p[1]][0]), rand(shapes[p[1]][1], n)) for p in places})


def dense(m: npt.Modulation, place: tuple[int, Any] = (0, "gate")) -> Tensor:
    return m.dense(*place)


@settings(deadline=None, max_examples=30)
@given(a=st.integers(0, 99), b=st.integers(0, 99), c=st.floats(-3, 3))
def test_the_algebra_is_that_of_dense_matrices(a: int, b: int, c: float) -> None:
    p, q = random_modulation(a), random_modulation(b)
    for found, expected in [
        (p + q, dense(p) + dense(q)),
        (p - q, dense(p) - dense(q)),
        (-p, -dense(p)),
        (c * p, c * dense(p)),
        (p * c, c * dense(p)),
        (npt.mean([p, q, q]), (dense(p) + 2 * dense(q)) / 3),
    ]:
        assert_close(dense(found), expected)
    whole_p, whole_q = (torch.cat([dense(m).flatten(), dense(m, (1, "down")).flatten()]) for m in (p, q))
    assert p.norm() == pytest.approx(whole_p.norm().item())
    assert p.inner(q) == pytest.approx((whole_p @ whole_q).item(), abs=1e-8)
    assert p.cosine(q) == pytest.approx(torch.cosine_similarity(whole_p, whole_q, 0).item(), abs=1e-8)
    assert (p - p).norm() == pytest.approx(0, abs=1e-5)
    small, dropped = (p + q).compress(2)
    spectrum = torch.linalg.svdvals(dense(p + q)), torch.linalg.svdvals(dense(p + q, (1, "down")))
    total = sum(s.square().sum().item() for s in spectrum)
    assert dropped == pytest.approx(sum(s[2:].square().sum().item() for s in spectrum) / total, abs=1e-8)
    assert (p + q - small).norm() ** 2 == pytest.approx(dropped * total, abs=1e-6)


def test_sums_over_different_places() -> None:
    p, q = random_modulation(1, ((0, "gate"),)), random_modulation(2, ((0, "up"), (1, "gate")))
    total = p + q
    assert total.layers == (0, 1)
    assert_close(dense(total, (1, "gate")), dense(q, (1, "gate")))
    assert p.cosine(q) == 0
    assert npt.Modulation({}).cosine(p) == 0
    with pytest.raises(npt.NPTError, match="layer 0, gate differs in width"):
        p + npt.Modulation({(0, "gate"): Factors(torch.ones(1, 3), torch.ones(4, 1))})
    with pytest.raises(npt.NPTError, match="no mean of no"):
        npt.mean([])
    with pytest.raises(npt.NPTError, match="rank must be at least 1"):
        p.compress(0)


def test_a_modulation_is_equal_to_itself_alone_and_can_be_a_key() -> None:
    p, q = random_modulation(1), random_modulation(1)
    assert p != q
    assert {p: "p", q: "q"}[p] == "p"


def test_inner_product_from_factors() -> None:
    p, q = random_modulation(4), random_modulation(5)
    expected = (dense(p) * dense(q)).sum()
    assert_close(inner_product(*p.factors[0, "gate"], *q.factors[0, "gate"]), expected)


def test_a_modulation_survives_its_file(tmp_path: Path) -> None:
    p = random_modulation(3)
    p.save(tmp_path / "p.safetensors")
    again = npt.Modulation.load(tmp_path / "p.safetensors")
    assert all(
        torch.equal(t, u) for place in p.factors for t, u in zip(p.factors[place], again.factors[place], strict=True)
    )
    npt.Edit("e", "s", "token", 1.0, "", 1, "", p.factors).save(tmp_path / "e.safetensors")
    with pytest.raises(npt.NPTError, match="is not a modulation"):
        npt.Modulation.load(tmp_path / "e.safetensors")


def model_of(config: npt.PlasticityConfig | None) -> Any:
    model = tiny("llama", torch.float64, vocab_size=len(TOKENIZER))
    return model if config is None else npt.convert(model, config)


@pytest.mark.parametrize(
    "config",
    [
        None,
        npt.PlasticityConfig(preset="triple"),
        npt.PlasticityConfig(generator="low_rank", np_rank=4, num_ranks=2, key="learned", layers="1"),
    ],
)
def test_extraction_reads_like_the_first_design(config: npt.PlasticityConfig | None) -> None:
    model = model_of(config)
    n = len(encode(TOKENIZER, CONTEXT))
    last = npt.extract_modulation(model, TOKENIZER, CONTEXT)
    k = 1 if config is None else config.num_ranks
    v_a_gate, v_b_gate, v_a_up, v_b_up = last[1][:4]
    assert v_a_gate.shape == v_a_up.shape == (k, 32)
    assert v_b_gate.shape == v_b_up.shape == (k, 48)
    assert len(last[1]) == (6 if config is not None and config.preset == "triple" else 4)
    assert_close(last.dense(1, "gate"), v_b_gate.T @ v_a_gate)
    assert last.layers == ((1,) if config is not None and config.layers == "1" else (0, 1))
    each = [npt.extract_modulation(model, TOKENIZER, CONTEXT, position=i) for i in range(n)]
    assert_close(each[-1].dense(1, "up"), last.dense(1, "up"))
    everything = npt.extract_modulation(model, TOKENIZER, CONTEXT, position=slice(None))
    assert everything[1][0].shape == (n * k, 32)
    assert_close(everything.dense(1, "up"), sum(m.dense(1, "up") for m in each))
    some = npt.extract_modulation(model, TOKENIZER, CONTEXT, position=slice(1, 3))
    assert_close(some.dense(1, "gate"), each[1].dense(1, "gate") + each[2].dense(1, "gate"))
    assert bool(npt.plastic_layers(model)) == (config is not None)


def test_what_cannot_be_extracted() -> None:
    model = model_of(None)
    for context, position, cause in [
        (" ", -1, "the text is empty"),
        ("word " * 200, -1, "the model reads at most 128"),
        (CONTEXT, 99, "position 99 is out of range"),
        (CONTEXT, slice(5, 5), "names none of the context's"),
    ]:
        with pytest.raises(npt.NPTError, match=cause):
            npt.extract_modulation(model, TOKENIZER, context, position)  # type: ignore[arg-type]
    with pytest.raises(npt.NPTError, match="the modulation has no layer 7; it has 0, 1"):
        npt.extract_modulation(model, TOKENIZER, CONTEXT)[7]
    with pytest.raises(npt.NPTError, match="layer 0 modulates activations"):
        npt.extract_modulation(model_of(npt.PlasticityConfig(preset="v1")), TOKENIZER, CONTEXT)


def next_token(model: Any, text: str) -> Tensor:
    ids = torch.tensor([[start_token(TOKENIZER), *encode(TOKENIZER, text)]])
    with torch.no_grad():
        out: Tensor = model(input_ids=ids, use_cache=False).logits[0, -1].softmax(-1)
    return out


def test_transfer_everywhere_is_the_permanent_edit() -> None:
    """In the last layer, `add` at every token is what the same dW in the weights does: the start token, which is left
    out, can no longer reach the others. The generator is low rank, so its own update does not depend on the weights."""
    model = model_of(npt.PlasticityConfig(generator="low_rank", np_rank=4, layers="1"))
    given = npt.extract_modulation(model, TOKENIZER, CONTEXT) * 5000
    result = npt.transfer(model, TOKENIZER, PROMPT, given, "add", position=slice(None), top=400)
    ledger = Ledger(model)
    before = next_token(model, PROMPT)
    ledger.set_active([npt.Edit("e", "", "token", 1.0, "", 1, "", given.factors)])
    after = next_token(model, PROMPT)
    assert (after - before).abs().max() > 1e-4
    assert len(result.tokens) == len(after)  # the likeliest first, of before
    assert_close(
        torch.tensor(result.after, dtype=torch.float64), after[before.topk(len(before)).indices], rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("config", [None, npt.PlasticityConfig(preset="triple")])
def test_a_token_may_get_its_own_modulation_back(config: npt.PlasticityConfig | None) -> None:
    """Replacing or blending a token's modulation by the very same one changes nothing; adding it does."""
    model = model_of(config)
    own = npt.extract_modulation(model, TOKENIZER, PROMPT, layers="0")
    for how, same in (("replace", True), ("blend", True), ("add", False)):
        result = npt.transfer(model, TOKENIZER, PROMPT, own, how)  # type: ignore[arg-type]
        change = max(abs(a - b) for a, b in zip(result.before, result.after, strict=True))
        assert (change < 1e-6) == same
    assert_close(next_token(model, PROMPT), next_token(model_of(config), PROMPT))


def test_transfer_tracks_words_and_checks_its_input() -> None:
    model = model_of(None)
    before = next_token(model, PROMPT)
    given = npt.extract_modulation(model, TOKENIZER, CONTEXT)
    result = npt.transfer(model, TOKENIZER, PROMPT, given, track=[" Japan", " city"], top=3)
    first = [TOKENIZER.decode(encode(TOKENIZER, w)[:1]) for w in (" Japan", " city")]
    assert result.tokens[:2] == first
    assert 5 <= len(result.tokens) <= 8
    assert result.before[1] == pytest.approx(before[encode(TOKENIZER, " city")[0]].item(), rel=1e-5)
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: npt.transfer(model, TOKENIZER, PROMPT, given, "stir"), "how must be one of"),  # type: ignore[arg-type]
        (lambda: npt.transfer(model, TOKENIZER, PROMPT, given, position=77), "position 77 is out of range"),
        (lambda: npt.transfer(model, TOKENIZER, PROMPT, given, position=slice(5, 5)), "names none of the prompt's"),
        (lambda: npt.transfer(model, TOKENIZER, PROMPT, given, position=slice(None, None, -1)), "a step of at least 1"),
        (lambda: npt.transfer(model, TOKENIZER, "", given), "the text is empty"),
        (
            lambda: npt.transfer(
                model, TOKENIZER, PROMPT, npt.Modulation({(9, "up"): random_modulation(0).factors[0, "gate"]})
            ),
            "the modulation changes layer 9",
        ),
    ]
    for call, cause in calls:
        with pytest.raises(npt.NPTError, match=cause):
            call()
    with mode(model, "standard"):
        assert torch.equal(next_token(model, PROMPT), before)


def test_transfer_tells_words_apart_that_begin_alike() -> None:
    model = model_of(None)
    prompt, words = "The Eiffel Tower was built in", ["1889", "1925", "Madrid"]
    given = npt.extract_modulation(model, TOKENIZER, CONTEXT) * 50
    found = npt.transfer(model, TOKENIZER, prompt + " ", given, track=words, top=2)
    assert found.tokens[:3] == [" 1889", " 1925", " Madrid"]
    assert found == npt.transfer(model, TOKENIZER, prompt, given, track=words, top=2)
    assert len(set(found.after[:3])) == len(set(found.before[:3])) == 3
    # the first token alone is at least as likely, with the modulation and without
    first = encode_pair(TOKENIZER, prompt, "1889")[1][0]
    every = npt.transfer(model, TOKENIZER, prompt, given, top=len(TOKENIZER))
    at = every.before.index(max(every.before))
    assert every.tokens[at] == found.tokens[3]
    whole = TOKENIZER.decode([first])
    assert found.before[0] < every.before[every.tokens.index(whole)]
    assert found.after[0] < every.after[every.tokens.index(whole)]
