"""A tiny random Llama with its tokenizer as a GGUF file, whole or with something left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from gguf import GGUFWriter
from gguf.constants import MODEL_ARCH
from gguf.tensor_mapping import get_tensor_name_map
from torch import Tensor

from conftest import make_tokenizer
from families import COMMON, tiny


def write_gguf(
    path: Path,
    keep: Callable[[str], bool] = lambda name: True,
    more: dict[str, Tensor] | None = None,
    parts: int | None = None,
) -> Path:
    """Writes the file; `keep` chooses among its tensors by their names in GGUF, `more` adds some, and `parts` is the
    number of files that it says it was split into."""
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=1)
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(COMMON["num_hidden_layers"])
    writer.add_context_length(COMMON["max_position_embeddings"])
    writer.add_embedding_length(COMMON["hidden_size"])
    writer.add_feed_forward_length(COMMON["intermediate_size"])
    writer.add_head_count(COMMON["num_attention_heads"])
    writer.add_head_count_kv(COMMON["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    if parts is not None:
        writer.add_uint16("split.count", parts)
    inside = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    writer.add_token_types([3, 3] + [1] * (len(tokenizer) - 2))
    writer.add_token_merges([" ".join(pair) for pair in inside["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(1)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, COMMON["num_hidden_layers"])
    tensors = {f"{names.get_name(n.removesuffix('.weight'))}.weight": t for n, t in model.state_dict().items()}
    for name, tensor in {**tensors, **(more or {})}.items():
        if keep(name):
            writer.add_tensor(name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
