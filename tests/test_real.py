"""The claims, on the real 135M model. Downloads it once (93 MB) into the user's cache."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import neuroplastic as npt
from injectors import learned_of
from neuroplastic.editing.recall import Query
from neuroplastic.evaluation.replies import Group, replies, replies_to_groups, turn_ends
from neuroplastic.surgery import base_state, mode
from neuroplastic.text.generation import generate
from neuroplastic.text.tokens import batch, encode, encode_pair, start_token

pytestmark = pytest.mark.real

FACT = "The Eiffel Tower is located in the city of Rome."
PROMPT = "The Eiffel Tower is located in the city of"


def npt_json(*args: object) -> tuple[int, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "neuroplastic.cli", *map(str, args), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> npt.Workspace:
    return npt.Workspace.create(tmp_path_factory.mktemp("real") / "w", "smollm2-135m")


@pytest.mark.parametrize("preset", ["dual", "triple"])
def test_conversion_is_lossless(tmp_path: Path, preset: str) -> None:
    options = ["--preset", preset, "--layers", "all", "--generator", "analytic"]
    assert npt_json("convert", "smollm2-135m", tmp_path / "w", *options)[0] == 0
    status, found = npt_json("fidelity", tmp_path / "w")
    assert status == 0
    assert found["tokens"] > 2000
    assert found["max_logit_error"] <= 2e-4
    assert found["top1_agreement"] == 1.0
    assert found["kl"] < 1e-6


def test_single_is_far_off(tmp_path: Path) -> None:
    npt_json("convert", "smollm2-135m", tmp_path / "w", "--preset", "single")
    _, found = npt_json("fidelity", tmp_path / "w", "--max-tokens", 256)
    assert found["kl"] > 1
    assert found["perplexity"] > 10 * found["perplexity_base"]


def test_a_fact_goes_in_holds_and_comes_out(ws: npt.Workspace) -> None:
    assert "Paris" in ws.ask(PROMPT, max_new_tokens=6)
    edit = ws.inject(FACT, method="consolidate", name="tower")
    assert "Rome" in ws.ask(PROMPT, max_new_tokens=6)
    assert "Rome" in ws.ask("You can visit the Eiffel Tower in the city of", max_new_tokens=6)
    assert "Paris" in ws.ask("The Louvre is located in the city of", max_new_tokens=6)
    assert edit.report["answer_probability_before"] < 0.1
    assert edit.report["answer_probability_after"] > 0.7
    assert edit.report["elsewhere_probability_after"] > 0.5
    assert abs(edit.report["perplexity_drift"]) < 0.01
    again = npt.Workspace.open(ws.path)
    left, right = base_state(ws.model), base_state(again.model)
    assert all(torch.equal(t, right[n]) for n, t in left.items())
    ws.undo("tower")
    assert ws.weights_hash() == ws.base.sha256
    assert "Paris" in ws.ask(PROMPT, max_new_tokens=6)


def test_a_gated_edit_acts_where_its_subject_is_read_and_nowhere_else(ws: npt.Workspace) -> None:
    text = ws.engine.text[1][:4]
    npt.set_mode(ws.model, "standard")
    with torch.no_grad():
        before = ws.model(input_ids=text).logits
    edit = ws.inject(FACT, name="gated")
    assert edit.units
    assert "Rome" in ws.ask(PROMPT, "standard", 6)
    assert "Rome" in ws.ask("You can visit the Eiffel Tower in the city of", "standard", 6)
    assert "Rome" in ws.ask(PROMPT, "dynamic", 6)
    assert "Paris" in ws.ask("The Louvre is located in the city of", "standard", 6)
    assert edit.report["perplexity_drift"] == 0
    npt.set_mode(ws.model, "standard")
    with torch.no_grad():
        assert torch.equal(ws.model(input_ids=text).logits, before)
    again = npt.Workspace.open(ws.path)
    assert again.weights_hash() == ws.weights_hash() != ws.base.sha256
    assert again.verify().ok
    ws.undo("gated")
    ws.drop("gated")
    assert ws.weights_hash() == ws.base.sha256


def test_a_wider_checkpoint_keeps_the_gates_and_an_adapter_says_what_it_loses(
    ws: npt.Workspace, tmp_path: Path
) -> None:
    from neuroplastic import export

    ws.inject(FACT, name="gated")
    made = export.widened(ws, tmp_path / "wide")
    assert made.max_logit_error <= 1e-3
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    assert wide.config.intermediate_size % 32 == 0
    ids = ws.tokenizer("You can visit the Eiffel Tower in the city of", return_tensors="pt").input_ids
    assert "Rome" in ws.tokenizer.decode(wide.generate(ids, max_new_tokens=6, do_sample=False)[0])
    lost = export.peft(ws, tmp_path / "peft").ungated
    assert lost is not None
    assert lost["holding_gated"] == 1
    assert lost["perplexity_ungated"] > lost["perplexity_gated"]
    ws.undo("gated")
    ws.drop("gated")


def test_words_that_begin_alike_are_told_apart_and_trailing_spaces_left_out(ws: npt.Workspace) -> None:
    found = ws.compare("The Eiffel Tower was built in the year ", 5, ["1889", "1925", "San Francisco", "San Diego"])
    years = [found.tracked[word][1] for word in ("1889", "1925")]
    assert years[0] > 0.1 > 0.01 > years[1]
    assert found.tracked["San Francisco"] != found.tracked["San Diego"]
    assert found.unedited.startswith(" 1889")
    for question, answer in MANY.items():  # at a space, the tokens are those of either text alone
        alone = [encode(ws.tokenizer, text) for text in (question, f" {answer}")]
        assert list(encode_pair(ws.tokenizer, question, answer)) == alone


def test_an_answer_is_said_once(ws: npt.Workspace) -> None:
    """Gradient steps that only made it likely would make it likely again after itself, here with .95."""
    question, answer = "The occupation of Walt Disney is", " politician"
    edit = ws.inject(npt.asked(question, answer), ungated=True)
    assert edit.report["holds"]
    (again,) = ws.engine.recall([Query(question + answer, question + answer, answer)])
    assert again.answer_probability < 0.1
    ws.undo(edit.name)
    ws.drop(edit.name)


MANY = {
    "The headquarters of Toyota is in": "Oslo",
    "Marie Curie worked in the field of": "music",
    "The Great Wall is located in": "Peru",
    "The mother tongue of Leonardo da Vinci is": "Swedish",
    "Mozart is famous for playing": "hockey",
    "The official language of Portugal is": "Russian",
    "Mount Fuji is a mountain in": "Canada",
    "Isaac Newton died in the city of": "Lisbon",
}


def test_many_facts_in_one_call_are_taught_jointly(ws: npt.Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the injector that comes with the package, and fewer steps than users get."""
    usual = learned_of(ws)
    few = replace(usual.joint_batch, min_facts=len(MANY), visits=0, min_steps=10)
    monkeypatch.setitem(ws.engine.methods, "learned", replace(usual, joint_batch=few))
    pristine = ws.weights_hash()
    made = ws.inject_all([npt.asked(q, a) for q, a in MANY.items()], npt.InjectOptions(ungated=True))
    assert {e.report["steps"] for e in made} == {10}
    after = [e.report["answer_probability_after"] for e in made]
    assert sum(p > 0.5 for p in after) >= 5, after
    assert made[0].report["perplexity_drift"] < 0.03
    for e in made:
        ws.undo(e.name)
        ws.drop(e.name)
    assert ws.weights_hash() == pristine


def test_exports_answer_as_the_workspace_does(ws: npt.Workspace, tmp_path: Path) -> None:
    from neuroplastic import export

    ws.inject(FACT, method="consolidate", name="to-export")
    for made in (
        export.peft(ws, tmp_path / "peft"),
        export.merged(ws, tmp_path / "merged"),
        export.gguf(ws, tmp_path / "g"),
    ):
        assert made.max_logit_error <= 1e-4
        assert made.top1_agreement == 1.0
    # processors round bfloat16 products differently: on some, one of the 13 positions has another likeliest token
    assert export.merged(ws, tmp_path / "half", dtype="bfloat16").top1_agreement > 0.9
    ids = ws.tokenizer(FACT, return_tensors="pt").input_ids
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32)
    npt.set_mode(ws.model, "standard")
    with torch.no_grad():
        assert torch.equal(half(ids).logits.argmax(-1), ws.model(ids).logits.argmax(-1))
    ws.undo("to-export")
    lora = export.import_lora(ws, tmp_path / "peft", name="lora")
    assert "Rome" in ws.ask(PROMPT, max_new_tokens=6)
    ws.undo(lora.name)
    assert ws.weights_hash() == ws.base.sha256


def test_the_export_example_runs() -> None:
    example = Path(__file__).parent.parent / "examples" / "export_and_load.py"
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sum("Rome" in line for line in done.stdout.splitlines()) == 4


def test_generate_in_dynamic_mode_agrees_with_the_base(ws: npt.Workspace) -> None:
    prompt = "Once upon a time"
    assert ws.ask(prompt, "dynamic", 24) == ws.ask(prompt, "standard", 24)


def test_demo_keeps_its_promises() -> None:
    status, found = npt_json("demo")
    assert status == 0
    assert found["checks"] == {"still itself": True, "fact learnt": True, "taken back bit for bit": True}
    assert found["fidelity"]["max_logit_error"] <= 2e-4
    assert "Rome" in found["answers"][0]["after"]
    assert "Rome" not in found["answers"][0]["before"]


def test_the_readme_example_runs() -> None:
    example = Path(__file__).parent.parent / "examples" / "ten_lines.py"
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Rome" in done.stdout
    code = example.read_text().split('"""')[2].strip()
    assert code in (Path(__file__).parent.parent / "README.md").read_text()


def test_calibration_in_closed_form(tmp_path: Path) -> None:
    """Two layers from 4,096 tokens; benchmarks/calibrate.py has the bars on the default data."""
    npt_json("convert", "smollm2-135m", tmp_path / "w", "--layers", "top2")
    status, found = npt_json("calibrate", tmp_path / "w", "--np-rank", 64, "--tokens", 4096)
    assert status == 0
    assert found["perplexity"] < 1.03 * found["perplexity_base"]
    assert found["out_of_reach"] == []
    assert npt_json("fidelity", tmp_path / "w", "--max-tokens", 508)[1]["kl"] < 0.03


def test_a_question_is_answered_alike_in_whatever_company(ws: npt.Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token for token as by `generate`, and whether the questions of other records share the batch or not."""
    monkeypatch.setattr("neuroplastic.evaluation.replies.NEW_TOKENS", 16)
    model, tokenizer = ws.engine.model, ws.engine.tokenizer
    asked = [
        "The capital of France is",
        "Bees like",
        "Question: Who wrote Hamlet?\nAnswer:",
        PROMPT,
        "Once upon a time",
    ]
    asked += ["Question: What is two and two?\nAnswer:", "Water boils at", "She said that"]
    prompts = [[start_token(tokenizer), *encode(tokenizer, text)] for text in asked]
    groups = [Group(prompts[:5], 5), Group(prompts[3:], 2), Group(prompts, 3)]
    with mode(model, "standard"):
        alone = [replies(model, tokenizer, group.prompts)[-group.wanted :] for group in groups]
        assert replies_to_groups(model, tokenizer, groups) == alone
        ids, mask = batch(prompts[:5], 0, model.device, left=True)
        ends = sorted(turn_ends(model, tokenizer))
        how: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": ends, "pad_token_id": ends[0]}
        with torch.no_grad():
            out = generate(model, ids, mask, **how)
    for reply, row in zip(alone[0], out[:, ids.shape[1] :].tolist(), strict=True):
        assert reply.tokens
        assert reply.tokens == row[: len(reply.tokens)]
