"""Training of generators: to the same bits however often it is cut off, and refused where it cannot be."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import neuroplastic as npt
from distilling import SHORT, SMALL_TEXT, Stop, cut_off, parameters, words
from neuroplastic.cli import main
from neuroplastic.errors import CheckFailed
from neuroplastic.files import read_tensors
from neuroplastic.surgery import mode
from neuroplastic.training import loop
from neuroplastic.training import train_generators as training
from neuroplastic.training.checkpoint import checkpoints
from neuroplastic.training.distill import Distillation, every_nth, target_of
from neuroplastic.training.loop import read_log
from neuroplastic.training.packing import pack, stack


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_training_that_was_cut_off_twice_ends_in_the_same_bits(
    fresh: Any, monkeypatch: pytest.MonkeyPatch, accumulated: int
) -> None:
    settings = npt.TrainSettings(**SHORT, grad_accum=accumulated)
    whole = fresh("whole")
    npt.train(whole, settings)
    pieces = fresh("pieces")
    for step, resume in ((4, False), (8, True)):
        cut_off(pieces, settings, step, monkeypatch, resume)
        pieces = npt.Workspace.open(pieces.path)
    npt.train(pieces, settings, resume=True)
    expected, found = parameters(whole), parameters(pieces)
    assert expected
    assert all(torch.equal(t, found[n]) for n, t in expected.items())
    curves = [[e["loss"] for e in read_log(ws.path / training.FOLDER)] for ws in (whole, pieces)]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 10


def test_a_training_that_was_cut_off_behind_its_last_step_is_ended(
    fresh: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, dying = fresh("whole"), fresh("dying")
    expected = npt.train(whole, npt.TrainSettings(**SHORT))

    def die(self: Any) -> None:
        raise Stop

    with monkeypatch.context() as m:
        m.setattr(npt.Workspace, "save_generators", die)
        with pytest.raises(Stop):
            npt.train(dying, npt.TrainSettings(**SHORT))
    capsys.readouterr()
    assert main(["train", str(dying.path), *words(**SHORT), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["after"] == expected["after"]
    found = parameters(dying)
    assert all(torch.equal(t, found[n]) for n, t in parameters(whole).items())


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_bits(fresh: Any, tmp_path: Path) -> None:
    flags = words(steps=60, batch_size=2, max_length=16, np_rank=4, eval_every=0, save_every=1)
    whole, killed = fresh("whole"), fresh("killed")
    command = [sys.executable, "-c", SMALL_TEXT + "sys.exit(main(sys.argv[1:]))"]
    subprocess.run([*command, "train", str(whole.path), *flags], check=True, capture_output=True)
    for resume in ([], ["--resume"]):
        before = len(checkpoints(killed.path / training.FOLDER)) and checkpoints(killed.path / training.FOLDER)[-1]
        process = subprocess.Popen(
            [*command, "train", str(killed.path), *flags, *resume], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None:
            now = checkpoints(killed.path / training.FOLDER)
            if now and now[-1] != before:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, "train", str(killed.path), *flags, "--resume"], check=True, capture_output=True)
    found = parameters(killed)
    assert all(torch.equal(t, found[n]) for n, t in parameters(whole).items())


def test_training_lowers_the_loss_and_is_kept(fresh: Any) -> None:
    ws = fresh()
    edit = ws.inject("The Golden Gate Bridge is located in the city of Madrid.")
    weights = ws.weights_hash()
    settings = npt.TrainSettings(
        **{**SHORT, "steps": 60, "init": "random", "lr": 1e-2, "curriculum": "0.6,0.2,0.2", "np_rank": 16}
    )
    done = npt.train(ws, settings)
    log = read_log(ws.path / training.FOLDER)
    direct = [e["direct"] for e in log]
    assert sum(direct[25:35]) < 0.7 * sum(direct[:10])
    assert done["after"]["kl"] < done["before"]["kl"]
    assert set(done["after"]["sampled"]) == set(training.PROMPTS)
    assert ws.weights_hash() == weights
    assert all(p.requires_grad for p in ws.model.parameters())
    again = npt.Workspace.open(ws.path)
    assert again.config.np_rank == 16
    assert [e.name for e in again.edits] == [edit.name]
    with torch.no_grad(), again.engine.only(()):
        assert again.fidelity(max_tokens=24).kl == pytest.approx(done["after"]["kl"], rel=1e-4)
    report = (ws.path / training.FOLDER / "report.html").read_text()
    assert report.count("<svg") >= 6
    assert "Once upon a time" in report


@pytest.mark.parametrize("preset", ["v1", "v2", "single", "dual", "triple"])
@pytest.mark.parametrize("key", ["self", "learned"])
def test_every_preset_trains_and_logs(fresh: Any, preset: Any, key: Any) -> None:
    if key == "learned" and preset in ("v1", "v2"):
        pytest.skip("activations have no key")
    ws = fresh(preset=preset, generator="low_rank", np_rank=4, key=key)
    init = "random" if key == "learned" else "calibrated"
    npt.train(
        ws, npt.TrainSettings(**{**SHORT, "steps": 4, "init": init, "reg": "vectors", "curriculum": "0.5,0.25,0.25"})
    )
    log = read_log(ws.path / training.FOLDER)
    site = ws.config.axes.sites[0]
    expected = {
        "loss",
        "direct",
        "fidelity",
        "regularisation",
        "direct.0",
        "direct.1",
        f"norm.1.{site}",
        "stage",
        "blend",
    }
    assert expected | {"lr", "gradient", "tokens_per_second"} <= set(log[0])
    assert [e["stage"] for e in log] == [0, 0, 1, 2]
    assert any(n.startswith("rank.1") for n in log[0])
    assert ("cosine.1" in log[0]) == (preset not in ("v1", "v2"))
    assert all(torch.tensor([v for v in e.values() if isinstance(v, float)]).isfinite().all() for e in log)


def distillation(ws: npt.Workspace, **settings: Any) -> Distillation:
    module = Distillation(ws.model, npt.TrainSettings(**settings))
    module.measure_power(ws.held_out)
    return module


ROWS = stack(list(pack([[5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15, 16]], start=0, length=8)), 8)
WEIGHT = ROWS.valid / ROWS.valid.sum()


def test_the_teacher_stage_is_local_and_its_losses_are_the_formula(fresh: Any) -> None:
    ws = fresh(generator="low_rank", np_rank=4, input="effect")
    module = distillation(ws, reg_weight=0.0)
    found = module(ROWS, WEIGHT, 0.0)
    with torch.no_grad(), mode(ws.model, "standard"):
        states = ws.model(
            input_ids=ROWS.ids, position_ids=ROWS.positions, use_cache=False, output_hidden_states=True
        ).hidden_states
    for i, p in npt.plastic_layers(ws.model).items():
        captured: list[Any] = []
        parts: Any = p.parts
        handle = parts.attention_end.register_forward_hook(lambda m, a, out, c=captured: c.append(out))
        with torch.no_grad(), mode(ws.model, "standard"):
            ws.model(input_ids=ROWS.ids, position_ids=ROWS.positions, use_cache=False)
        handle.remove()
        a = captured[0][0] if isinstance(captured[0], tuple) else captured[0]
        mlp, g = parts.mlp, p.generator.state_dict()
        x, x_c = parts.norm(states[i]), parts.norm(states[i] + a)
        with torch.no_grad():
            code = (x_c - x) @ g["code.weight"].T
            gate = mlp.gate_proj(x) + code @ g["payload.gate.weight"].T
            up = mlp.up_proj(x) + code @ g["payload.up.weight"].T
            made = mlp.down_proj(mlp.act_fn(gate) * up)
            target = mlp.down_proj(mlp.act_fn(mlp.gate_proj(x_c)) * mlp.up_proj(x_c))
        error = (made - target).square().sum(-1) / target.square().sum(-1).clamp_min(float(module.power[i]))
        assert found[f"direct.{i}"].item() == pytest.approx(float((WEIGHT * error).sum()), rel=1e-4)
    lower, upper = (list(module.generators[i].parameters()) for i in ("0", "1"))
    crossing = torch.autograd.grad(found["direct.1"], lower, retain_graph=True, allow_unused=True)
    assert all(g is None for g in crossing)
    assert all(g is not None for g in torch.autograd.grad(found["direct.1"], upper))


def test_a_student_is_fed_a_blend_and_then_its_own(fresh: Any) -> None:
    """At blend 0 the mixed pass gives the teacher stage's direct losses; at 1 the plain plastic model."""
    ws = fresh(generator="low_rank", np_rank=4, input="effect")
    module = distillation(ws)
    with torch.no_grad():
        local = module(ROWS, WEIGHT, 0.0)
        nearly, half, own = (module(ROWS, WEIGHT, b) for b in (1e-7, 0.5, 1.0))
        with mode(ws.model, "standard"):
            teacher = ws.model(input_ids=ROWS.ids, position_ids=ROWS.positions, use_cache=False).logits
        with mode(ws.model, "dynamic"):
            student = ws.model(input_ids=ROWS.ids, position_ids=ROWS.positions, use_cache=False).logits
    for i in (0, 1):
        assert float(nearly[f"direct.{i}"]) == pytest.approx(float(local[f"direct.{i}"]), rel=1e-4)
    assert float(half["direct.0"]) == pytest.approx(float(local["direct.0"]), rel=1e-5)  # nothing is in front of it
    assert len({round(float(f["direct.1"]), 6) for f in (nearly, half, own)}) == 3
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    kl = ((p.exp() * (p - q)).sum(-1) * WEIGHT).sum()
    assert float(own["fidelity"]) == pytest.approx(float(kl), rel=1e-4)
    upper = module(ROWS, WEIGHT, 1.0)["direct.1"]
    crossing = torch.autograd.grad(upper, list(module.generators["0"].parameters()))
    assert all(g.abs().max() > 0 for g in crossing)


def test_padding_and_the_split_into_shares_change_nothing(fresh: Any) -> None:
    ws = fresh(generator="low_rank", np_rank=4, input="effect")
    module = distillation(ws)
    filled = dataclasses.replace(ROWS, ids=torch.where(ROWS.valid, ROWS.ids, 60))
    for blend in (0.0, 0.5, 1.0):
        with torch.no_grad():
            whole, other = module(ROWS, WEIGHT, blend), module(filled, WEIGHT, blend)
            first, second = (module(ROWS[at], WEIGHT[at], blend) for at in (slice(0, 1), slice(1, 2)))
        assert float(whole["loss"]) == pytest.approx(float(other["loss"]), rel=1e-6)
        assert float(whole["loss"]) == pytest.approx(float(first["loss"] + second["loss"]), rel=1e-5)


def test_each_layer_may_learn_from_some_of_the_tokens(fresh: Any) -> None:
    ws = fresh(generator="low_rank", np_rank=4, input="effect")
    for n in (2, 3):
        masks = torch.stack([every_nth(ROWS, n, offset) for offset in range(n)])
        assert torch.equal(masks.sum(0), torch.ones_like(ROWS.ids))  # each token once
        some, all_ = distillation(ws, every=n), distillation(ws, every=1)
        with torch.no_grad():
            found = some(ROWS, WEIGHT, 0.0)
            for i in (0, 1):
                expected = all_(ROWS, n * WEIGHT * masks[i], 0.0)
                for name in (f"direct.{i}", f"norm.{i}.gate", f"norm.{i}.up"):
                    assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-5)
            parts = [some(ROWS[at], WEIGHT[at], 0.0) for at in (slice(0, 1), slice(1, 2))]
        assert float(found["direct"]) == pytest.approx(sum(float(p["direct"]) for p in parts), rel=1e-5)


def test_an_oracle_has_no_direct_loss(fresh: Any) -> None:
    """Generators of full rank, calibrated, are the pretrained layers."""
    ws = fresh(generator="low_rank", np_rank=32, input="effect")
    npt.calibrate(ws)
    with torch.no_grad():
        found = distillation(ws)(ROWS, WEIGHT, 1.0)
    assert float(found["direct"]) < 1e-4
    assert float(found["fidelity"]) < 1e-4


def test_targets_carry_attention_where_the_layer_does_not(fresh: Any) -> None:
    ws = fresh(preset="triple", generator="low_rank", np_rank=4)
    from neuroplastic.observe import Seen, read_layers

    seen: list[Seen] = []
    p = npt.plastic_layers(ws.model)[1]
    with torch.no_grad(), mode(ws.model, "standard"):
        read_layers(ws.model, [p.parts], seen.append, input_ids=ROWS.ids)
    assert torch.equal(target_of(p, seen[0]), seen[0].y + seen[0].a)


def test_non_finite_steps_are_skipped_and_too_many_stop(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {3, 5}
    original = training.Distilling.losses

    def losses(self: Any, module: Any, step: int, part: int, parts: int) -> dict[str, Tensor]:
        found = original(self, module, step, part, parts)
        return {**found, "loss": found["loss"] * float("nan")} if step in bad else found

    monkeypatch.setattr(training.Distilling, "losses", losses)
    ws = fresh()
    npt.train(ws, npt.TrainSettings(**SHORT))
    assert all(t.isfinite().all() for t in parameters(ws).values())
    log = read_log(ws.path / training.FOLDER)
    assert [e["step"] for e in log if e["gradient"] != e["gradient"]] == [3, 5]
    _, metadata = read_tensors(checkpoints(ws.path / training.FOLDER)[-1])
    assert metadata["skipped"] == 2
    bad |= set(range(4, 10))
    other = fresh("other")
    before = parameters(other)
    with pytest.raises(CheckFailed, match=f"not finite for {loop.NOT_FINITE} steps in a row"):
        npt.train(other, npt.TrainSettings(**SHORT))
    assert other.config.generator == "analytic"
    assert parameters(other).keys() == before.keys()
    kept = read_tensors(checkpoints(other.path / training.FOLDER)[-1])[1]
    assert kept["step"] == 3


BAD_FILES = {
    "empty.txt": "\n\n",
    "empty.jsonl": "",
    "unknown.yaml": "stepz: 3",
    "sum.yaml": "curriculum: [0.8, 0.1, 0.2]",
    "word.yaml": "np_rank: many",
    "list.yaml": "- steps: 3",
    "not.yaml": "steps: [3",
}


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ("--np-rank 33", "np_rank 33 is above the model's width 32"),
        ("--layers 7", "layer 7 is out of range"),
        ("--data empty.txt", "empty.txt holds no text"),
        ("--data empty.jsonl", "empty.jsonl holds no text"),
        ("--data missing.txt", "there is no file 'missing.txt'"),
        ("--max-length 4096", "above the model's context of 128"),
        ("--init workspace", "continues from the generators that the workspace holds"),
        ("--curriculum 0.8,0.1,0.2", r"three shares that sum to 1, .* \(sum 1\.1\)"),
        ("--recipe unknown.yaml", "unknown.yaml: there is no setting 'stepz'; did you mean steps"),
        ("--recipe sum.yaml", "three shares that sum to 1"),
        ("--recipe word.yaml", "word.yaml: np_rank must be a whole number, not 'many'"),
        ("--recipe list.yaml", "list.yaml is not a mapping of settings"),
        ("--recipe not.yaml", "not.yaml is not YAML"),
        ("--recipe missing.yaml", "there is no file 'missing.yaml'"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    fresh: Any,
    tmp_path: Path,
    given: str,
    cause: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, content in BAD_FILES.items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    ws = fresh(np_rank=4)
    monkeypatch.setattr(training, "fit_generators", None)
    capsys.readouterr()
    assert main(["train", str(ws.path), "--max-length", "16", *given.split()]) == 2
    said = capsys.readouterr().err
    assert re.search(cause, said)
    assert said.startswith("npt: ")
    assert said.count("\n") == 1
    assert not (ws.path / "training").exists()
    assert npt.Workspace.open(ws.path).config.generator == "analytic"


def test_a_training_of_another_model_is_refused(
    fresh: Any, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = fresh()
    cut_off(ws, npt.TrainSettings(**SHORT), 4, monkeypatch)
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    weights = load_file(base / "model.safetensors")
    save_file(
        {n: 2 * t if n.endswith("down_proj.weight") else t for n, t in weights.items()}, base / "model.safetensors"
    )
    other = npt.Workspace.create(tmp_path / "other", base)
    shutil.copytree(ws.path / "training", other.path / "training")
    with pytest.raises(npt.NPTError, match="holds a training with another base;"):
        npt.train(other, npt.TrainSettings(**SHORT), resume=True)


def test_another_training_in_the_folder_is_refused(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ws = fresh()
    cut_off(ws, npt.TrainSettings(**SHORT), 4, monkeypatch)
    with pytest.raises(npt.NPTError, match="holds a training already"):
        npt.train(ws, npt.TrainSettings(**SHORT))
    with pytest.raises(npt.NPTError, match="another lr"):
        npt.train(ws, npt.TrainSettings(**SHORT, lr=0.5), resume=True)
    with pytest.raises(npt.NPTError, match="another plasticity, np_rank"):
        npt.train(ws, npt.TrainSettings(**{**SHORT, "np_rank": 5}), resume=True)
    checkpoint = checkpoints(ws.path / training.FOLDER)[-1]
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    with pytest.raises(npt.NPTError, match="is damaged"):
        npt.train(ws, npt.TrainSettings(**SHORT), resume=True)


def test_text_files_are_trained_on(fresh: Any, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": f"The fox number {i} jumps."}) for i in range(30)))
    ws = fresh()
    npt.train(ws, npt.TrainSettings(**{**SHORT, "steps": 3}, data=str(tmp_path / "t.jsonl")))
    assert len(read_log(ws.path / training.FOLDER)) == 3


def test_the_command_and_its_recipe(fresh: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ws = fresh()
    recipe_file = tmp_path / "r.yaml"
    recipe_file.write_text("steps: 50\nbatch_size: 2\nmax_length: 16\nnp_rank: 4\neval_tokens: 24\nlayers: top1\n")
    assert main(["train", str(ws.path), "--recipe", str(recipe_file), "--steps", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"before", "after", "folder"} == set(found)
    assert len(read_log(ws.path / training.FOLDER)) == 3
    assert npt.Workspace.open(ws.path).info()["plastic_layers"] == [1]
    recipe_file.write_text("stepz: 3")
    assert main(["train", str(ws.path), "--recipe", str(recipe_file), "--json"]) == 2
    assert "there is no setting 'stepz'" in capsys.readouterr().out


@pytest.mark.slow
def test_the_script_of_the_dual_recipe(tmp_path: Path, cache: Path, tiny_base: Path) -> None:
    """From another folder: it converts a model, hands flags on, and goes on with a training."""
    script = Path(__file__).parents[2] / "train_dual_modulation.sh"
    flags = words(steps=3, np_rank=4, batch_size=2, max_length=16, eval_tokens=24, save_every=2)
    environment = {
        **os.environ,
        "LAUNCH": f"{sys.executable} -m",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for more, status in (([], 0), ([], 2), (["--resume"], 0)):
        command = ["bash", str(script), "W", str(tiny_base), *flags, *more]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
    ws = npt.Workspace.open(tmp_path / "W")
    assert (ws.config.preset, ws.config.layers, ws.config.input, ws.config.num_ranks) == ("dual", "top2", "effect", 2)
    log = (ws.path / training.FOLDER / "log.jsonl").read_text().splitlines()
    settings = json.loads(log[0])["settings"]
    assert (settings["steps"], settings["np_rank"], settings["lr"], settings["warmup"]) == (3, 4, 2e-4, 200)
    assert len(log) == 4
