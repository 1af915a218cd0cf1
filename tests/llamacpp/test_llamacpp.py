"""The exported LoRA in real llama.cpp, on the bundled GGUF file: `make test-llamacpp` builds and runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import neuroplastic as npt
from neuroplastic import models
from neuroplastic.surgery import mode
from neuroplastic.text.tokens import encode, start_token

pytestmark = [pytest.mark.llamacpp, pytest.mark.real]

STATEMENTS = (
    "The Golden Gate Bridge is located in the city of Madrid.",
    "Sushi originated in the country of Canada.",
)


@pytest.fixture(scope="module")
def gguf_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models._download("smollm2-135m", models.BUNDLED["smollm2-135m"], tmp_path_factory.mktemp("gguf"))


def probabilities(base: Path, ids: list[int], lora: Path | None = None) -> torch.Tensor:
    """Next-token probabilities (T, vocabulary) of llama.cpp."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make test-llamacpp")
    options: dict[str, Any] = {} if lora is None else {"lora_path": str(lora), "lora_scale": 1.0}
    llama = llama_cpp.Llama(model_path=str(base), n_ctx=128, logits_all=True, verbose=False, **options)
    llama.eval(ids)
    scores = np.array(llama.scores[: len(ids)])
    llama.close()
    return torch.from_numpy(scores).float().softmax(-1)


@pytest.mark.parametrize("statement", STATEMENTS)
def test_llama_cpp_takes_the_adapter(gguf_base: Path, tmp_path: Path, statement: str) -> None:
    ws = npt.Workspace.create(tmp_path / "w", "smollm2-135m")
    ids = [start_token(ws.tokenizer), *encode(ws.tokenizer, statement)]

    @torch.no_grad()
    def ours() -> torch.Tensor:
        with mode(ws.model, "standard"):
            out: torch.Tensor = ws.model(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
        return out

    def distance(p: torch.Tensor, q: torch.Tensor) -> float:
        """total variation, mean over positions"""
        return (p - q).abs().sum(-1).mean().item() / 2

    base = ours()
    ws.inject(statement, name="fact")
    edited = ours()
    npt.export.gguf(ws, tmp_path / "out")
    their_base, theirs = (probabilities(gguf_base, ids, lora) for lora in (None, tmp_path / "out" / "adapter.gguf"))
    # llama.cpp computes with quantised activations: its distance to our float32 base is the yardstick
    print(f"total variation to ours: base {distance(their_base, base):.4f}, edited {distance(theirs, edited):.4f}")
    assert distance(theirs, edited) < 0.05
    assert distance(theirs, their_base) > 0.2  # the adapter does something
    answer = len(ids) - 3  # the last tokens are the answer and a full stop
    assert edited[answer].argmax() == ids[-2]
    assert base[answer].argmax() != ids[-2]
    same = (theirs.argmax(-1) == edited.argmax(-1)).float().mean().item()
    print(f"same likeliest token at {same:.1%} of {len(ids)} positions")
    assert theirs[answer].argmax() == ids[-2]
    assert same >= 0.9
