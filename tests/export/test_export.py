"""Exports through the real libraries on a tiny model; the real model is in test_real.py."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import neuroplastic as npt
from families import tiny
from gguf_files import write_gguf
from neuroplastic import models
from neuroplastic.cli import main
from neuroplastic.export import card, check_servable, lora_import
from neuroplastic.export.export_report import at_uniform_rank, combine
from neuroplastic.modulation import compress

FACT = "The Golden Gate Bridge is located in the city of Madrid."
OTHER = "Sushi originated in the country of Italy."


@pytest.fixture
def ws(workspace: npt.Workspace) -> npt.Workspace:
    for name, statement in (("bridge", FACT), ("sushi", OTHER)):  # no capitals, no subject: a rank per token
        workspace.inject(statement.lower(), name=name, layers="all", sites="gate+up+down", alpha=0.3)
    return workspace


def logits(model: Any, ws: npt.Workspace) -> torch.Tensor:
    ids = torch.tensor([[0, *ws.tokenizer(FACT, add_special_tokens=False).input_ids]])
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return out


def edited(ws: npt.Workspace) -> torch.Tensor:
    npt.set_mode(ws.model, "standard")
    return logits(ws.model, ws)


def load(spec: object) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(spec), dtype=torch.float32).eval()


def test_compress_is_the_best_low_rank_approximation() -> None:
    g = torch.Generator().manual_seed(0)
    A, B = (torch.randn(*s, dtype=torch.float64, generator=g) for s in ((12, 20), (30, 12)))
    U, S, Vh = torch.linalg.svd(B @ A, full_matrices=False)
    for rank in (1, 5, 12, 40):
        small_A, small_B, dropped = compress(A, B, rank)
        assert small_A.shape[0] == small_B.shape[1] == min(rank, 12)
        assert_close(small_B @ small_A, (U[:, :rank] * S[:rank]) @ Vh[:rank])
        assert dropped == pytest.approx(S[rank:].square().sum().item(), abs=1e-9)
        assert_close(small_A @ small_A.T, torch.eye(min(rank, 12), dtype=torch.float64))


def test_the_smallest_rank_that_fits_is_taken(ws: npt.Workspace) -> None:
    factors = combine(ws.edits)
    longest = max(len(f.A) for f in factors.values())
    uniform, rank, dropped = at_uniform_rank(factors, None)
    assert rank >= min(longest, 32)  # the model's width is 32
    assert rank / 2 < longest
    assert dropped < 1e-12
    for place, f in factors.items():
        assert uniform[place].A.shape[0] == uniform[place].B.shape[1] == rank
        assert_close(uniform[place].B @ uniform[place].A, f.B @ f.A, atol=1e-4, rtol=1e-3)
    with pytest.raises(npt.NPTError, match=r"at rank 8 the edits lose .*%.*allow it with --tolerance"):
        at_uniform_rank(factors, 8)
    assert 0 < at_uniform_rank(factors, 8, tolerance=1.0)[2] < 1
    with pytest.raises(npt.NPTError, match="rank must be one of 8, 16"):
        at_uniform_rank(factors, 12)


def test_peft_loads_the_adapter_three_ways(ws: npt.Workspace, tiny_base: Path, tmp_path: Path) -> None:
    report = npt.export.peft(ws, tmp_path / "adapter")
    assert report.max_logit_error < 1e-4
    assert (report.edits, report.top1_agreement) == (["bridge", "sushi"], 1.0)
    expected = edited(ws)
    assert (expected - logits(load(tiny_base), ws)).abs().max() > 0.01
    wrapped = PeftModel.from_pretrained(load(tiny_base), str(tmp_path / "adapter"))
    assert_close(logits(wrapped, ws), expected, atol=1e-4, rtol=0)
    assert_close(logits(wrapped.merge_and_unload(), ws), expected, atol=1e-4, rtol=0)
    plain = load(tiny_base)
    plain.load_adapter(str(tmp_path / "adapter"))
    assert_close(logits(plain, ws), expected, atol=1e-4, rtol=0)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert FACT.lower() in card
    assert ws.base.sha256 in card
    recorded = json.loads((ws.path / "exports.jsonl").read_text())
    assert (recorded["format"], recorded["max_logit_error"]) == ("peft", report.max_logit_error)


def test_some_edits_of_some_sites(ws: npt.Workspace, tiny_base: Path, tmp_path: Path) -> None:
    """An edit without down leaves it out; gate and up are there, with zeros where an edit has none."""
    token = ws.inject(FACT, method="token", name="token")
    assert {site for _, site in token.factors} == {"gate", "up"}
    report = npt.export.peft(ws, tmp_path / "adapter", ["token"])
    assert (report.rank, report.edits) == (8, ["token"])
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert not any("down" in n for n in tensors)
    only_up = {p: f for p, f in token.factors.items() if p == (1, "up")}
    half = npt.Edit("half", FACT, "token", 1.0, ws.base.sha256, 0, "2026-01-01", only_up)
    ws.add([half])
    npt.export.peft(ws, tmp_path / "half", ["half"])
    tensors = load_file(tmp_path / "half" / "adapter_model.safetensors")
    assert {n.split(".")[4] for n in tensors} == {"1"}
    assert not tensors["base_model.model.model.layers.1.mlp.gate_proj.lora_B.weight"].any()
    assert tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"].any()


def test_merged_needs_nothing_of_ours(ws: npt.Workspace, tmp_path: Path) -> None:
    report = npt.export.merged(ws, tmp_path / "merged")
    assert report.max_logit_error < 1e-4
    torch.save(edited(ws), tmp_path / "expected.pt")
    code = f"""
import sys
sys.modules["neuroplastic"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "merged")!r}, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / "merged")!r})
ids = torch.tensor([[0, *tokenizer({FACT!r}, add_special_tokens=False).input_ids]])
with torch.no_grad():
    out = model(input_ids=ids, use_cache=False).logits
assert (out - torch.load({str(tmp_path / "expected.pt")!r})).abs().max() < 1e-4
assert type(model).__name__ == "LlamaForCausalLM"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = {f.name for f in (tmp_path / "merged").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not any("npt" in f for f in files)
    assert set(load_file(tmp_path / "merged" / "model.safetensors")) == set(
        load_file(ws.base.spec + "/model.safetensors")
    )


def test_merged_in_bfloat16(ws: npt.Workspace, tmp_path: Path) -> None:
    report = npt.export.merged(ws, tmp_path / "merged", dtype="bfloat16")
    assert report.top1_agreement >= 0.8  # a random model's likeliest tokens are near to each other
    assert {t.dtype for t in load_file(tmp_path / "merged" / "model.safetensors").values()} == {torch.bfloat16}


def test_gguf_is_read_back(ws: npt.Workspace, tmp_path: Path) -> None:
    from gguf import GGUFReader

    report = npt.export.gguf(ws, tmp_path / "out")
    assert report.max_logit_error < 1e-4
    reader = GGUFReader(tmp_path / "out" / "adapter.gguf")
    text = {
        k: bytes(f.parts[f.data[0]]).decode()
        for k, f in reader.fields.items()
        if f.types and f.types[0].name == "STRING"
    }
    assert (text["general.type"], text["adapter.type"], text["general.architecture"]) == ("adapter", "lora", "llama")
    assert reader.fields["adapter.lora.alpha"].parts[-1][0] == report.rank
    shapes = {t.name: tuple(map(int, t.shape)) for t in reader.tensors}
    assert shapes["blk.1.ffn_down.weight.lora_a"] == (48, report.rank)
    assert shapes["blk.1.ffn_down.weight.lora_b"] == (report.rank, 32)
    assert len(shapes) == 2 * 3 * 2


def test_delta_moves_edits_to_another_workspace(ws: npt.Workspace, tiny_base: Path, tmp_path: Path) -> None:
    assert npt.export.delta(ws, tmp_path / "delta").max_logit_error == 0
    other = npt.Workspace.create(tmp_path / "other", tiny_base, npt.PlasticityConfig(preset="triple"))
    other.inject("The quick brown fox is lazy.", name="fox")
    taken = npt.export.import_edits(other, tmp_path / "delta", ["sushi"])
    assert [e.name for e in taken] == ["sushi"]
    with pytest.raises(npt.NPTError, match="there is an edit named 'sushi' already; undo and drop it first"):
        npt.export.import_edits(other, tmp_path / "delta")
    assert [e.name for e in other.edits] == ["fox", "sushi"]
    npt.export.import_edits(other, tmp_path / "delta", ["bridge"])
    other.undo("fox")
    assert_close(edited(other), edited(ws), atol=1e-5, rtol=0)
    again = npt.Workspace.open(tmp_path / "other")
    assert [e.name for e in again.edits] == ["sushi", "bridge"]
    assert again.weights_hash() == other.weights_hash()
    with pytest.raises(npt.NPTError, match="has no edit 'x'; it has: bridge, sushi"):
        npt.export.import_edits(other, tmp_path / "delta", ["x"])
    with pytest.raises(npt.NPTError, match=r"it has no npt_delta\.json"):
        npt.export.import_edits(other, tmp_path)


def test_an_exported_adapter_comes_back_as_an_edit(ws: npt.Workspace, tmp_path: Path) -> None:
    npt.export.peft(ws, tmp_path / "adapter")
    with_both = edited(ws)
    ws.undo("bridge")
    ws.undo("sushi")
    edit = npt.export.import_lora(ws, tmp_path / "adapter", name="both")
    assert (edit.method, ws.edits) == ("lora", (edit,))
    assert_close(edited(ws), with_both, atol=1e-4, rtol=0)
    ws.undo("both")
    assert ws.weights_hash() == ws.base.sha256
    half = npt.export.import_lora(ws, tmp_path / "adapter", alpha=0.5)
    assert half.norm == pytest.approx(edit.norm / 2, rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 16},
        {"use_rslora": True},
        {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"down_proj": 3}},
        {"rank_pattern": {r"layers\.1\.mlp\.(gate|up)_proj": 3}, "alpha_pattern": {"model.layers.0.mlp.up_proj": 5}},
        {"exclude_modules": ["layers.0.mlp.up_proj"]},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": r".*\.1\.mlp\.(gate|down)_proj"},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.5, "task_type": "CAUSAL_LM"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_a_lora_trained_elsewhere_does_what_it_does_in_peft(
    workspace: npt.Workspace, tiny_base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = LoraConfig(**{"r": 4, "target_modules": ["gate_proj", "up_proj", "down_proj"], **settings})
    model = get_peft_model(load(tiny_base), config).eval()
    for name, p in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(str(tmp_path / "adapter"))
    expected = logits(model, workspace)
    npt.export.import_lora(workspace, tmp_path / "adapter")
    assert (expected - logits(load(tiny_base), workspace)).abs().max() > 0.01
    assert_close(edited(workspace), expected, atol=1e-4, rtol=0)


BEYOND_A_WEIGHT_EDIT: dict[str, Any] = {
    "alora_invocation_tokens": [5, 6],
    "layer_replication": [[0, 2], [1, 2]],
    "use_dora": True,
    "use_qalora": True,
    "use_bdlora": {"target_modules_bd_a": ["up_proj"], "nblocks": 2},
    "modules_to_save": ["lm_head"],
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "trainable_token_indices": [1, 2],
    "lora_bias": True,
    "fan_in_fan_out": True,
    "megatron_config": {"tensor_model_parallel_size": 2},
    "arrow_config": {"top_k": 3},
    "kasa_config": {"beta": 1e-4},
    "monteclora_config": {"num_samples": 4},
    "init_lora_weights": "pissa",
    "a_setting_of_a_later_peft": "on",
}


def test_settings_beyond_a_weight_edit_are_refused_by_name(
    workspace: npt.Workspace, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False)
    get_peft_model(load(tiny_base), config).save_pretrained(str(tmp_path / "adapter"))
    file = tmp_path / "adapter" / "adapter_config.json"
    plain = json.loads(file.read_text())
    before = workspace.weights_hash()
    for name, value in BEYOND_A_WEIGHT_EDIT.items():
        file.write_text(json.dumps({**plain, name: value}))
        assert main(["import-lora", str(workspace.path), str(tmp_path / "adapter"), "--json"]) == 2
        out, err = capsys.readouterr()
        assert f"sets {name}" in json.loads(out)["error"]
        assert err.count("\n") == 1 + ("Loading" in err)
    for other in ("pissa_niter_4", "olora", "corda", "loftq", "lora_ga"):  # these move the pretrained weights too
        file.write_text(json.dumps({**plain, "init_lora_weights": other}))
        with pytest.raises(npt.NPTError, match=f"sets init_lora_weights to '{other}'"):
            npt.export.import_lora(workspace, tmp_path / "adapter")
    for changes, cause in (
        ({"r": 3}, "have rank 2, and adapter_config.json says 3"),
        ({"rank_pattern": {"up_proj": 0}}, "is no rank"),
        ({"lora_alpha": "much"}, "is damaged"),
        ({"alpha_pattern": {"(": 2}}, "is damaged"),
        ({"target_modules": None}, "names no target_modules"),
        ({"target_modules": ["down_proj"]}, "which its adapter_config.json leaves out"),
        ({"layers_to_transform": [0]}, r"'model\.layers\.1\.mlp\.up_proj', which its adapter_config.json leaves out"),
        ({"exclude_modules": ["up_proj"]}, "leaves out"),
        ({"peft_type": "IA3"}, "is a IA3 adapter"),
    ):
        file.write_text(json.dumps({**plain, **changes}))
        with pytest.raises(npt.NPTError, match=cause):
            npt.export.import_lora(workspace, tmp_path / "adapter")
    for content in ("[]", "{", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"):
        file.write_text(content)
        with pytest.raises(npt.NPTError, match=r"is damaged|pointer of Git LFS"):
            npt.export.import_lora(workspace, tmp_path / "adapter")
    assert workspace.weights_hash() == before
    known = {f.name for f in dataclasses.fields(LoraConfig)}
    decided = lora_import.READ | lora_import.PLACES | lora_import.TRAINING | BEYOND_A_WEIGHT_EDIT.keys() | {"bias"}
    assert known <= decided, "PEFT has new settings: are they obeyed, refused, or without effect?"


def test_what_peft_saves_of_an_activated_lora_is_refused(
    workspace: npt.Workspace, tiny_base: Path, tmp_path: Path
) -> None:
    config = LoraConfig(
        target_modules=["up_proj"], init_lora_weights=False, alora_invocation_tokens=[5, 6], task_type="CAUSAL_LM"
    )
    get_peft_model(load(tiny_base), config).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(npt.NPTError, match="sets alora_invocation_tokens, which a weight edit cannot express"):
        npt.export.import_lora(workspace, tmp_path / "adapter")


MARKUP = 'The "quick": `fox` | is <b>not</b> *lazy*, [x](y) __so__ &amp; # $5$ \\| ~~it~~ is in the city of Madrid.'


def front_matter_and_body(card: Path) -> tuple[dict[str, Any], str]:
    _, head, body = card.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), body


def shown(body: str) -> tuple[str, list[str]]:
    """The heading and the cells of the table that a reader of the Markdown sees."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("gfm-like", {"linkify": False}).disable("linkify").parse(body)
    text = ["".join(c.content for c in t.children or ()) for t in tokens]
    written = next(t for t in tokens if t.type == "inline" and t.content.startswith('The "quick"'))
    assert {c.type for c in written.children or ()} <= {"text", "text_special"}
    kinds = [t.type for t in tokens]
    heading = text[kinds.index("heading_open") + 1]
    return heading, [text[i + 1] for i, kind in enumerate(kinds) if kind == "td_open"]


def test_markup_breaks_no_card_and_a_folder_is_named_for_peft_alone(
    tiny_base: Path, tmp_path: Path, cache: Path
) -> None:
    base = tmp_path / 'base: "one" `two` - {three}\n# four | <i>'
    shutil.copytree(tiny_base, base)
    ws = npt.Workspace.create(tmp_path / "w", base)
    ws.inject(npt.asked(MARKUP.removesuffix(" Madrid."), "Madrid"), name="one", layers="all", alpha=0.3)
    npt.export.peft(ws, tmp_path / "adapter")
    head, body = front_matter_and_body(tmp_path / "adapter" / "README.md")
    assert head == {"library_name": "peft", "tags": ["lora", "model-editing", "neuroplastic"]}
    heading, cells = shown(body)
    assert heading == "Edits of " + " ".join(str(base).split())
    assert cells[0] == "one"
    assert cells[1] == ws.edits[0].statement
    assert len(cells) == 5
    assert "a folder of the machine where this adapter was made" in body
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(base)
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"), dtype=torch.float32).eval()
    assert_close(logits(loaded, ws), edited(ws), atol=1e-4, rtol=0)


def test_a_base_that_nobody_else_can_load_is_not_named(tmp_path: Path, cache: Path) -> None:
    ws = npt.Workspace.create(tmp_path / "w", write_gguf(tmp_path / "tiny.gguf"))
    ws.inject(FACT.lower(), name="bridge", layers="all", alpha=0.3)
    npt.export.peft(ws, tmp_path / "adapter")
    head, body = front_matter_and_body(tmp_path / "adapter" / "README.md")
    assert "base_model" not in head
    assert "no name that transformers or a hub can load" in body
    assert ws.base.sha256 in body
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    ws.undo("bridge")
    assert npt.export.import_lora(ws, tmp_path / "adapter", name="back").method == "lora"


def test_what_a_base_is_called_for_others(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for spec, on_the_hub, in_adapters in (
        ("someone/a-model", "someone/a-model", "someone/a-model"),
        ("smollm2-135m", None, None),
        (str(tiny_base), None, str(tiny_base)),
        (str(tmp_path / "gone"), None, None),
        (str(tmp_path / "model.gguf"), None, None),
    ):
        assert (models.hub_id(spec), models.named_in_adapters(spec)) == (on_the_hub, in_adapters)
    assert card.plain("a\u2028b\x00c\td\n---\n e") == "a b c d --- e"


def test_bad_adapters_are_refused(ws: npt.Workspace, tiny_base: Path, tmp_path: Path) -> None:
    def saved(name: str, **settings: Any) -> Path:
        config = LoraConfig(**{"r": 2, "target_modules": ["up_proj"], "init_lora_weights": False, **settings})
        get_peft_model(load(tiny_base), config).save_pretrained(str(tmp_path / name))
        return tmp_path / name

    def config_with(folder: Path, **changes: Any) -> Path:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
        return folder

    npt.export.peft(ws, tmp_path / "ours")
    ours = tmp_path / "ours" / "adapter_model.safetensors"
    save_file(load_file(ours), ours, metadata={"npt_base": "0" * 64})
    plain = saved("plain")
    (tmp_path / "empty").mkdir()
    cut = saved("cut") / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-5])
    pickled = saved("pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    before = ws.weights_hash()
    for folder, cause in [
        (tmp_path / "empty", r"it has no adapter_config\.json"),
        (tmp_path / "ours", "was made for another base model"),
        (config_with(saved("foreign"), base_model_name_or_path="someone/else"), "--any-base"),
        (saved("attention", target_modules=["q_proj"]), "self_attn.q_proj.*not an MLP projection"),
        (saved("dora", use_dora=True), "sets use_dora"),
        (saved("bias", bias="all"), "trains biases"),
        (cut.parent, "is damaged"),
        (pickled, "pickled adapters are not read"),
        (saved("zero", init_lora_weights=True), "changes nothing"),
    ]:
        with pytest.raises(npt.NPTError, match=cause):
            npt.export.import_lora(ws, folder)
    with pytest.raises(npt.NPTError, match="alpha must be"):
        npt.export.import_lora(ws, plain, alpha=0)
    with pytest.raises(npt.NPTError, match="there is an edit named 'sushi' already; undo and drop it first"):
        npt.export.import_lora(ws, plain, name="sushi")
    assert ws.weights_hash() == before
    assert len(ws.edits) == 2
    npt.export.import_lora(ws, tmp_path / "foreign", any_base=True)


def test_what_servers_would_refuse(ws: npt.Workspace, tmp_path: Path) -> None:
    npt.export.peft(ws, tmp_path / "good")
    check_servable(tmp_path / "good")
    config = json.loads((tmp_path / "good" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "good" / "adapter_model.safetensors")
    some = "base_model.model.model.layers.0.mlp.gate_proj.lora_A.weight"

    def written(name: str, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, tmp_path / name / "adapter_model.safetensors")
        return tmp_path / name

    cases: list[tuple[dict[str, Any], str | None, dict[str, torch.Tensor], str]] = [
        ({"r": 12}, None, {}, "rank 12 is not one of"),
        ({"lora_alpha": 1}, None, {}, "lora_alpha 1 is not the rank"),
        ({"modules_to_save": ["lm_head"]}, None, {}, "modules_to_save is set"),
        ({"rank_pattern": {"up": 2}}, None, {}, "rank_pattern is set"),
        ({"bias": "all"}, None, {}, "bias is trained"),
        ({"layers_to_transform": [0]}, None, {}, "layers_to_transform does not name"),
        ({}, some, {}, "layer 0 lacks gateA"),
        ({}, None, {some: tensors[some][:3]}, "not rank"),
        ({}, None, {"base_model.model.lm_head.lora_A.weight": tensors[some]}, "unexpected tensor"),
    ]
    for i, (changes, drop, add, cause) in enumerate(cases):
        kept = {n: t.clone() for n, t in {**tensors, **add}.items() if n != drop}
        folder = written(f"bad{i}", {**config, **changes}, kept)
        with pytest.raises(npt.NPTError, match=cause):
            check_servable(folder)
    with pytest.raises(npt.NPTError, match="is not an adapter folder"):
        check_servable(tmp_path)


@pytest.mark.parametrize("format", ["peft", "merged", "gguf", "delta"])
def test_bad_exports_leave_nothing(
    workspace: npt.Workspace, tmp_path: Path, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def status(*args: object) -> int:
        return main(["export", str(workspace.path), *map(str, args), "--format", format, "--json"])

    before = {f for f in tmp_path.iterdir() if f.name != "cache"}
    assert status(tmp_path / "out") == 2
    assert "no active edit" in capsys.readouterr().out
    workspace.inject(FACT.lower(), name="bridge")
    assert status(tmp_path / "out", "--edits", "bridge,none") == 2
    assert "there is no active edit 'none'" in capsys.readouterr().out
    assert status(tmp_path / "out", "--edits", ",") == 2
    if format in ("peft", "gguf"):
        assert status(tmp_path / "out", "--rank", 8) == 2
        assert "allow it with --tolerance" in capsys.readouterr().out
        assert status(tmp_path / "out", "--rank", 9) == 2
    else:
        assert status(tmp_path / "out", "--rank", 8) == 2
        assert "--rank has no meaning" in capsys.readouterr().out
    assert {f for f in tmp_path.iterdir() if f.name != "cache"} == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert status(tmp_path / "out") == 2
    assert "exists and is not empty" in capsys.readouterr().out
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["mine"]
    assert not (workspace.path / "exports.jsonl").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("export", [npt.export.peft, npt.export.gguf, npt.export.merged])
def test_a_wrong_export_is_noticed(
    tmp_path: Path,
    cache: Path,
    tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
    export: Callable[..., Any],
    dtype: str,
) -> None:
    """What is written has the wrong sign, or lacks the edits altogether; as it should be, it is accepted."""
    from neuroplastic.editing.ledger import Ledger
    from neuroplastic.export import checkpoint, gguf_adapter, peft_adapter

    def spoilt(factors: Any) -> Any:
        return {p: type(f)(f.A, -f.B) for p, f in factors.items()}

    ws = npt.Workspace.create(tmp_path / "w", tiny_base, dtype=dtype)
    ws.inject(FACT.lower(), name="bridge", layers="all", sites="gate+up+down")
    export(ws, tmp_path / "right")
    (ws.path / "exports.jsonl").unlink()
    fill, write = peft_adapter._with_partners, gguf_adapter._write
    monkeypatch.setattr(peft_adapter, "_with_partners", lambda ws, f, r: fill(ws, spoilt(f), r))
    monkeypatch.setattr(gguf_adapter, "_write", lambda path, ws, f, r: write(path, ws, spoilt(f), r))
    # the checkpoint's model never hears of the edits
    monkeypatch.setattr(checkpoint, "Ledger", lambda model: Ledger(tiny("llama", vocab_size=len(ws.tokenizer))))
    cause = "logits differ by up to" if dtype == "float32" else f"more than rounding in {dtype} explains"
    with pytest.raises(npt.CheckFailed, match=f"was checked and is wrong: .*{cause}"):
        export(ws, tmp_path / "out")
    assert main(["export", str(ws.path), str(tmp_path / "out"), "--format", export.__name__]) == 1
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
    assert not (ws.path / "exports.jsonl").exists()


def test_the_command_line_exports_and_imports(
    ws: npt.Workspace, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(ws.path), str(tmp_path / "d"), "--format", "delta", "--edits", "sushi", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["edits"] == ["sushi"]
    assert main(["export", str(ws.path), str(tmp_path / "p")]) == 0
    assert "largest logit difference" in capsys.readouterr().out
    assert main(["convert", str(tiny_base), str(tmp_path / "other"), "--json"]) == 0
    capsys.readouterr()
    assert main(["import", str(tmp_path / "other"), str(tmp_path / "d"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"imported": ["sushi"]}
    assert main(["import", str(tmp_path / "other"), str(tmp_path / "d"), "--json"]) == 2
    assert "sushi" in capsys.readouterr().out
    assert main(["import-lora", str(tmp_path / "other"), str(tmp_path / "p"), "--name", "lora", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "lora"
