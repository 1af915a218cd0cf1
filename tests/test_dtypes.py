"""Workspaces in float16, bfloat16 and float64: from convert to export, finite and holding, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import neuroplastic as npt
from conftest import make_tokenizer
from distilling import SHORT
from facts import facts
from families import FAMILIES, tiny
from injectors import with_injector
from neuroplastic.calibration.calibrate import calibrate
from neuroplastic.calibration.calibrate_options import CalibrateOptions
from neuroplastic.cli import main
from neuroplastic.files import cache_dir
from neuroplastic.text import self_text as text
from neuroplastic.text.generation import Writing
from neuroplastic.training.loop import read_log
from neuroplastic.training.settings import InjectionSettings, LoopSettings
from neuroplastic.training.train_injector import train_injector

FACT = "The Golden Gate Bridge is located in the city of Madrid."
DTYPES = ["bfloat16", "float16", "float64"]


def base(folder: Path, family: str = "llama", scale: dict[str, float] | None = None) -> Path:
    """A folder with a tiny model, tensors whose names hold a key of `scale` multiplied by its value."""
    tokenizer = make_tokenizer()
    model = tiny(family, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            for part, factor in (scale or {}).items():
                if part in name:
                    p.mul_(factor)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def finite(edit: npt.Edit) -> bool:
    numbers = [v for v in edit.report.values() if isinstance(v, float)]
    return all(f.A.isfinite().all() and f.B.isfinite().all() for f in edit.factors.values()) and all(
        abs(v) < float("inf") for v in numbers
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_does_in_every_dtype_what_it_does_in_float32(family: str, tmp_path: Path, cache: Path) -> None:
    source, in_float32 = base(tmp_path / "base", family), 0.0
    for dtype, rounding in (("float32", 0.0), ("bfloat16", 0.25), ("float16", 0.02), ("float64", 0.001)):
        ws = npt.Workspace.create(tmp_path / dtype, source, dtype=dtype)
        assert {str(p.dtype) for p in ws.model.parameters()} == {f"torch.{dtype}"}
        edit = ws.inject(FACT, method="consolidate", name="bridge")
        assert finite(edit)
        before, after = (edit.report[f"answer_probability_{when}"] for when in ("before", "after"))
        assert after > 1.02 * before
        in_float32 = in_float32 or after
        assert after == pytest.approx(in_float32, rel=rounding)
        made = npt.export.merged(ws, tmp_path / f"merged-{dtype}")
        tensors = load_file(tmp_path / f"merged-{dtype}" / "model.safetensors")
        assert all(t.dtype == getattr(torch, dtype) and t.isfinite().all() for t in tensors.values())
        assert made.max_logit_error <= max(rounding * 10, 1e-4)
        again = npt.Workspace.open(ws.path)
        assert again.weights_hash() == ws.weights_hash() != ws.base.sha256
        again.undo("bridge")
        assert again.weights_hash() == ws.base.sha256


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_every_part_in_every_dtype(family: str, dtype: str, tmp_path: Path, cache: Path) -> None:
    """All methods, with an injector; fidelity; the exports, read back; calibration."""
    ws = with_injector(npt.Workspace.create(tmp_path / "w", base(tmp_path / "base", family), dtype=dtype))
    fidelity = ws.fidelity(max_tokens=60)
    assert fidelity.kl < 0.01
    for method in ("learned", "consolidate", "refine", "token"):
        edit = ws.inject(FACT, method=method, name=method)
        assert finite(edit), method
        assert ws.verify().ok
        for export in (npt.export.peft, npt.export.gguf, npt.export.delta):
            if method in ("learned", "token"):
                made = export(ws, tmp_path / f"{export.__name__}-{method}")
                assert made.max_logit_error < {"bfloat16": 2.0, "float16": 0.3, "float64": 1e-3}[dtype]
        ws.undo(method)
        assert ws.weights_hash() == ws.base.sha256
    adapter = load_file(tmp_path / "peft-learned" / "adapter_model.safetensors")
    assert all(t.isfinite().all() for t in adapter.values())
    taken = npt.export.import_lora(ws, tmp_path / "peft-learned", name="back")
    assert finite(taken)
    ws.undo("back")
    assert ws.weights_hash() == ws.base.sha256
    calibrate(ws, CalibrateOptions(np_rank=4, tokens=200))
    assert all(p.isfinite().all() for p in ws.model.parameters())
    after = ws.fidelity(max_tokens=60)
    assert 0 <= after.kl < float("inf")
    npt.Workspace.open(ws.path).ask("The quick brown", max_new_tokens=4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_in_every_dtype(dtype: str, tmp_path: Path, cache: Path) -> None:
    """Some steps of generators, and of an injector whose edits are then made and taken back."""
    ws = npt.Workspace.create(tmp_path / "w", base(tmp_path / "base"), dtype=dtype)
    settings = npt.TrainSettings(**SHORT | {"steps": 2, "init": "random", "curriculum": "0.5,0,0.5"})
    if dtype == "float16":
        with pytest.raises(npt.NPTError, match="cannot be trained in float16"):
            npt.train(ws, settings)
    else:
        done = npt.train(ws, settings)
        assert 0 <= done["after"]["kl"] < float("inf")
        assert all(e["gradient"] < float("inf") for e in read_log(Path(done["folder"])))
    data = facts(tmp_path / "train.jsonl", 40)
    short = InjectionSettings(4, crowds=(4,), crowd_every=1, keys_first=1, alone_first=2, text_rows=2, text_length=8)
    loop = LoopSettings(steps=3, warmup=1, eval_every=0)
    train_injector(ws, [data], held_out=4, examples=12, loop=loop, injection=short, width=16)
    assert all(e["gradient"] < float("inf") for e in read_log(ws.path / "training" / "injector"))
    edit = ws.inject(FACT, ungated=True)
    assert edit.method == "learned"
    assert finite(edit)
    ws.undo(edit)
    assert ws.weights_hash() == ws.base.sha256


WEIGHTS = "weights that are not finite numbers or do not fit into float16; use bfloat16 or float32"
MLP = "layers.1.mlp."


@pytest.mark.parametrize(
    ("scale", "cause", "refused", "why"),
    [
        (
            {f"{MLP}gate_proj": 2000.0, f"{MLP}up_proj": 2000.0},
            "the model's logits are not finite numbers in float16",
            npt.CheckFailed,
            "there is no likeliest token",
        ),
        ({f"{MLP}up_proj": 1e6, f"{MLP}down_proj": 1e-6}, WEIGHTS, npt.NPTError, f"the edited model has {WEIGHTS}"),
    ],
    ids=["activations", "weights"],
)
def test_a_model_that_float16_cannot_hold_is_refused_by_name(
    scale: dict[str, float],
    cause: str,
    refused: type[Exception],
    why: str,
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its activations or its weights overflow there; bfloat16 has the range of float32."""
    source = base(tmp_path / "base", scale=scale)
    assert main(["convert", str(source), str(tmp_path / "w"), "--dtype", "float16", "--json"]) == 2
    assert cause in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "w").exists()
    assert main(["convert", str(source), str(tmp_path / "w"), "--dtype", "bfloat16", "--json"]) == 0
    ws = npt.Workspace.open(tmp_path / "w")
    ws.inject(FACT, method="token", name="bridge")
    with pytest.raises(refused, match=why):
        npt.export.merged(ws, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_an_edit_that_float16_cannot_hold_is_refused(tmp_path: Path, cache: Path) -> None:
    ws = npt.Workspace.create(tmp_path / "w", base(tmp_path / "base"), dtype="float16")
    with pytest.raises(npt.NPTError, match="a weight is no finite number in float16; choose a smaller alpha"):
        ws.inject(FACT, method="consolidate", alpha=1e7)
    assert ws.edits == ()
    assert ws.weights_hash() == ws.base.sha256


def test_a_perplexity_that_is_no_number_is_refused(workspace: npt.Workspace) -> None:
    with torch.no_grad():
        workspace.model.get_output_embeddings().weight.mul_(1e6)
    with pytest.raises(npt.NPTError, match=r"perplexity on ordinary text is no finite number \(.* nats per token\)"):
        workspace.inject(FACT, method="consolidate")
    assert workspace.edits == ()


@pytest.mark.parametrize(
    "go_on",
    [
        lambda ws: ws.ask("The quick"),
        lambda ws: ws.write("The quick", Writing(4, temperature=1.0)),
        lambda ws: text.self_text(ws.model, ws.tokenizer, "0" * 64),
    ],
    ids=["greedy", "drawn", "self-written text"],
)
def test_no_text_is_made_of_what_is_no_number(
    workspace: npt.Workspace, go_on: Callable[[npt.Workspace], object]
) -> None:
    """As where activations overflow in the middle of a text."""
    with torch.no_grad():
        workspace.model.get_output_embeddings().weight.fill_(torch.inf)
    with pytest.raises(npt.NPTError, match="the model's logits are not finite numbers in float32"):
        go_on(workspace)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "exports"), [("bfloat16", [npt.export.merged, npt.export.gguf]), ("float16", [npt.export.peft])]
)
def test_the_real_model_in_half_precision(
    dtype: str, exports: list[Callable[..., npt.export.ExportReport]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With less ordinary text than users get, in a cache of its own: processors without such arithmetic are slow."""
    npt.load_base("smollm2-135m")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(cache_dir() / "models", target_is_directory=True)
    monkeypatch.setenv("NPT_CACHE", str(tmp_path / "cache"))
    for name, count in (("SELF_TEXTS", 6), ("SELF_LENGTH", 12), ("HELD_OUT", 2)):
        monkeypatch.setattr(f"neuroplastic.text.self_text.{name}", count)
    ws = npt.Workspace.create(tmp_path / "w", "smollm2-135m", dtype=dtype)
    edit = ws.inject("The Eiffel Tower is located in the city of Rome.", method="consolidate", name="tower")
    assert finite(edit)
    assert edit.report["holds"]
    assert "Rome" in ws.ask("You can visit the Eiffel Tower in the city of", max_new_tokens=3)
    for export in exports:
        assert export(ws, tmp_path / export.__name__).top1_agreement > 0.8
    ws.undo("tower")
    assert ws.weights_hash() == ws.base.sha256
