"""How the cost of dynamic mode grows: with tokens, k, rank, layers and the model's width, as fitted exponents.

cd benchmarks && python -m speed.scale [--repeat 3] [--json]

Random Llama models in float32, `dual`, self key by default; each axis alone, the others at width 512, 8 layers, 256
tokens, rank 64, k 1. `extra` is dynamic less standard mode in milliseconds, medians of paired runs; the exponent is the
slope of its logarithm (that of the whole forward pass for width, where the generator's share shrinks).
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from .paired import in_mode, low_rank, paired, plastic, show

AXES: dict[str, tuple[int, ...]] = {
    "tokens": (128, 256, 512, 1024, 2048),
    "k": (1, 2, 4, 8),
    "k, learned key": (1, 2, 4, 8),
    "rank": (16, 64, 256, 512),
    "layers": (2, 4, 8, 16),
    "width": (256, 512, 1024, 2048),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for axis, sizes in AXES.items():
        extra, whole, numbers = [], [], []
        for size in sizes:
            one = measured(axis, size, options.repeat)
            extra.append(one[0])
            whole.append(one[1])
            numbers.append(one[2])
        fitted = slope(sizes, whole if axis == "width" else extra)
        shown = ", ".join(f"{size}: {1e3 * e:.1f}" for size, e in zip(sizes, extra, strict=True))
        largest = f"{max(numbers) / 1e6:.0f}M"
        rows.append((axis, shown, f"{fitted:.2f}", f"{slope(sizes, whole):.2f}", largest))
    columns = ("axis", "extra milliseconds", "exponent", "of the whole forward pass", "largest model")
    show("growth", columns, rows, options.json)


def measured(axis: str, size: int, repeat: int) -> tuple[float, float, int]:
    """Extra seconds of dynamic mode, seconds of all of it, and the model's parameters."""
    shape = {"width": 512, "layers": 8, "tokens": 256, "rank": 64, "k": 1, axis.partition(",")[0]: size}
    model = random_llama(shape["width"], shape["layers"])
    ids = torch.randint(0, 1000, (1, shape["tokens"]), generator=torch.Generator().manual_seed(0))
    key: Any = "learned" if "learned" in axis else "self"

    def run() -> object:
        return model.model(input_ids=ids, use_cache=False)[0]

    with plastic(model, low_rank(np_rank=shape["rank"], num_ranks=shape["k"], key=key)):
        ratio = paired(in_mode(model, False, run), in_mode(model, True, run), repeat)
    return ratio.seconds * (1 - 1 / ratio.median), ratio.seconds, sum(p.numel() for p in model.parameters())


def random_llama(width: int, layers: int) -> LlamaForCausalLM:
    """Of Llama's proportions; a small vocabulary, since logits are not read."""
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=4096,
    )
    return LlamaForCausalLM(config).eval()


def slope(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """The least-squares slope of log seconds over log size, without what is not above 0."""
    points = [(math.log(n), math.log(s)) for n, s in zip(sizes, seconds, strict=True) if s > 0]
    if len(points) < 2:
        return math.nan
    x, y = (sum(c) / len(points) for c in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


if __name__ == "__main__":
    main()
