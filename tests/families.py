"""Two-layer random models of every family that must work, and some that must be refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {},
    "smollm3": {},
    "granite": {"residual_multiplier": 0.22, "embedding_multiplier": 3.0},
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window": 16},
    "olmo2": {},
}
PRE_NORM = [f for f in FAMILIES if f not in ("gemma2", "gemma3_text", "olmo2")]
NORM_BEHIND = ["gemma2", "gemma3_text", "olmo2"]

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "phi3": ({}, "fused gate_up_proj"),
    "mixtral": ({"num_local_experts": 4}, "mixture of experts"),
    "cohere": ({}, "in parallel"),
    "gpt_neox": ({}, "no softmax attention"),
    "mamba": ({}, "no softmax attention"),
    "qwen3_next": ({"layer_types": ["linear_attention"] * 2, "num_experts": 0}, "no softmax attention"),
    "olmo_hybrid": ({"layer_types": ["linear_attention", "full_attention"]}, "no softmax attention"),
}


def tiny(family: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> PreTrainedModel:
    """A fresh random model in evaluation mode; the same weights at every call. Norm weights are random too."""
    extra = FAMILIES.get(family) or REFUSED.get(family, ({}, ""))[0]
    config = AutoConfig.for_model(family, **{**COMMON, **extra, **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.dim() == 1:
                    p.add_(torch.randn_like(p) * 0.2)
                elif "embed" not in name:
                    p.mul_(4)  # attention and MLP must matter
    return model.to(dtype).eval()


@cache
def tokens(batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(3, 96, (batch, length), generator=torch.Generator().manual_seed(1))
