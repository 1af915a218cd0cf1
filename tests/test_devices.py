"""Every tensor is made where the model is, whatever torch's default device.

Here that device is `meta`, where tensors have a shape and no contents: one that is made without a device lands there,
and fails as soon as it meets the model, which stays on the CPU, or is looked at. What is computed must be to the bit
what it is otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

import neuroplastic as npt
from conftest import make_tokenizer
from distilling import SHORT, parameters
from facts import facts
from families import tiny, tokens
from injectors import with_injector
from neuroplastic.editing.inject_options import InjectOptions, Method, Start
from neuroplastic.editing.injector import INJECTOR_FILE
from neuroplastic.editing.methods.joint_batch import JointBatch
from neuroplastic.editing.methods.learned import Learned
from neuroplastic.evaluation.counterfact import COUNTERFACT
from neuroplastic.evaluation.methods import editing_method
from neuroplastic.evaluation.records import Record
from neuroplastic.evaluation.run import run_suite
from neuroplastic.evaluation.zsre import ZSRE
from neuroplastic.files import read_tensors
from neuroplastic.text.generation import Writing
from neuroplastic.training.settings import InjectionSettings, LoopSettings
from neuroplastic.training.train_injector import train_injector

NOWHERE = torch.device("meta")
"""As a context, it is the default device while it lasts."""
BRIDGE, SUSHI = "The Golden Gate Bridge is located in the city of Madrid.", "Sushi originated in the country of Italy."
ELSEWHERE = "The Golden Gate Bridge is located in the city of Paris."
RECORDS = [
    Record("a", "The Bridge is in", "Madrid", "Paris", ("One finds it in",), (("The Tower is in", "Paris"),)),
    Record("b", "The fox is", "lazy", "quick", ("A fox is",), (("The dog is", "quick"), ("A dog is", "brown"))),
]
Fresh = Callable[..., npt.Workspace]


def numbers(edits: Iterable[npt.Edit]) -> list[Tensor]:
    return [t for e in edits for place in e.factors.values() for t in place]


def same(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_a_tensor_without_a_device_fails() -> None:
    with NOWHERE:
        with pytest.raises(RuntimeError):
            torch.zeros(2) + torch.ones(2, device="cpu")
        with pytest.raises(NotImplementedError):
            torch.zeros(2).tolist()


@pytest.mark.parametrize("equipped", [False, True], ids=["plain", "injector"])
@pytest.mark.parametrize("method", get_args(Method))
def test_edits(method: Method, equipped: bool, fresh: Fresh) -> None:
    """Made, verified, taken back, put back, replaced and dropped."""
    if method == "learned" and not equipped:
        pytest.skip("method learned needs an injector")
    here, ws = (with_injector(fresh(name)) if equipped else fresh(name) for name in ("here", "nowhere"))
    start: Start = "learned" if equipped and method == "refine" else "consolidate"
    options = InjectOptions(method, start=start, rank=None if "learned" in (method, start) else 1)
    expected = here.inject_all([BRIDGE, SUSHI], options)
    with NOWHERE:
        edits = ws.inject_all([BRIDGE, SUSHI], options)
        assert same(numbers(edits), numbers(expected))
        assert [e.report | {"seconds": 0} for e in edits] == [e.report | {"seconds": 0} for e in expected]
        assert ws.verify().ok
        ws.undo(edits[0])
        ws.redo(edits[0].name)
        replaced = ws.inject(ELSEWHERE, method=method)
        assert replaced.replaces == (edits[0].name,)
        ws.undo(replaced)
        for edit in ws.edits:
            ws.undo(edit)
            ws.drop(edit.name)
        assert ws.weights_hash() == ws.base.sha256


@pytest.mark.parametrize("how", ["quick", "joint"])
def test_other_ways_of_a_learned_edit(how: str, fresh: Fresh) -> None:
    made = []
    for default in (torch.device("cpu"), NOWHERE):
        ws = with_injector(fresh(default.type))
        ws.engine.methods["learned"] = Learned(joint_batch=JointBatch(min_facts=2, min_steps=2, visits=1))
        with default:
            made.append(ws.inject_all([BRIDGE, SUSHI], InjectOptions(quick=how == "quick", ungated=True)))
            assert [e.report["joint"] for e in made[-1]] == [how == "joint"] * 2
    assert same(numbers(made[0]), numbers(made[1]))


def test_a_model_without_a_workspace(cache: Path) -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=1)
    with NOWHERE:
        for method in ("consolidate", "token"):
            edit = npt.inject(model, tokenizer, BRIDGE, method=method)
            edit.undo()
        npt.consolidate_weights(model, [3, 4, 5]).undo()


def test_exports_and_imports(fresh: Fresh, tmp_path: Path) -> None:
    ws, other = fresh("one"), fresh("other")
    with NOWHERE:
        edit = ws.inject(BRIDGE, name="bridge")
        for export in (npt.export.peft, npt.export.gguf, npt.export.merged, npt.export.delta):
            assert export(ws, tmp_path / export.__name__).max_logit_error < 1e-4, export
        (taken,) = npt.export.import_edits(other, tmp_path / "delta")
        assert same(numbers([taken]), numbers([edit]))
        lora = npt.export.import_lora(other, tmp_path / "peft", name="lora")
        assert other.verify().ok
        other.undo(lora)
        other.undo(taken)
        assert other.weights_hash() == other.base.sha256


def test_calibration_fidelity_and_looking(fresh: Fresh, tmp_path: Path) -> None:
    here, ws = fresh("here"), fresh("nowhere")
    options = npt.CalibrateOptions(np_rank=4, tokens=200)
    npt.calibrate(here, options)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n\nSushi originated in Japan.")
    with NOWHERE:
        npt.calibrate(ws, options)
        assert same(parameters(ws).values(), parameters(here).values())
        found = ws.fidelity(max_tokens=60, each_layer=True)
        assert found == here.fidelity(max_tokens=60, each_layer=True)
        ws.fidelity(tmp_path / "text.txt", max_tokens=60)
        ws.sweep(max_tokens=40, ranks=(2,))
        read = npt.extract_modulation(ws.model, ws.tokenizer, BRIDGE, slice(None))
        read = read + npt.mean([read, 0.5 * read]).compress(2)[0]
        read.save(tmp_path / "modulation.safetensors")
        read = npt.Modulation.load(tmp_path / "modulation.safetensors")
        assert read.cosine(read) == pytest.approx(1)
        seen = npt.transfer(ws.model, ws.tokenizer, "The Golden Gate", read, position=slice(None), track=["Bridge"])
        assert all(0 <= p <= 1 for p in seen.after)
        ws.ask("The quick brown", max_new_tokens=4)
        ws.write("The quick brown", Writing(4, temperature=1.0, seed=1), "standard")
        ws.compare("The quick", 4, ["brown"])
        assert ws.next_token("The quick").sum().item() == pytest.approx(1)


@pytest.mark.parametrize("in_row", [False, True], ids=["alone", "in a row"])
def test_an_evaluation(in_row: bool, workspace: npt.Workspace, tmp_path: Path) -> None:
    suite, methods = (ZSRE, ("consolidate",)) if in_row else (COUNTERFACT, ("unedited", "prompt", "consolidate"))
    contenders, report = {m: editing_method(m) for m in methods}, tmp_path / "report"
    with NOWHERE:
        found = run_suite(
            workspace.engine, suite, RECORDS, contenders, "here", in_row=in_row, generate=in_row, report=report
        )
    assert found["steps" if in_row else "methods"]


def test_a_training_of_generators(fresh: Fresh) -> None:
    here, ws = fresh("here"), fresh("nowhere")
    settings = npt.TrainSettings(**SHORT | {"steps": 2, "init": "calibrated", "curriculum": "0.5,0,0.5"})
    npt.train(here, settings)
    with NOWHERE:
        npt.train(ws, settings)
    assert same(parameters(ws).values(), parameters(here).values())


def test_a_training_of_an_injector(fresh: Fresh, tmp_path: Path) -> None:
    data, short = facts(tmp_path / "train.jsonl", 40), InjectionSettings(4, crowds=(4,), text_rows=2, text_length=8)
    short = replace(short, crowd_every=1, keys_first=1, alone_first=2, behind_rows=2)
    made = []
    for default in (torch.device("cpu"), NOWHERE):
        ws = fresh(default.type)
        with default:
            loop = LoopSettings(steps=4, warmup=1, eval_every=2)
            train_injector(ws, [data], held_out=4, examples=12, loop=loop, injection=short, width=16)
            made.append(read_tensors(ws.path / INJECTOR_FILE)[0])
            assert ws.inject(BRIDGE, ungated=True).method == "learned"
    assert same(made[0].values(), made[1].values())


EVERYTHING = {"num_ranks": 4, "rank_weights": "attention", "top_ranks": 2, "gate": "learned", "coarse_rank": 3}
"""All extensions of the low-rank generator."""


@pytest.mark.parametrize("settings", [{}, {"generator": "low_rank"}, {"generator": "low_rank", **EVERYTHING}])
def test_convert_and_revert(settings: dict[str, Any]) -> None:
    model, ids = tiny("qwen3"), tokens()
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with NOWHERE:
            npt.convert(model, npt.PlasticityConfig(np_rank=4, **settings))
            assert model(input_ids=ids).logits.isfinite().all()
            assert npt.measure_fidelity(model, ids).kl < float("inf")
            npt.revert(model)
            assert torch.equal(model(input_ids=ids).logits, before)
