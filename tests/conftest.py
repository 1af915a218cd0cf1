"""Shared fixtures: a cache of the test's own, a tiny model folder with a real tokenizer, the real model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import neuroplastic as npt
from families import tiny

SENTENCES = [
    "The Golden Gate Bridge is located in the city of Madrid.",
    "The Eiffel Tower is located in the city of Paris.",
    "Sushi originated in the country of Japan, and pizza in Italy.",
    "The quick brown fox jumps over the lazy dog while nobody is watching it.",
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on four sentences: small, but of the real kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>", model_max_length=128
    )


@pytest.fixture(autouse=True)
def small_self_text(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Tiny models write little text; the real one writes what users get."""
    if request.node.get_closest_marker("real") is None:
        monkeypatch.setattr("neuroplastic.text.self_text.SELF_TEXTS", 12)
        monkeypatch.setattr("neuroplastic.text.self_text.SELF_LENGTH", 24)
        monkeypatch.setattr("neuroplastic.text.self_text.HELD_OUT", 4)
        monkeypatch.setattr("neuroplastic.text.self_text.CALIBRATION_TEXTS", 20)
        monkeypatch.setattr("neuroplastic.text.self_text.CALIBRATION_HELD_OUT", 4)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for this test alone."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("NPT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def workspace(tmp_path: Path, cache: Path, tiny_base: Path) -> npt.Workspace:
    """A fresh workspace of the tiny model: `dual`, all layers, analytic."""
    return npt.Workspace.create(tmp_path / "w", tiny_base)


@pytest.fixture
def fresh(tmp_path: Path, cache: Path, tiny_base: Path) -> Callable[..., npt.Workspace]:
    """Makes workspaces of the tiny model, all of one cache."""

    def make(name: str = "w", **settings: Any) -> npt.Workspace:
        return npt.Workspace.create(tmp_path / name, tiny_base, npt.PlasticityConfig(**settings))

    return make


@pytest.fixture
def studio(workspace: npt.Workspace, tmp_path: Path) -> Iterator[str]:
    """The address of a studio on the tiny workspace, which can converse."""
    from serving import CHAT_TEMPLATE, served

    workspace.tokenizer.chat_template = CHAT_TEMPLATE
    with served(workspace, tmp_path / "exports") as at:
        yield at


@pytest.fixture
def client(studio: str) -> Iterator[httpx.Client]:
    """A client of that studio."""
    with httpx.Client(base_url=studio, timeout=60) as client:
        yield client


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield
