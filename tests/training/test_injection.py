"""A tiny injector trained from scratch: its loss falls, its edits hold on facts it has not seen, and it resumes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import neuroplastic as npt
from conftest import make_tokenizer
from facts import facts
from families import tiny
from injectors import set_learned
from neuroplastic.editing.injector import INJECTOR_FILE, Injector, InjectorConfig
from neuroplastic.surgery import mode
from neuroplastic.training.injection import Injection
from neuroplastic.training.lessons import Lessons, read_topics
from neuroplastic.training.loop import read_log, run
from neuroplastic.training.settings import InjectionSettings, LoopSettings, Variety
from neuroplastic.training.train_injector import train_injector

PLAIN = Variety(0, 0, 0, 0)
SHORT = InjectionSettings(
    batch_size=8, crowds=(8,), crowd_every=3, keys_first=2, alone_first=6, text_rows=2, text_length=8, behind_rows=4
)


def task(ws: npt.Workspace, data: Path, settings: InjectionSettings = SHORT) -> Injection:
    torch.manual_seed(0)
    ws.model.requires_grad_(False)
    engine = ws.engine
    config = InjectorConfig.fitting(ws.model, engine.text[0], width=16, heads=2, straight=8, hidden=16)
    lessons = Lessons(read_topics(data)[0], ws.tokenizer, [], PLAIN, 0, config.max_length)
    return Injection(engine, Injector(config), lessons, [], engine.text[0][:, 1:].tolist(), settings, 0)


def test_it_learns_and_its_edits_hold_on_unseen_facts(cache: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    shape: dict[str, Any] = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    model = tiny("llama", vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=1, **shape)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    workspace = npt.Workspace.create(tmp_path / "w", tmp_path / "base")
    data, unseen = facts(tmp_path / "train.jsonl", 120), facts(tmp_path / "new.jsonl", 12, first=150)
    card = train_injector(
        workspace,
        [data],
        without=[unseen],
        held_out=8,
        examples=48,
        loop=LoopSettings(steps=60, lr=3e-3, warmup=5, eval_every=0),
        injection=replace(SHORT, keys_first=10, alone_first=50),
        variety=PLAIN,
        width=32,
    )
    log = read_log(workspace.path / "training/injector")
    first, last = (sum(e["key"] for e in part) / len(part) for part in (log[:3], log[7:10]))
    assert last < 0.8 * first
    first, last = (sum(e["answer"] for e in part) / len(part) for part in (log[10:20], log[40:50]))
    assert last < 0.95 * first
    assert card["measured"]["facts"] == 8
    assert all(p.requires_grad for p in workspace.model.parameters())
    told = [npt.asked(t.wordings[0], t.answer) for t in read_topics(unseen)[0]]
    reports = [each.report for each in edits_alone(workspace, told)]
    assert sum(r["holds"] for r in reports) >= 10
    # what the injector says, without a gradient step, is more than an untrained one says
    set_learned(workspace, least_probability=1e-30)
    trained = [e.report["answer_probability_after"] for e in edits_alone(workspace, told, quick=True)]
    injector = workspace.engine.injector
    assert injector is not None
    torch.manual_seed(1)
    Injector(injector.config).save(workspace.path / INJECTOR_FILE, workspace.base.sha256, {})
    workspace.engine.forget_injector()
    untrained = [e.report["answer_probability_after"] for e in edits_alone(workspace, told, quick=True)]
    assert sum(a > 2 * b for a, b in zip(trained, untrained, strict=True)) >= 9


def edits_alone(ws: npt.Workspace, told: Sequence[npt.Fact], quick: bool = False) -> list[npt.Edit]:
    made = []
    for fact in told:
        made.append(ws.inject(fact, quick=quick, ungated=True))
        ws.undo(made[-1].name)
        ws.drop(made[-1].name)
    return made


@pytest.mark.parametrize("reads", ["residual", "attention"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_nothing_in_it_is_of_one_model(family: str, reads: Any, cache: Path, tmp_path: Path) -> None:
    """A few steps, alone and in a crowd, on other structures, depths and widths; and the injector is then used."""
    tokenizer = make_tokenizer()
    model = tiny(family, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=1, num_hidden_layers=3)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    workspace = npt.Workspace.create(tmp_path / "w", tmp_path / "base")
    train_injector(
        workspace,
        [facts(tmp_path / "train.jsonl", 40)],
        held_out=4,
        examples=12,
        loop=LoopSettings(steps=6, lr=3e-3, warmup=2, eval_every=0),
        injection=replace(SHORT, keys_first=1, alone_first=2, crowd_every=2),
        variety=PLAIN,
        width=16,
        reads=reads,
    )
    log = read_log(workspace.path / "training/injector")
    assert log[1]["gradient"] > 0
    assert log[3]["crowd"] > 0
    injector = workspace.engine.injector
    assert injector is not None
    assert injector.config.reads == reads
    edit = workspace.inject("The golden gate is in Paris.", ungated=True)
    assert edit.method == "learned"
    assert {layer for layer, _ in edit.factors} == set(injector.config.layers)


def test_a_training_that_was_cut_off_goes_on_to_the_same_bits(workspace: npt.Workspace, tmp_path: Path) -> None:
    data = facts(tmp_path / "train.jsonl", 40)
    whole = task(workspace, data)
    loop = LoopSettings(steps=15, save_every=5, warmup=2)
    run(whole, tmp_path / "whole", loop, {})
    for stop in (5, 10):
        cut = task(workspace, data)
        interrupt_behind(cut, stop + 2)
        with pytest.raises(KeyboardInterrupt):
            run(cut, tmp_path / "cut", loop, {}, resume=True)
    again = task(workspace, data)
    run(again, tmp_path / "cut", loop, {}, resume=True)
    for name, t in whole.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], t), name
    drop = ("seconds",)
    logs = [[{k: v for k, v in e.items() if k not in drop} for e in read_log(tmp_path / f)] for f in ("whole", "cut")]
    assert logs[0] == logs[1]


def interrupt_behind(task: Injection, last: int) -> None:
    """Makes a task stop, as by Ctrl-C, when a step is done and before anything is saved."""
    after = task.after

    def stop(step: int) -> None:
        after(step)
        if step == last:
            raise KeyboardInterrupt

    task.after = stop  # type: ignore[method-assign]


def test_what_is_trained_is_what_the_ledger_applies(workspace: npt.Workspace, tmp_path: Path) -> None:
    """The low-rank terms of training, alone and together, against edited weights."""
    set_learned(workspace, quick_strengths=(1.0,), least_probability=1e-30)  # reached without gradient steps
    t = task(workspace, facts(tmp_path / "train.jsonl", 20))
    t.injector.save(workspace.path / INJECTOR_FILE, workspace.base.sha256, {})
    workspace.engine.forget_injector()
    assert workspace.engine.injector is not None
    t.injector.load_state_dict(workspace.engine.injector.state_dict())
    lessons = t.lessons.batch(0, 3)
    with torch.no_grad(), mode(workspace.model, "standard"):
        found = t._propose(t.module, lessons)
        rows = [t._question(x.asked[1], x.answer, i, None) for i, x in enumerate(lessons)]
        together = t._read(rows, t._jointly(found))
        for x in lessons:
            workspace.inject(npt.asked(x.statement, x.answer, subject=x.subject), quick=True, ungated=True)
        assert_close(t._read(rows), together, atol=1e-4, rtol=1e-3)


def test_gradients_of_a_crowd_reach_only_the_batch(workspace: npt.Workspace, tmp_path: Path) -> None:
    t = task(workspace, facts(tmp_path / "train.jsonl", 40), replace(SHORT, keys_first=0, alone_first=0, crowd_every=2))
    for step in range(4):
        losses = t.losses(t.module, step, 0, 1)
        losses["loss"].backward()
        t.after(step)
        assert (losses["crowd"] > 0) == (step == 1 or step == 3)
        assert all(torch.isfinite(v) for v in losses.values())
    assert losses["crowd"] == 16  # eight of its own and eight earlier ones
    assert len(t.earlier.K) == 16
    assert all(p.grad is None for p in workspace.model.parameters())


def test_accumulated_batches_are_different_ones_and_all_join_the_crowd(
    workspace: npt.Workspace, tmp_path: Path
) -> None:
    settings = replace(SHORT, batch_size=4, keys_first=0)
    t = task(workspace, facts(tmp_path / "train.jsonl", 40), settings)
    for part in (0, 1):
        t.losses(t.module, 0, part, 2)
    t.after(0)
    whole = task(workspace, facts(tmp_path / "train.jsonl", 40), replace(settings, batch_size=8))
    whole.losses(whole.module, 0, 0, 1)
    whole.after(0)
    assert len(t.earlier.K) == 8
    assert sorted(t.earlier.subject.tolist()) == sorted(whole.earlier.subject.tolist())


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_base_of_another_dtype(dtype: str, workspace: npt.Workspace, tmp_path: Path) -> None:
    ws = npt.Workspace.create(tmp_path / "other", workspace.base.spec, dtype=dtype)
    t = task(ws, facts(tmp_path / "train.jsonl", 40), replace(SHORT, keys_first=0, alone_first=0, crowd_every=2))
    for step in range(2):
        losses = t.losses(t.module, step, 0, 1)
        losses["loss"].backward()
        t.after(step)
    assert losses["crowd"] > 0
    assert all(torch.isfinite(v) for v in losses.values())


def test_facts_with_one_wording_no_neighbours_or_too_many_tokens(
    workspace: npt.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [json.loads(line) for line in facts(tmp_path / "all.jsonl", 60).read_text().splitlines()]
    plain = [{"question": e["question"], "answer": e["answer"], "subject": e["subject"]} for e in entries]
    plain[7]["question"] = " ".join([plain[7]["question"]] * 20)
    data = tmp_path / "plain.jsonl"
    data.write_text("\n".join(map(json.dumps, plain)), encoding="utf-8")
    loop = LoopSettings(steps=4, warmup=1, eval_every=2)
    card = train_injector(
        workspace, [data], held_out=5, loop=loop, injection=replace(SHORT, alone_first=3), variety=PLAIN, width=16
    )
    said = " ".join(capsys.readouterr().err.split())
    assert "1 facts are left out: they take more than 64 tokens" in said
    assert "training starts from noise: 0 facts have two wordings" in said
    assert card["measured"]["facts"] == 5
    assert set(card["measured"]["alone"]) == {"told", "asked", "text_kl"}
    json.dumps(card, allow_nan=False)


def test_a_whole_training_that_was_cut_off_goes_on(
    workspace: npt.Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = facts(tmp_path / "train.jsonl", 60)
    given: dict[str, Any] = {
        "held_out": 4,
        "examples": 12,
        "loop": LoopSettings(steps=8, save_every=3, warmup=2, eval_every=0),
        "injection": SHORT,
        "variety": PLAIN,
        "width": 16,
    }
    other = npt.Workspace.create(tmp_path / "other", workspace.base.spec)
    train_injector(other, [data], **given)
    after = Injection.after

    def stop(self: Injection, step: int) -> None:
        after(self, step)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Injection, "after", stop)
    with pytest.raises(KeyboardInterrupt):
        train_injector(workspace, [data], **given)
    monkeypatch.undo()
    with pytest.raises(npt.NPTError, match="holds a training already"):
        train_injector(workspace, [data], **given)
    train_injector(workspace, [data], **given, resume=True)
    one, two = (Injector.load(w.path / INJECTOR_FILE, w.base.sha256)[0].state_dict() for w in (workspace, other))
    for name, t in one.items():
        assert torch.equal(two[name], t), name


def test_what_an_edit_costs_is_predicted_to_second_order(workspace: npt.Workspace, tmp_path: Path) -> None:
    """Against 1/2 tr(F dW C dW^T), with the C that the edit was whitened by."""
    t = task(workspace, facts(tmp_path / "train.jsonl", 20))
    with mode(workspace.model, "standard"), torch.no_grad():
        found = t._propose(t.module, t.lessons.batch(0, 4))
    assert t.fisher is not None
    costs = torch.zeros(4, dtype=torch.float64)
    for l, layer in enumerate(t.injector.config.layers):  # noqa: E741
        C = torch.linalg.inv(t.engine.whitening._inverses[layer, "m"].double())
        F = t.fisher[l].double()
        for n in range(4):
            dW = torch.outer(found.V[n, l].double(), found.A[n, l].double())
            costs[n] += 0.5 * torch.trace(F @ dW @ C @ dW.T)
    assert_close(t._drift(found).double(), costs.mean(), rtol=1e-3, atol=0)
    with_it = t.losses(t.module, SHORT.keys_first, 0, 1)
    with mode(workspace.model, "standard"), torch.no_grad():
        told = t._propose(t.module, t.lessons.batch(SHORT.keys_first, SHORT.batch_size))
    assert_close(with_it["drift"], 100 * t._drift(told))
    without = task(workspace, facts(tmp_path / "train.jsonl", 20), replace(SHORT, beta_drift=0.0))
    assert without.fisher is None
    assert "drift" not in without.losses(without.module, SHORT.keys_first, 0, 1)


def test_larger_crowds_join_later() -> None:
    settings = InjectionSettings(crowds=(16, 48, 984), alone_first=10, crowd_after=5)
    assert [settings.crowds_at(step) for step in (10, 14, 15, 20, 99)] == [
        (16,),
        (16,),
        (16, 48),
        (16, 48, 984),
        (16, 48, 984),
    ]


def test_bad_input_is_named_before_any_work(workspace: npt.Workspace, tmp_path: Path) -> None:
    data = facts(tmp_path / "train.jsonl", 20)
    with pytest.raises(npt.NPTError, match="20 facts about 20 subjects are too few"):
        train_injector(workspace, [data], held_out=0)
    with pytest.raises(npt.NPTError, match="above the model's context"):
        train_injector(workspace, [data], held_out=0, max_length=10**6)
    with pytest.raises(npt.NPTError, match="no file of facts"):
        train_injector(workspace, [])
    with pytest.raises(npt.NPTError, match="held_out must not be negative"):
        train_injector(workspace, [data], held_out=-1)
    for settings in ({"batch_size": 0}, {"crowds": ()}, {"crowds": (48, 16)}, {"beta_text": -1.0}, {"text_length": 2}):
        with pytest.raises(npt.NPTError):
            InjectionSettings(**settings)


def test_a_folder_of_another_training_is_refused(workspace: npt.Workspace, tmp_path: Path) -> None:
    data = facts(tmp_path / "train.jsonl", 40)
    loop = LoopSettings(steps=2, save_every=1)
    run(task(workspace, data), tmp_path / "t", loop, {"data": "a"})
    with pytest.raises(npt.NPTError, match="holds a training already"):
        run(task(workspace, data), tmp_path / "t", loop, {"data": "a"})
    with pytest.raises(npt.NPTError, match="another data"):
        run(task(workspace, data), tmp_path / "t", loop, {"data": "b"}, resume=True)
