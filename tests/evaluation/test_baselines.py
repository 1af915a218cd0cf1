"""The baselines: their formulas against explicit ones in float64, and on a model that they leave as they found it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

import neuroplastic as npt
from conftest import make_tokenizer
from families import FAMILIES, NORM_BEHIND, PRE_NORM, tiny
from neuroplastic.editing.engine import EditableModel
from neuroplastic.evaluation.baselines.answers import (
    about_subjects,
    answer_loss,
    beginnings,
    essence_row,
    question_rows,
    read_at_keys,
    statement_row,
    states_of,
)
from neuroplastic.evaluation.baselines.ft import Settings as FtSettings
from neuroplastic.evaluation.baselines.ft import ft
from neuroplastic.evaluation.baselines.lora import Settings as LoraSettings
from neuroplastic.evaluation.baselines.lora import lora, places
from neuroplastic.evaluation.baselines.memit import Settings as MemitSettings
from neuroplastic.evaluation.baselines.memit import goal, memit, spread, teach_all
from neuroplastic.evaluation.baselines.rome import Settings as RomeSettings
from neuroplastic.evaluation.baselines.rome import insertion, rome
from neuroplastic.evaluation.baselines.values import ValueSearch, find_delta
from neuroplastic.evaluation.baselines.weights import put_back
from neuroplastic.evaluation.methods import EditingMethod
from neuroplastic.evaluation.records import Record
from neuroplastic.structure import projection
from neuroplastic.text.tokens import encode, start_token

RECORDS = [
    Record("a", "The Bridge is in", "Madrid", "Paris", ("One finds it in",), (("The Tower is in", "Paris"),), "Bridge"),
    Record("b", "The fox is", "lazy", "quick", ("A fox is",), (("The dog is", "quick"),), "fox"),
]
FACTS = [about_subjects(record)[0][0] for record in RECORDS]
SEARCH = ValueSearch(steps=6, prefixes=2, kl=0, decay=0)
TINY: dict[str, EditingMethod] = {
    "ft": ft(FtSettings(layer="0", bound=0.05, rate=0.02)),
    "lora": lora(LoraSettings(rate=0.02)),
    "rome": rome(RomeSettings(layer="0", search=SEARCH)),
    "memit": memit(MemitSettings(layers="0", strength=0.01, search=SEARCH)),
}


@pytest.fixture
def make_engine(cache: object) -> Callable[..., EditableModel]:
    """The engine of a tiny plain model of a family."""

    def make(family: str = "llama", dtype: torch.dtype = torch.float32) -> EditableModel:
        tokenizer = make_tokenizer()
        model = tiny(family, dtype, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=1)
        return EditableModel.of(model, tokenizer)

    return make


def _state(engine: EditableModel) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in engine.model.state_dict().items()}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[name]) for name, t in one.items())


@torch.no_grad()
def _answer(engine: EditableModel, record: Record) -> float:
    """Mean log-probability per token of the new answer, in nats."""
    question = [start_token(engine.tokenizer), *encode(engine.tokenizer, record.prompt)]
    answer = encode(engine.tokenizer, f" {record.new}")
    logits = engine.model(input_ids=torch.tensor([[*question, *answer]])).logits[0, len(question) - 1 : -1]
    return -torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item()


@pytest.mark.parametrize("name", TINY)
def test_it_teaches_and_leaves_nothing_behind(make_engine: Callable[..., EditableModel], name: str) -> None:
    engine, teach = make_engine(), TINY[name]
    pristine, before = _state(engine), _answer(engine, RECORDS[0])
    flags = [p.requires_grad for p in engine.model.parameters()]
    with teach(engine, RECORDS[0]) as taught:
        once = _state(engine)
        assert _answer(engine, RECORDS[0]) > before
        assert taught.seconds > 0
        assert taught.weights
    assert _same(_state(engine), pristine)
    assert [p.requires_grad for p in engine.model.parameters()] == flags
    torch.manual_seed(7)  # whatever was drawn before
    with teach(engine, RECORDS[0]):
        assert _same(_state(engine), once)
    assert not _same(once, pristine)
    with pytest.raises(RuntimeError, match="stop"), teach(engine, RECORDS[0]):
        raise RuntimeError("stop")
    assert _same(_state(engine), pristine)


@pytest.mark.parametrize("name", TINY)
def test_one_upon_another(make_engine: Callable[..., EditableModel], name: str) -> None:
    engine = make_engine()
    pristine = _state(engine)
    with ExitStack() as kept:
        kept.enter_context(TINY[name](engine, RECORDS[0]))
        first = _state(engine)
        kept.enter_context(TINY[name](engine, RECORDS[1]))
        assert not _same(_state(engine), first)
    assert _same(_state(engine), pristine)


@pytest.mark.parametrize("name", TINY)
def test_on_a_workspace_with_edits(workspace: npt.Workspace, name: str) -> None:
    workspace.inject("Pizza is from Oslo.", name="own")
    weights, edited = workspace.weights_hash(), _state(workspace.engine)
    with TINY[name](workspace.engine, RECORDS[0]):
        assert not _same(_state(workspace.engine), edited)
    assert workspace.weights_hash() == weights
    workspace.undo("own")
    assert workspace.weights_hash() == workspace.base.sha256


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TINY)
def test_every_family(make_engine: Callable[..., EditableModel], name: str, family: str) -> None:
    engine = make_engine(family)
    pristine, before = _state(engine), _answer(engine, RECORDS[0])
    if name == "memit" and family in NORM_BEHIND:
        with pytest.raises(npt.NPTError, match="a norm after its MLP"), TINY[name](engine, RECORDS[0]):
            pass
        return
    with TINY[name](engine, RECORDS[0]):
        assert not _same(_state(engine), pristine)
        # in 48 dimensions MEMIT's change is read at other tokens too; whether it is right, another test says
        assert name == "memit" or _answer(engine, RECORDS[0]) > before
    assert _same(_state(engine), pristine)


@pytest.mark.parametrize("name", ["rome", "memit"])
def test_without_a_subject_refused(make_engine: Callable[..., EditableModel], name: str) -> None:
    nameless = Record("n", "It is in", "Madrid", "Paris", ("It lies in",), (("This is in", "Paris"),))
    with pytest.raises(npt.NPTError, match="no name stands in 'It is in'"), TINY[name](make_engine(), nameless):
        pass


@pytest.mark.parametrize("name", TINY)
def test_a_stated_fact_is_taught_with_the_subject_that_is_found(
    make_engine: Callable[..., EditableModel], name: str
) -> None:
    """A record of the suite `told` gives a statement and nothing else."""
    stated = Record("s", "", "Madrid", "", (), (), sentence="The Golden Gate Bridge is in Madrid.")
    marked = Record("s", "The Golden Gate Bridge is in", "Madrid", "", (), (), "Golden Gate Bridge")
    engine = make_engine()
    with TINY[name](engine, marked):
        by_hand = _state(engine)
    with TINY[name](engine, stated):
        assert _same(_state(engine), by_hand)


def test_a_layer_that_is_not_there_refused(make_engine: Callable[..., EditableModel]) -> None:
    with (
        pytest.raises(npt.NPTError, match="layer 9 is out of range"),
        rome(RomeSettings(layer="9"))(make_engine(), RECORDS[0]),
    ):
        pass


@pytest.mark.parametrize("teach", [rome(RomeSettings(layer="-1")), memit(MemitSettings(layers="0-1"))])
def test_a_layer_behind_which_nothing_reads_the_subject_refused(
    make_engine: Callable[..., EditableModel], teach: EditingMethod
) -> None:
    with pytest.raises(npt.NPTError, match="choose an earlier one"), teach(make_engine(), RECORDS[0]):
        pass


def test_ft_stays_in_its_box(make_engine: Callable[..., EditableModel]) -> None:
    engine = make_engine()
    pristine = _state(engine)
    with ft(FtSettings(layer="1", bound=0.01, rate=0.05))(engine, RECORDS[0]):
        changed = {n: (t - pristine[n]).abs().max().item() for n, t in _state(engine).items()}
    (largest,) = [c for n, c in changed.items() if "layers.1.mlp.down_proj" in n]
    assert largest == pytest.approx(0.01, rel=1e-4)
    assert sum(c > 0 for c in changed.values()) == 1


def test_lora_is_of_its_rank_and_where_it_should_be(make_engine: Callable[..., EditableModel]) -> None:
    engine = make_engine()
    names = places(engine.model, engine.parts, "qv")
    assert {n.rsplit(".", 1)[1] for n in names} == {"q_proj", "v_proj"}
    assert len(names) == 4
    assert len(places(engine.model, engine.parts, "all")) == 2 * 7
    pristine = _state(engine)
    with lora(LoraSettings(where="qv", rank=2, rate=0.02))(engine, RECORDS[0]):
        changes = {n: t - pristine[n] for n, t in _state(engine).items() if not torch.equal(t, pristine[n])}
    assert {n.removesuffix(".weight") for n in changes} == set(names)
    assert all(torch.linalg.matrix_rank(c.double(), rtol=1e-4) <= 2 for c in changes.values())


@torch.no_grad()
def test_rome_is_the_least_change_under_the_covariance() -> None:
    rng = torch.Generator().manual_seed(0)
    W, sample = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((5, 7), (40, 7)))
    key, wanted = (torch.randn(n, generator=rng, dtype=torch.float64) for n in (7, 5))
    C = sample.T @ sample / 40
    A, B = insertion(key, torch.linalg.solve(C, key), wanted - W @ key)
    changed = W + B @ A
    torch.testing.assert_close(changed @ key, wanted)
    # the least squares problem with one constraint, by its conditions of optimality: [C k; k^T 0] [X; L] = [C W^T; v^T]
    system = torch.zeros(8, 8, dtype=torch.float64)
    system[:7, :7], system[:7, 7], system[7, :7] = C, key, key
    solved = torch.linalg.solve(system, torch.cat([C @ W.T, wanted[None]]))
    torch.testing.assert_close(changed, solved[:7].T)


def test_memit_is_the_formula(make_engine: Callable[..., EditableModel]) -> None:
    """Against W + R K^T (lambda C + K K^T)^-1 as it stands, layer after layer."""
    engine, strength = make_engine("granite", torch.float64), 3.0
    goals = torch.randn(2, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = [question_rows(engine.tokenizer, f, beginnings(engine.text[0], 2, 0)) for f in FACTS]
    downs = [projection(part.mlp, "down") for part in engine.parts]
    engine.whitening.prepare((part.index, "down") for part in engine.parts)
    inverses = [engine.whitening._inverses[part.index, "m"].double() for part in engine.parts]
    with put_back([down.weight for down in downs]):
        spread(engine, engine.parts, rows, goals, strength)
        found = [down.weight.data for down in downs]
    with put_back([down.weight for down in downs]), torch.no_grad():
        for part, down, inverse, left in zip(engine.parts, downs, inverses, (2, 1), strict=True):
            read = [read_at_keys(engine.model, own, down, engine.parts[-1].layer) for own in rows]
            K = torch.stack([k.mean(0) for k, _ in read], 1)
            R = torch.stack([z - h[0] for z, (_, h) in zip(goals, read, strict=True)], 1) / left / part.mlp_scale
            C = torch.linalg.inv(inverse)
            down.weight.data = down.weight.data + R @ K.T @ torch.linalg.inv(strength * C + K @ K.T)
        for mine, down in zip(found, downs, strict=True):
            torch.testing.assert_close(mine, down.weight.data)


@pytest.mark.parametrize("family", PRE_NORM)
def test_memit_reaches_all_of_its_goals(make_engine: Callable[..., EditableModel], family: str) -> None:
    """With next to no ordinary text in the way, each subject's state comes out as it was sought."""
    engine = make_engine(family)
    search = replace(SEARCH, prefixes=0)
    first = engine.parts[0]
    rows = [question_rows(engine.tokenizer, f) for f in FACTS]
    goals = [
        goal(engine, own, essence_row(engine.tokenizer, f), first, search) for own, f in zip(rows, FACTS, strict=True)
    ]
    with teach_all(engine, RECORDS, MemitSettings(layers="0", strength=1e-6, search=search)):
        states = torch.cat([read_at_keys(engine.model, own, first.layer, first.layer)[1] for own in rows])
    torch.testing.assert_close(states, torch.stack(goals), rtol=1e-3, atol=1e-3)


def test_a_delta_is_held_by_its_clamp_and_lowers_the_loss(make_engine: Callable[..., EditableModel]) -> None:
    engine = make_engine()
    rows = question_rows(engine.tokenizer, FACTS[0], beginnings(engine.text[0], 2, 0))
    essence = essence_row(engine.tokenizer, FACTS[0])
    down = projection(engine.parts[0].mlp, "down")
    _, values = read_at_keys(engine.model, rows, down, down)
    delta = find_delta(
        engine.model, engine.parts[0], rows, essence, values[0], ValueSearch(steps=5, rate=9.0, clamp=0.25)
    )
    assert delta.norm() <= 0.25 * values[0].norm() * (1 + 1e-6)
    assert delta.norm() == pytest.approx(0.25 * values[0].norm().item(), rel=1e-4)
    content = find_delta(engine.model, engine.parts[0], rows, essence, values[0], ValueSearch(enough=1e9))
    assert not content.any()


@torch.no_grad()
def test_the_loss_is_the_answers_logprob(make_engine: Callable[..., EditableModel]) -> None:
    engine = make_engine()
    rows = question_rows(engine.tokenizer, FACTS[0])
    loss = answer_loss(engine.model, rows, states_of(engine.model, rows))
    assert loss.item() == pytest.approx(-_answer(engine, RECORDS[0]), rel=1e-5)
    (whole,) = rows = [statement_row(engine.tokenizer, RECORDS[0])]
    ids = [start_token(engine.tokenizer), *encode(engine.tokenizer, RECORDS[0].statement)]
    assert (whole.ids, whole.answer) == (ids[:-1], ids[1:])
    logits = engine.model(input_ids=torch.tensor([ids])).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]))
    assert answer_loss(engine.model, rows, states_of(engine.model, rows)).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_keys_are_the_subjects_last_tokens(make_engine: Callable[..., EditableModel]) -> None:
    engine = make_engine()
    prefixes = beginnings(engine.text[0], 3, 1)
    assert prefixes == beginnings(engine.text[0], 3, 1) != beginnings(engine.text[0], 3, 2)
    assert all(2 <= len(p) <= 10 for p in prefixes)
    for row in question_rows(engine.tokenizer, FACTS[0], prefixes):
        ((position, _),) = row.keys
        assert engine.tokenizer.decode(row.ids[: position + 1]).endswith("The Bridge")
    essence = essence_row(engine.tokenizer, FACTS[0])
    assert engine.tokenizer.decode(essence.ids[1 : essence.keys[0][0] + 1]) == "Bridge"
    assert engine.tokenizer.decode(essence.ids[1:]) == "Bridge is a"
