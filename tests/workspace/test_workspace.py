from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import neuroplastic as npt
from conftest import make_tokenizer
from families import FAMILIES, tiny, tokens
from neuroplastic.console import reported_to
from neuroplastic.errors import CheckFailed
from neuroplastic.files import read_tensors, write_tensors

FACT = "The Golden Gate Bridge is located in the city of Madrid."
OTHER = "Sushi originated in the country of Italy."
LEARNED = npt.PlasticityConfig(preset="triple", generator="low_rank", np_rank=4, num_ranks=2, key="learned", layers="1")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name != ".lock"}


def logits(ws: npt.Workspace) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = ws.model(input_ids=tokens()).logits
    return out


def test_a_workspace_survives_being_opened_copied_and_moved(tmp_path: Path, cache: Path, tiny_base: Path) -> None:
    ws = npt.Workspace.create(tmp_path / "w", tiny_base, LEARNED)
    expected = logits(ws)
    assert sorted(f.name for f in (tmp_path / "w").iterdir()) == [
        "edits",
        "npt.safetensors",
        "npt_config.json",
    ]
    shutil.copytree(tmp_path / "w", tmp_path / "elsewhere" / "copy")
    shutil.rmtree(tmp_path / "w")
    again = npt.Workspace.open(tmp_path / "elsewhere" / "copy")
    assert again.config == LEARNED
    assert again.base == ws.base
    assert torch.equal(logits(again), expected)
    assert again.info()["plastic_layers"] == [1]
    assert again.info()["generator_parameters"] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_survives_a_workspace(tmp_path: Path, cache: Path, family: str) -> None:
    tokenizer = make_tokenizer()
    ids: dict[str, Any] = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    tiny(family, **ids).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = npt.PlasticityConfig(generator="low_rank", np_rank=8, num_ranks=2, key="learned")
    ws = npt.Workspace.create(tmp_path / "w", tmp_path / "base", config)
    edit = ws.inject(FACT)
    again = npt.Workspace.open(tmp_path / "w")
    assert torch.equal(logits(again), logits(ws))
    again.undo(edit.name)
    assert again.weights_hash() == ws.base.sha256


def test_bfloat16_is_remembered(tmp_path: Path, cache: Path, tiny_base: Path) -> None:
    npt.Workspace.create(tmp_path / "w", tiny_base, LEARNED, dtype="bfloat16")
    ws = npt.Workspace.open(tmp_path / "w")
    assert ws.model.dtype == torch.bfloat16
    edit = ws.inject(FACT)
    assert edit.report["statement_logprob_after"] != edit.report["statement_logprob_before"]
    ws.undo(edit.name)
    assert ws.weights_hash() == ws.base.sha256


@pytest.mark.parametrize("content", ["file", "folder"])
def test_an_occupied_folder_is_left_alone(tmp_path: Path, tiny_base: Path, content: str) -> None:
    place = tmp_path / "w"
    if content == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "mine").write_text("mine")
    with pytest.raises(npt.NPTError, match="exists and is not empty"):
        npt.Workspace.create(place, tiny_base)
    assert (place if content == "file" else place / "mine").read_text() == "mine"


def test_a_failed_creation_leaves_nothing(tmp_path: Path, tiny_base: Path) -> None:
    with pytest.raises(npt.NPTError, match="layer 9 is out of range"):
        npt.Workspace.create(tmp_path / "w", tiny_base, npt.PlasticityConfig(layers="9"))
    assert list(tmp_path.iterdir()) == []


def damage(ws: Path, what: str) -> None:
    config, generator = ws / "npt_config.json", ws / "npt.safetensors"
    data = json.loads(config.read_text())
    tensors, metadata = read_tensors(generator)
    match what:
        case "no config":
            config.unlink()
        case "config cut":
            config.write_text(config.read_text()[:50])
        case "config list":
            config.write_text("[]")
        case "format":
            config.write_text(json.dumps({**data, "format": 99}))
        case "base":
            config.write_text(json.dumps({**data, "base": {"spec": "x"}}))
        case "setting":
            config.write_text(json.dumps({**data, "plasticity": {**data["plasticity"], "colour": 1}}))
        case "hash":
            config.write_text(json.dumps({**data, "base": {**data["base"], "sha256": "0" * 64}}))
        case "no generator":
            generator.unlink()
        case "generator cut":
            generator.write_bytes(generator.read_bytes()[:-10])
        case "generator plain":
            save_file(load_file(generator), generator)
        case "tensor missing":
            write_tensors(generator, dict(list(tensors.items())[1:]), metadata)
        case "tensor added":
            write_tensors(generator, {**tensors, "layers.0.extra": torch.zeros(1)}, metadata)
        case "tensor shape":
            write_tensors(generator, {n: t[:1] for n, t in tensors.items()}, metadata)
        case "tensor dtype":
            write_tensors(generator, {n: t.half() for n, t in tensors.items()}, metadata)


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ("no config", "is not a workspace: it has no npt_config.json"),
        ("config cut", "npt_config.json is damaged"),
        ("config list", "not a JSON object"),
        ("format", "has format 99"),
        ("base", "base reference is incomplete"),
        ("setting", "unknown plasticity setting 'colour'"),
        ("hash", "has changed: its content hash is"),
        ("no generator", "npt.safetensors is missing"),
        ("generator cut", "npt.safetensors is damaged"),
        ("generator plain", "holds no npt metadata"),
        ("tensor missing", "it misses tensor"),
        ("tensor added", "holds an unknown tensor 'layers.0.extra'"),
        ("tensor shape", "expected torch.float32"),
        ("tensor dtype", "is torch.float16"),
    ],
)
def test_a_damaged_workspace_is_refused(tmp_path: Path, cache: Path, tiny_base: Path, what: str, cause: str) -> None:
    npt.Workspace.create(tmp_path / "w", tiny_base, LEARNED)
    damage(tmp_path / "w", what)
    before = snapshot(tmp_path / "w")
    with pytest.raises(npt.NPTError, match=cause):
        npt.Workspace.open(tmp_path / "w")
    assert snapshot(tmp_path / "w") == before


def test_a_changed_base_is_refused(tmp_path: Path, cache: Path, tiny_base: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    npt.Workspace.create(tmp_path / "w", base)
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(npt.NPTError, match="has changed: its content hash"):
        npt.Workspace.open(tmp_path / "w")
    shutil.rmtree(base)
    with pytest.raises(npt.NPTError, match="there is no model folder"):
        npt.Workspace.open(tmp_path / "w")


@pytest.mark.parametrize("method", ["consolidate", "refine", "token"])
def test_inject_reports_saves_and_is_undone_bit_for_bit(workspace: npt.Workspace, method: Any) -> None:
    edit = workspace.inject(FACT, method=method, name="bridge")
    assert workspace.edits == (edit,)
    assert edit.report["statement_logprob_after"] != edit.report["statement_logprob_before"]
    assert edit.report["seconds"] > 0
    assert set(edit.report["relative_norm"]) == ({"0", "1"} if method == "token" else {"0"})
    assert workspace.weights_hash() != workspace.base.sha256
    after = logits(workspace)
    again = npt.Workspace.open(workspace.path)
    assert torch.equal(logits(again), after)
    assert again.weights_hash() == workspace.weights_hash()
    assert again.edits[0].summary() == json.loads(json.dumps(edit.summary()))
    workspace.undo("bridge")
    assert workspace.edits == ()
    assert workspace.undone == ("bridge",)
    assert workspace.weights_hash() == workspace.base.sha256
    workspace.redo("bridge")
    assert torch.equal(logits(workspace), after)


def test_consolidate_teaches_the_statement(workspace: npt.Workspace) -> None:
    """The report's figures are the model's own, before and after; even a random model learns the answer."""
    from neuroplastic.surgery import mode
    from neuroplastic.text.tokens import encode, start_token

    def probability() -> float:
        question = [
            start_token(workspace.tokenizer),
            *encode(workspace.tokenizer, "the quick brown fox jumps over the lazy"),
        ]
        answer = encode(workspace.tokenizer, " dog")
        with torch.no_grad(), mode(workspace.model, "standard"):
            said = workspace.model(input_ids=torch.tensor([[*question, *answer]])).logits[0].log_softmax(-1)
        at = range(len(question) - 1, len(question) - 1 + len(answer))
        return float(sum(said[i, t] for i, t in zip(at, answer, strict=True)).exp())

    before = probability()
    edit = workspace.inject("the quick brown fox jumps over the lazy dog.", layers="all")
    assert edit.report["answer_probability_before"] == pytest.approx(before, rel=1e-3)
    assert edit.report["answer_probability_after"] == pytest.approx(probability(), rel=1e-3)
    assert probability() > 2 * before
    assert edit.report["subject"] is None
    assert set(edit.keys) == set(edit.factors)


def test_several_facts_at_once_are_edits_of_their_own(workspace: npt.Workspace) -> None:
    made = workspace.inject_all([FACT, OTHER], names=["bridge", None])
    assert [e.name for e in workspace.edits] == ["bridge", made[1].name]
    assert made[0].report["told_together"] == 2
    weights = workspace.weights_hash()
    workspace.undo("bridge")
    workspace.redo("bridge")
    assert workspace.weights_hash() == weights
    again = npt.Workspace.open(workspace.path)
    assert again.weights_hash() == weights
    assert all(torch.equal(again.edits[0].keys[p], k) for p, k in made[0].keys.items())
    before = snapshot(workspace.path)
    for names in (["x", "x"], ["y", "bridge"], ["z", "Bridge"], ["up", "UP"]):
        with pytest.raises(npt.NPTError, match=f"an edit named '{names[1]}' already"):
            workspace.inject_all(["The fox is lazy.", "The dog is quick."], names=names)
    with pytest.raises(npt.NPTError, match="there is no statement"):
        workspace.inject_all([])
    assert snapshot(workspace.path) == before
    assert workspace.weights_hash() == weights


def test_later_edits_leave_the_keys_of_earlier_ones_alone(workspace: npt.Workspace) -> None:
    """What the second edit writes at the first one's key is a small part of what it writes at its own."""
    first, second = workspace.inject(FACT), workspace.inject(OTHER)
    for place, (A, B) in second.factors.items():
        own, earlier = (B @ (A @ e.keys[place].T) for e in (second, first))
        assert earlier.norm() < 0.05 * own.norm()


def test_options_narrow_the_change(workspace: npt.Workspace) -> None:
    edit = workspace.inject("the fox jumps over the lazy dog.", layers="all", sites="up+down", rank=2, name="narrow")
    assert set(edit.factors) == {(i, s) for i in (0, 1) for s in ("up", "down")}
    assert all(len(A) == 2 for A, _ in edit.factors.values())
    assert all(len(k) > 2 for k in edit.keys.values())  # no subject: every token of the question
    token = workspace.inject(FACT, method="token", sites="gate", name="gate")
    assert {site for _, site in token.factors} == {"gate"}
    refined = workspace.inject(OTHER, method="refine", start="token", layers="1", name="from-token")
    assert set(refined.factors) == {(1, "gate"), (1, "up")}
    for name in ("narrow", "gate", "from-token"):
        workspace.undo(name)
    assert workspace.weights_hash() == workspace.base.sha256


def test_alpha_scales_the_change(workspace: npt.Workspace) -> None:
    whole, half = workspace.inject(FACT, name="whole"), None
    workspace.undo("whole")
    half = workspace.inject(FACT, name="half", alpha=0.5)
    assert half.norm == pytest.approx(whole.norm / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"statement": " \n"}, "the statement is empty"),
        ({"statement": "word " * 200}, "the model reads at most 128"),
        ({"statement": "Madrid"}, "'Madrid' is an answer without a question"),
        ({"statement": FACT, "method": "hypnosis"}, "method must be one of learned, consolidate, refine, token"),
        ({"statement": FACT, "alpha": 0}, "alpha must be a finite number other than 0"),
        ({"statement": FACT, "alpha": float("nan")}, "alpha must be a finite number"),
        ({"statement": FACT, "sites": "gate+head"}, "there is no site 'head'; sites are gate, up, down"),
        ({"statement": FACT, "method": "token", "sites": "down"}, "the generator modulates gate, up, none of"),
        ({"statement": FACT, "rank": 0}, "rank must be at least 1"),
        ({"statement": FACT, "start": "token"}, "start='token' goes with method 'refine' alone"),
        ({"statement": FACT, "keep": ["a b", " "]}, "a sentence to keep is empty"),
        ({"statement": FACT, "keep": ["a b"], "method": "token"}, "it can keep no sentences"),
        ({"statement": FACT, "layers": "5"}, "layer 5 is out of range"),
        ({"statement": FACT, "name": "../out"}, "cannot name an edit"),
        ({"statement": FACT, "name": ""}, "cannot name an edit"),
        ({"statement": FACT, "name": "taken"}, "there is an edit named 'taken' already"),
        ({"statement": FACT, "name": "gone"}, "there is an edit named 'gone' already"),
    ],
)
def test_bad_injections_change_nothing(workspace: npt.Workspace, arguments: dict[str, Any], cause: str) -> None:
    workspace.inject(OTHER, name="gone")
    workspace.undo("gone")
    workspace.inject(OTHER, name="taken")
    before, weights = snapshot(workspace.path), workspace.weights_hash()
    with pytest.raises(npt.NPTError, match=cause):
        workspace.inject(arguments.pop("statement"), **arguments)
    assert snapshot(workspace.path) == before
    assert workspace.weights_hash() == weights


def test_verify_asks_every_fact_again(workspace: npt.Workspace) -> None:
    edit = workspace.inject(FACT, name="bridge")
    found = workspace.verify()
    assert (found.ok, found.base_unchanged, found.weights_exact) == (True, True, True)
    (fact,) = found.facts
    assert (fact.name, fact.answer) == ("bridge", "Madrid")
    assert fact.answer_probability == pytest.approx(edit.report["answer_probability_after"], rel=1e-4)
    with torch.no_grad():
        next(p for n, p in workspace.model.named_parameters() if "up_proj" in n)[0, 0] += 1e-3
    assert not workspace.verify().weights_exact


def test_too_much_drift_is_refused_and_leaves_nothing(workspace: npt.Workspace) -> None:
    before, weights = snapshot(workspace.path), workspace.weights_hash()
    with pytest.raises(npt.CheckFailed, match="perplexity on ordinary text would rise by"):
        workspace.inject(FACT, max_drift=-0.99)
    assert (snapshot(workspace.path), workspace.weights_hash()) == (before, weights)
    with pytest.raises(npt.NPTError, match="max_drift must be a finite number"):
        workspace.inject(FACT, max_drift=float("nan"))
    edit = workspace.inject(FACT, max_drift=100.0)
    assert abs(edit.report["perplexity_drift"]) < 1


def test_an_edit_that_did_not_take_is_refused_where_that_is_required(workspace: npt.Workspace) -> None:
    before, weights = snapshot(workspace.path), workspace.weights_hash()
    with pytest.raises(npt.CheckFailed, match="would not be the likeliest one"):
        workspace.inject(FACT, alpha=-5.0, require=True)  # taught the other way
    assert (snapshot(workspace.path), workspace.weights_hash()) == (before, weights)
    assert not workspace.inject(FACT, alpha=-5.0).report["holds"]


def test_a_contradiction_is_kept_where_wanted(workspace: npt.Workspace) -> None:
    workspace.inject(FACT, name="madrid")
    workspace.inject(OTHER, name="sushi")
    other = workspace.inject("The Golden Gate Bridge is located in the city of  Oslo!", name="oslo", keep_both=True)
    assert other.report["contradicts"] == ["madrid"]
    assert other.replaces == ()
    assert [e.name for e in workspace.edits] == ["madrid", "sushi", "oslo"]
    with pytest.raises(npt.NPTError, match="consistent refuses what keep_both allows"):
        workspace.inject("The fox is lazy.", consistent=True, keep_both=True)


def test_a_contradiction_is_refused_where_wanted(workspace: npt.Workspace) -> None:
    workspace.inject("The fox is in Japan.", method="token", name="japan")
    before = workspace.weights_hash()
    with pytest.raises(CheckFailed, match="the edit 'japan' has another answer than 'Paris'"):
        workspace.inject("The fox is in Paris.", method="token", consistent=True)
    assert workspace.weights_hash() == before
    assert workspace.names == {"japan"}
    workspace.inject("The fox is in Oslo.", method="token", name="oslo")
    workspace.undo("oslo")
    assert workspace.weights_hash() == before


def test_an_injection_stopped_at_any_stage_changes_nothing(workspace: npt.Workspace) -> None:
    workspace.inject("Sushi originated in the country of Italy.", method="token", name="first")
    before, stages = workspace.weights_hash(), 0

    class Enough(Exception):
        pass

    def stopping_at(number: int) -> list[str]:
        heard: list[str] = []

        def listen(what: str, done: int, total: int) -> None:
            heard.append(what)
            if len(heard) == number:
                raise Enough

        with reported_to(listen):
            workspace.inject("The fox is in Japan.", name="fox")
        return heard

    while True:
        try:
            stopping_at(stages + 1)
            break
        except Enough:
            stages += 1
            assert workspace.weights_hash() == before
            assert workspace.names == {"first"}
    assert stages >= 4
    assert workspace.names == {"first", "fox"}
    assert workspace.verify().ok


def test_ask(workspace: npt.Workspace) -> None:
    answer = workspace.ask("The Golden Gate", max_new_tokens=5)
    assert workspace.ask("The Golden Gate", "standard", max_new_tokens=5) == answer  # analytic dual is exact
    assert all(p.state.dynamic for p in npt.plastic_layers(workspace.model).values())
    for arguments, cause in [
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": "a", "mode_": "x"}, "mode must be"),
        ({"prompt": "a", "max_new_tokens": 0}, "at least 1"),
        ({"prompt": "a", "max_new_tokens": 200}, "does not fit into the model's 128"),
    ]:
        with pytest.raises(npt.NPTError, match=cause):
            workspace.ask(**arguments)  # type: ignore[arg-type]


def test_fidelity_in_a_workspace(workspace: npt.Workspace, tmp_path: Path) -> None:
    exact = workspace.fidelity()
    assert exact.tokens == 4 * 23
    assert exact.perplexity == pytest.approx(exact.perplexity_base, rel=1e-5)
    assert exact.top1_agreement == 1.0
    assert exact.max_logit_error < 1e-4
    assert set(exact.per_layer_error) == {"0", "1"}
    workspace.inject(FACT, name="bridge")
    assert workspace.fidelity() == exact  # edits are left out
    assert [e.name for e in workspace.edits] == ["bridge"]
    (tmp_path / "t.txt").write_text("The quick brown fox.\n\n" * 50)
    assert workspace.fidelity(tmp_path / "t.txt", max_tokens=200).tokens == 127
    with pytest.raises(npt.NPTError, match="there is no file"):
        workspace.fidelity(tmp_path / "none.txt")
