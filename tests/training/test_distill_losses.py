"""Losses, curriculum and packing against direct formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from families import tiny
from neuroplastic import NPTError, PlasticityConfig, TrainSettings
from neuroplastic.generators import Signals, make_generator
from neuroplastic.modulation import code_gram, self_gram, self_key
from neuroplastic.training import losses
from neuroplastic.training.packing import Packed, Shuffled, Streamed, from_texts, pack, stack
from neuroplastic.training.recipe import stage_at
from neuroplastic.training.settings import from_mapping, from_yaml


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


WEIGHT = torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.4, 0.0]], dtype=torch.float64)


def test_direct_loss() -> None:
    made, target = rand(2, 3, 5, seed=0), rand(2, 3, 5, seed=1)
    target[0, 0] *= 100  # an attention sink
    expected = 0.0
    for b in range(2):
        for t in range(3):
            own = float((target[b, t] ** 2).sum())
            expected += float(WEIGHT[b, t] * ((made[b, t] - target[b, t]) ** 2).sum()) / max(own, 6.0)
    assert float(losses.direct(made, target, torch.tensor(6.0), WEIGHT)) == pytest.approx(expected, rel=1e-6)
    made[:, 2] = 1e9  # where the weight is 0 nothing counts
    assert float(losses.direct(made, target, torch.tensor(6.0), WEIGHT)) == pytest.approx(expected, rel=1e-6)


def test_divergence() -> None:
    p, q = rand(2, 3, 7, seed=0), rand(2, 3, 7, seed=1)
    expected = 0.0
    for b in range(2):
        for t in range(3):
            a, c = p[b, t].softmax(0), q[b, t].softmax(0)
            expected += float(WEIGHT[b, t] * (a * (a / c).log()).sum())
    assert float(losses.divergence(p, q, WEIGHT)) == pytest.approx(expected, rel=1e-5)
    assert float(losses.divergence(p, p, WEIGHT)) == 0


@pytest.mark.parametrize("key", ["self", "learned"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_ranks": 3},
        {"num_ranks": 3, "rank_weights": "attention", "top_ranks": 2},
        {"gate": "learned", "gate_threshold": 0.5},
        {"heads": "projected"},
    ],
)
def test_regularisation_is_that_of_the_explicit_update(key: Any, settings: dict[str, Any]) -> None:
    config = PlasticityConfig(preset="triple", generator="low_rank", np_rank=4, key=key, **settings)
    generator = make_generator(config, 8, 12, layer=0).double()
    z, a = rand(2, 5, 8, seed=0), rand(2, 5, 8, seed=1)
    if config.gate == "learned":
        generator.gate.wanted.weight.data.normal_(generator=torch.Generator().manual_seed(0))  # type: ignore
        generator.gate.wanted.bias.data.zero_()  # type: ignore
    s = Signals(a=a, h=None, x=None, x_c=None, carried=None, mlp_input=z)
    project = torch.nn.Linear(8, 12, bias=False).double()
    with torch.no_grad():
        v_a, v_b = generator.factors("gate", project, z, s)  # type: ignore[operator]
        grams = generator.grams("gate", project, z, s)  # type: ignore[operator]
    dW = torch.einsum("...ko,...ki->...oi", v_b, v_a)
    assert_close(losses.frobenius(*grams), dW.square().sum((-1, -2)))
    assert_close(losses.vectors(*grams), v_a.square().sum((-1, -2)) + v_b.square().sum((-1, -2)))


def test_grams() -> None:
    z, code, M = rand(3, 6, seed=0), rand(3, 4, seed=1), rand(7, 8, seed=2)
    keys = self_key(z)[:, None].expand(3, 2, 6)
    assert_close(self_gram(z, 2), keys @ keys.mT)
    vectors = torch.stack([code @ M[:, :4].T, code @ M[:, 4:].T], 1)
    assert_close(code_gram(code, M, 2), vectors @ vectors.mT)


def test_participation() -> None:
    assert float(losses.participation(torch.eye(5))) == pytest.approx(5)
    assert float(losses.participation(torch.diag(torch.tensor([3.0, 0, 0])))) == pytest.approx(1)
    assert float(losses.participation(torch.zeros(3, 3))) == 0


def test_the_curriculum() -> None:
    found = [stage_at(step, 20, (0.5, 0.2, 0.3)) for step in range(20)]
    assert [stage for stage, _ in found] == ["teacher"] * 10 + ["mixed"] * 4 + ["student"] * 6
    assert [blend for _, blend in found[9:15]] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert {stage for stage, _ in (stage_at(s, 7, (0, 0, 1)) for s in range(7))} == {"student"}
    assert stage_at(6, 7, (1, 0, 0)) == ("teacher", 0.0)


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"curriculum": "0.8,0.1"}, "three shares that sum to 1"),
        ({"curriculum": "0.8,0.1,0.2"}, r"sum 1\.1"),
        ({"curriculum": "a,b,c"}, "three numbers"),
        ({"curriculum": (1.2, -0.2, 0)}, "three shares"),
        ({"init": "noise"}, "init must be one of"),
        ({"reg": "l1"}, "reg must be one of"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_length": 3}, "max_length must be at least 4"),
        ({"direct_weight": -1.0}, "direct_weight must not be negative"),
        ({"fidelity_weight": float("nan")}, "fidelity_weight must not be negative"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"precision": "fp16"}, "precision must be one of no, bf16, not 'fp16'"),
        ({"track": None}, "track must be one of none, trackio"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], cause: str) -> None:
    with pytest.raises(NPTError, match=cause):
        TrainSettings(**settings)


def test_a_recipe_is_read(tmp_path: Any) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("np-rank: 32\nlr: 1e-3\nlayers: top2\ncurriculum: [0.5, 0.25, 0.25]\n")
    found = from_yaml(TrainSettings, file)
    assert (found.np_rank, found.lr, found.layers, found.shares) == (32, 1e-3, "top2", (0.5, 0.25, 0.25))
    file.write_text("np_rnk: 32")
    with pytest.raises(NPTError, match="there is no setting 'np_rnk'; did you mean np_rank"):
        from_yaml(TrainSettings, file)
    file.write_text("layers: [14, 15]\nprecision: no\nsteps: 7\nlr: 1\ndata: null")
    found = from_yaml(TrainSettings, file)
    assert (found.layers, found.precision, found.steps, found.lr, found.data) == ("14,15", "no", 7, 1.0, None)


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ({"lr": "fast"}, "here: lr must be a number, not 'fast'"),
        ({"lr": True}, "here: lr must be a number, not True"),
        ({"np-rank": "64"}, "here: np-rank must be a whole number, not '64'"),
        ({"steps": 1.5}, "here: steps must be a whole number, not 1.5"),
        ({"steps": None}, "here: steps must be a whole number, not None"),
        ({"curriculum": None}, "curriculum must be three numbers"),
        ({"track": ["wandb"]}, "track must be one of"),
    ],
)
def test_values_of_a_recipe_are_of_their_kind(given: dict[str, Any], cause: str) -> None:
    with pytest.raises(NPTError, match=cause):
        from_mapping(TrainSettings, given, "here")


# --- packing ---------------------------------------------------------------------------------------------------------

TEXTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14, 15, 16, 17, 18, 19], [20]]


def test_rows_hold_every_token_once_and_in_order() -> None:
    packed = stack(list(pack(TEXTS, start=1, length=8)), 8)
    own = packed.ids[packed.valid & (packed.positions > 0)].tolist()
    assert own == [t for text in TEXTS for t in text]
    assert (packed.ids[packed.valid & (packed.positions == 0)] == 1).all()
    assert packed.ids[0].tolist() == [1, 5, 6, 7, 1, 8, 9, 0]  # one token's room is no room for a text
    assert packed.positions[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
    assert packed.valid[0].tolist() == [True] * 7 + [False]


def test_packed_texts_do_not_see_each_other_nor_padding() -> None:
    """Logits of a packed row are those of its texts read alone, whatever stands in the padding."""
    for family in ("llama", "gemma3_text"):
        model = tiny(family, torch.float64)
        packed = stack(list(pack(TEXTS, start=1, length=9)), 9)
        filled = torch.where(packed.valid, packed.ids, 50)
        with torch.no_grad():
            together = model(input_ids=packed.ids, position_ids=packed.positions, use_cache=False).logits
            other = model(input_ids=filled, position_ids=packed.positions, use_cache=False).logits
            assert_close(together[packed.valid], other[packed.valid])
            for row, start in (packed.positions.eq(0) & packed.valid).nonzero().tolist():
                end = start + 1
                while end < 9 and packed.valid[row, end] and packed.positions[row, end] > 0:
                    end += 1
                alone = model(input_ids=packed.ids[row : row + 1, start:end], use_cache=False).logits[0]
                assert_close(together[row, start:end], alone)


def test_rows_are_shuffled_anew_in_every_epoch_and_found_again() -> None:
    source = from_texts([[i, i] for i in range(3, 13)], start=1, length=3, seed=4)
    assert isinstance(source, Shuffled)
    epochs = [source.rows(10 * e, 10).ids[:, 1].tolist() for e in range(3)]
    assert all(sorted(e) == list(range(3, 13)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3
    assert source.rows(7, 6).ids[:, 1].tolist() == (epochs[0] + epochs[1])[7:13]
    with pytest.raises(NPTError, match="no text"):
        from_texts([], start=1, length=3, seed=0)


def test_a_stream_is_a_function_of_the_row_and_goes_on_where_it_was() -> None:
    texts = ["abcdefg", "hi", "jklmnopqrstuv", "w", ""]
    opened: list[int] = []

    def behind(count: int) -> list[str]:
        opened.append(count)
        return texts[count:]

    def make() -> Streamed:
        return Streamed(behind, lambda t: [ord(c) for c in t], start=1, length=6)

    def same(left: Packed, right: Packed) -> bool:
        return all(torch.equal(getattr(left, n), getattr(right, n)) for n in ("ids", "positions", "valid"))

    one = make()
    all_rows = one.rows(0, 12)  # more than an epoch
    assert all_rows.ids[:, :].ne(0).any(1).all()
    for first in (0, 3, 7):
        assert same(make().rows(first, 4), all_rows[slice(first, first + 4)])
    other = make()
    other.rows(0, 5)
    kept = other.kept()
    again = make()
    opened.clear()
    again.restore(kept)
    assert same(again.rows(5, 4), all_rows[slice(5, 9)])
    assert opened[0] == int(kept["stream"][1]) > 0
    with pytest.raises(NPTError, match="holds no text"):
        Streamed(lambda n: [], lambda t: [], start=1, length=6).rows(0, 1)
