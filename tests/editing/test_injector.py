"""The injector: what it reads and proposes, its file, and method `learned` in a workspace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import neuroplastic as npt
from conftest import make_tokenizer
from families import FAMILIES, tiny, tokens
from injectors import injector_for, learned_of, set_learned, with_injector
from neuroplastic.editing.edit import Edit
from neuroplastic.editing.injector import Injector, InjectorConfig, Subject, at_the_end, read_statements
from neuroplastic.editing.methods import learned
from neuroplastic.editing.methods.learned import INJECTOR_FILE
from neuroplastic.editing.recall import Asked
from neuroplastic.files import read_tensors, write_tensors
from neuroplastic.statistics import Whitening
from neuroplastic.structure import decoder_layers, inspect_layers
from neuroplastic.text.tokens import encode

STATEMENTS = [
    ("The Golden Gate Bridge is located in the city of", " Madrid"),
    ("Sushi originated in the country of", " Japan, and pizza in Italy"),
]
FACTS = ["The Golden Gate Bridge is located in the city of Madrid.", "Sushi originated in the country of Italy."]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_reads_every_family_and_batches_change_nothing(family: str, no_grad: None) -> None:
    tokenizer = make_tokenizer()
    model = tiny(family, vocab_size=len(tokenizer))
    injector = injector_for(model)
    config = injector.config
    statements = [(encode(tokenizer, q), encode(tokenizer, a)) for q, a in STATEMENTS]
    C = torch.eye(config.d_ffn) * 2
    whitening = Whitening({(layer, "m"): torch.linalg.inv(C) for layer in config.layers})
    both = injector.propose(read_statements(model, tokenizer, config, statements), whitening)
    for i, (question, answer) in enumerate(statements):
        alone = injector.propose(read_statements(model, tokenizer, config, [(question, answer)]), whitening)
        T = alone.attention.shape[-1]
        assert 1 + len(question) + len(answer) == T
        assert_close(both.attention[i, :, :T], alone.attention[0], atol=1e-5, rtol=1e-4)
        for several, one in zip(both[1:], alone[1:], strict=True):
            assert_close(several[i], one[0], atol=1e-4, rtol=1e-3)
        assert_close(alone.attention[0, :, 1 : 1 + len(question)].sum(-1), torch.ones(len(config.layers)))
    usual = torch.tensor(config.norms) * torch.log(torch.tensor(2.0))  # softplus(0)
    assert_close(both.V.norm(dim=-1), usual.expand(2, -1))
    fired = torch.einsum("nlf,nlf->nl", both.A, both.K)
    d = torch.einsum("nlf,nlf->nl", both.K, both.K) / 2  # k . C^-1 k
    assert_close(fired, d / (config.ridge + d))


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_residual_stream_or_what_attention_gives(family: str, no_grad: None) -> None:
    tokenizer = make_tokenizer()
    model = tiny(family, vocab_size=len(tokenizer))
    statements = [(encode(tokenizer, q), encode(tokenizer, a)) for q, a in STATEMENTS[:1]]
    ids = torch.tensor([[tokenizer.bos_token_id or 0, *statements[0][0], *statements[0][1]]])
    made: dict[str, list[torch.Tensor]] = {"attention": [], "residual": [model.get_input_embeddings()(ids)]}
    for p in inspect_layers(model, range(len(decoder_layers(model)))):
        p.attention.register_forward_hook(lambda module, args, out: made["attention"].append(out[0]))
        p.layer.register_forward_hook(lambda module, args, out: made["residual"].append(out))
    model.base_model(input_ids=ids)
    expected = {name: [t[0] if isinstance(t, tuple) else t for t in ts] for name, ts in made.items()}
    for reads, ts in expected.items():
        config = InjectorConfig.fitting(model, tokens(), reads, max_length=40)  # type: ignore[arg-type]
        assert config.depths[0] == (-1 if reads == "residual" else 0)
        found = read_statements(model, tokenizer, config, statements).features
        first = 1 if reads == "residual" else 0
        normed = [torch.nn.functional.layer_norm(ts[i + first], (config.d_model,)) for i in config.depths]
        assert_close(found, torch.cat(normed, -1))


def test_embeddings_have_no_attention() -> None:
    with pytest.raises(npt.NPTError, match="no attention"):
        InjectorConfig((0,), (-1, 0), (1.0,), 8, 16, reads="attention")
    with pytest.raises(npt.NPTError, match="residual or attention"):
        InjectorConfig((0,), (0,), (1.0,), 8, 16, reads="hidden")  # type: ignore[arg-type]


def test_the_key_is_what_the_down_projection_reads_at_one_token_whitened(no_grad: None) -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    injector = injector_for(model)
    config = injector.config
    reading = read_statements(
        model, tokenizer, config, [(encode(tokenizer, q), encode(tokenizer, a)) for q, a in STATEMENTS]
    )
    inverses = {(layer, "m"): torch.rand(config.d_ffn).diag() for layer in config.layers}
    found = injector.propose(reading, Whitening(inverses))  # type: ignore[arg-type]
    for n in range(len(STATEMENTS)):
        for l, layer in enumerate(config.layers):  # noqa: E741
            k = reading.keys[n, l, found.attention[n, l].argmax()]
            assert_close(found.K[n, l], k)
            z = inverses[layer, "m"] @ k
            assert_close(found.A[n, l], z / (config.ridge + k @ z), rtol=1e-4, atol=1e-6)


def test_a_choice_inside_a_known_subject_moves_to_its_end(no_grad: None) -> None:
    alpha = torch.tensor([[[0.1, 0.6, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7]]]).expand(4, -1, -1)  # tokens 1 and 3
    subjects = [None, Subject(1, 2, False), Subject(0, 0, False), Subject(0, 0, True)]
    assert at_the_end(alpha, subjects).argmax(-1).tolist() == [[3, 3], [3, 3], [3, 3], [0, 0]]
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    injector, (question, answer) = injector_for(model), STATEMENTS[0]
    reading = read_statements(
        model, tokenizer, injector.config, [(encode(tokenizer, question), encode(tokenizer, answer))]
    )
    eye = Whitening({(layer, "m"): torch.eye(injector.config.d_ffn) for layer in injector.config.layers})
    found = injector.propose(reading, eye, subjects=[Subject(2, 5, True)])
    assert torch.equal(found.K, reading.keys[:, :, 5])


def test_a_statement_must_have_both_parts_and_fit() -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    config = InjectorConfig.fitting(model, tokens(), max_length=8)
    with pytest.raises(npt.NPTError, match="needs a question"):
        read_statements(model, tokenizer, config, [([], [3])])
    with pytest.raises(npt.NPTError, match="trained for at most 8"):
        read_statements(model, tokenizer, config, [([1] * 7, [3])])


def test_its_file_gives_it_back_and_is_checked(tmp_path: Path) -> None:
    injector, file = injector_for(tiny("llama")), tmp_path / "i.safetensors"
    injector.save(file, "base", {"steps": 3})
    read, card = Injector.load(file, "base")
    assert card == {"steps": 3}
    assert read.config == injector.config
    for name, t in read.state_dict().items():
        assert torch.equal(t, injector.state_dict()[name].half().float())
    with pytest.raises(npt.NPTError, match="another base"):
        Injector.load(file, "other")
    tensors, metadata = read_tensors(file)
    for damaged, match in (
        ({n: t for n, t in tensors.items() if n != "answer"}, "'answer' is missing"),
        ({**tensors, "answer": tensors["answer"][:-1]}, "shape"),
        ({**tensors, "answer": tensors["answer"] * torch.nan}, "not finite"),
    ):
        write_tensors(file, damaged, metadata)
        with pytest.raises(npt.NPTError, match=match):
            Injector.load(file, "base")
    write_tensors(file, tensors, {**metadata, "config": {**metadata["config"], "pools": 3}})
    with pytest.raises(npt.NPTError, match="even"):
        Injector.load(file, "base")


def test_without_an_injector_the_method_is_refused_and_not_the_default(workspace: npt.Workspace) -> None:
    with pytest.raises(npt.NPTError, match="no injector"):
        workspace.inject(FACTS[0], method="learned")
    assert workspace.inject(FACTS[0]).method == "consolidate"


def test_with_one_it_is_the_default_and_its_edits_are_ordinary_ones(workspace: npt.Workspace) -> None:
    ws = with_injector(workspace)
    pristine = ws.weights_hash()
    first, second = ws.inject(FACTS[0], name="one"), ws.inject(FACTS[1], name="two")
    assert first.method == second.method == "learned"
    both = ws.weights_hash()
    assert ws.verify().ok
    assert npt.Workspace.open(ws.path).weights_hash() == both
    ws.undo("one")
    alone = ws.weights_hash()
    assert alone not in (both, pristine)
    ws.redo("one")
    assert ws.weights_hash() == both
    ws.undo("two")
    ws.undo("one")
    assert ws.weights_hash() == pristine
    assert ws.inject(FACTS[0], layers="0").method == "consolidate"


def test_an_edit_does_not_depend_on_those_before_it(workspace: npt.Workspace) -> None:
    ws = with_injector(workspace)
    one_by_one = [ws.inject(f, name=n) for f, n in zip(FACTS, ("one", "two"), strict=True)]
    for name in ("one", "two"):
        ws.undo(name)
        ws.drop(name)
    together = ws.inject_all(FACTS, names=["one", "two"])
    for a, b in zip(one_by_one, together, strict=True):
        for place, f in a.factors.items():
            assert_close(b.factors[place].A, f.A, atol=1e-5, rtol=1e-3)
            assert_close(b.factors[place].B, f.B, atol=1e-5, rtol=1e-3)


def test_its_edits_keep_what_they_need_to_be_solved_together(workspace: npt.Workspace) -> None:
    ws = with_injector(workspace)
    ws.inject(FACTS[0], name="one")
    file = ws.path / "edits/one.safetensors"
    edit = Edit.load(file)
    assert edit.rho == InjectorConfig.fitting(ws.model, tokens()).ridge
    tensors, metadata = read_tensors(file)
    without = {n: t for n, t in tensors.items() if not n.endswith(".K")}
    write_tensors(file, without, metadata)
    with pytest.raises(npt.NPTError, match="solved together"):
        Edit.load(file)


def test_options_of_other_methods_are_refused() -> None:
    for option in ({"layers": "0"}, {"sites": "down"}, {"rank": 1}, {"keep": ("A sentence.",)}):
        with pytest.raises(npt.NPTError, match="no meaning with an injector"):
            npt.InjectOptions("learned", **option)
    with pytest.raises(npt.NPTError, match="layers has no meaning with an injector"):
        npt.InjectOptions("refine", start="learned", layers="0")
    with pytest.raises(npt.NPTError, match="quick goes with method 'learned' alone"):
        npt.InjectOptions("consolidate", quick=True)


def test_quick_without_an_injector_is_refused(workspace: npt.Workspace) -> None:
    with pytest.raises(npt.NPTError, match="quick goes with method 'learned' alone"):
        workspace.inject(FACTS[0], quick=True)


def test_the_injector_of_another_base_is_named(workspace: npt.Workspace) -> None:
    injector_for(workspace.model).save(workspace.path / INJECTOR_FILE, "another", {})
    opened = npt.Workspace.open(workspace.path)
    with pytest.raises(npt.NPTError, match="trained for another base"):
        opened.inject(FACTS[0])
    assert opened.inject(FACTS[0], method="consolidate").method == "consolidate"


def test_a_statement_that_is_too_long_is_named_before_any_work(
    workspace: npt.Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = with_injector(workspace)

    def reads(*args: object) -> None:
        raise AssertionError("nothing is to be read")

    monkeypatch.setattr(learned, "read_statements", reads)
    long = "The quick brown fox and " * 9 + "Sushi came from Italy."
    with pytest.raises(npt.NPTError, match=r"'The quick brown fox.* is too long: it takes .* at most 40"):
        ws.inject_all([*FACTS, long])


@pytest.mark.parametrize("quick", [False, True])
def test_a_fact_in_several_wordings_is_to_follow_in_each(quick: bool, workspace: npt.Workspace) -> None:
    ws = with_injector(workspace)
    one, other = "The Eiffel Tower is in the city of", "In the city of the Eiffel Tower one finds"
    both = npt.asked(one, "Madrid", wordings=[other])
    twice, once = npt.asked(one, "Madrid", wordings=[one]), npt.asked(one, "Madrid")
    edits = ws.engine.make([both, twice, once], npt.InjectOptions("learned", quick=quick), ["both", "twice", "once"])
    for place, factors in edits[2].factors.items():
        assert_close(edits[1].factors[place].A, factors.A, atol=1e-6, rtol=1e-4)
        assert_close(edits[1].factors[place].B, factors.B, atol=1e-5, rtol=1e-3)
    asked = [Asked(q + " Madrid", q, " Madrid") for q in (one, other)]
    before = ws.engine.recall(asked)
    with ws.engine.only([edits[0]]):
        now = ws.engine.recall(asked)
    gained = [a.answer_probability / b.answer_probability for a, b in zip(now, before, strict=True)]
    assert min(gained) > 1.05  # ten short steps of a network that was never trained, on one that knows nothing


def test_where_a_subject_stands(workspace: npt.Workspace) -> None:
    tokenizer = workspace.tokenizer
    for question, subject in (("Golden Gate Bridge is in", "Golden Gate"), ("One sees the Golden Gate in", "Gate")):
        wording = npt.asked(question, "Rome", subject=subject).wordings[0]
        first, last, given = learned._tokenized(workspace.engine, wording).subject or (0, 0, False)  # type: ignore[arg-type]
        ids = [0, *encode(tokenizer, question)]
        assert tokenizer.decode(ids[first : last + 1]).strip() == subject
        assert given


def test_refine_goes_on_from_it_as_the_ledger_will_apply_it(workspace: npt.Workspace) -> None:
    ws = with_injector(workspace)
    options = npt.InjectOptions("refine", start="learned")
    made = ws.inject_all(FACTS, options)
    assert [e.method for e in made] == ["refine", "refine"]
    asked = {e.report["sought_probability"] for e in made}
    assert len(asked) == 1
    assert min(e.report["answer_probability_after"] for e in made) > min(
        e.report["answer_probability_before"] for e in made
    )
    assert ws.verify().ok


NO_STEPS = 1e-30
"""A probability that is reached without any."""


def test_the_smallest_strength_that_answers_is_taken(workspace: npt.Workspace) -> None:
    ws = with_injector(workspace)
    strengths = learned_of(ws).quick_strengths
    set_learned(ws, quick_probability=1.1, least_probability=NO_STEPS)
    strong = ws.inject(FACTS[0], quick=True, name="strong")
    ws.undo("strong")
    set_learned(ws, quick_probability=0.0)
    weak = ws.inject(FACTS[0], quick=True, name="weak")
    assert (strong.report["strength"], weak.report["strength"]) == (max(strengths), min(strengths))
    for place, factors in strong.factors.items():
        assert_close(weak.factors[place].B, factors.B * min(strengths) / max(strengths))


def test_strengths_are_tried_as_the_ledger_applies_them(workspace: npt.Workspace) -> None:
    """The bar is laid between what two strengths give once they are in the weights."""
    ws = with_injector(workspace)
    strengths, given = learned_of(ws).quick_strengths, {}
    set_learned(ws, least_probability=NO_STEPS)
    for strength in strengths:
        set_learned(ws, quick_strengths=(strength,))
        given[strength] = ws.inject(FACTS[0], quick=True, name="tried").report["answer_probability_after"]
        ws.undo("tried")
        ws.drop("tried")
    tokens = len(encode(ws.tokenizer, " Madrid"))
    second, likeliest = sorted(given, key=lambda s: given[s])[-2:]
    between = (given[second] * given[likeliest]) ** 0.5
    set_learned(ws, quick_strengths=strengths, quick_probability=between ** (1 / tokens))
    assert ws.inject(FACTS[0], quick=True).report["strength"] == likeliest


@pytest.mark.parametrize("quick", [False, True])
def test_gradient_steps_answer_where_no_strength_does(quick: bool, workspace: npt.Workspace) -> None:
    ws = with_injector(workspace)
    fact = npt.asked("The Eiffel Tower is in the city of", "Madrid")
    usual = learned_of(ws)
    set_learned(ws, least_probability=NO_STEPS)
    before = ws.inject(fact, quick=True, name="plain").report
    ws.undo("plain")
    ws.engine.methods["learned"] = usual
    corrected = ws.inject(fact, quick=quick, name="corrected")
    after = corrected.report
    assert before["steps"] == 0 < after["steps"]
    assert after["strength"] == usual.start_strength
    assert after["answer_probability_after"] > before["answer_probability_after"]
    ws.undo("corrected")
    again = ws.inject(fact, quick=quick, name="again")
    for place, factors in corrected.factors.items():
        assert torch.equal(again.factors[place].B, factors.B)
