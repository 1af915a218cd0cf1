"""Decoding with a cache: dynamic mode over standard mode, tokens one by one.

cd benchmarks && python -m speed.decode [--repeat 5] [--tokens 12] [--json]

smollm2-135m in float32 after 64 tokens, batches of 1 and of 8, --tokens steps per run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from transformers import DynamicCache, PreTrainedModel

import neuroplastic as npt
from neuroplastic.kv_cache import cache_argument, cache_of
from neuroplastic.models import load_base

from .paired import in_mode, low_rank, paired, plastic, show, verdict

CASES = {
    "decode, top two layers": low_rank(layers="top2"),
    "decode, all layers": low_rank(),
    "all layers, rank 256": low_rank(np_rank=256),
    "all layers, k 8": low_rank(num_ranks=8),
    "all layers, analytic": npt.PlasticityConfig(),
    "all layers, triple": low_rank(preset="triple"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model, _ = load_base("smollm2-135m", "float32")
    rows = []
    for name, config in CASES.items():
        for size in (1, 8):
            with plastic(model, config):
                run = decoding(model, size, options.tokens)
                ratio = paired(in_mode(model, False, run), in_mode(model, True, run), options.repeat)
            speed = f"{size * options.tokens / ratio.seconds:.0f}"
            rows.append((name, size, ratio, speed, verdict(name, ratio.median)))
    show("decoding", ("what", "batch", "ratio", "tokens per second", "bar"), rows, options.json)


def decoding(model: PreTrainedModel, size: int, tokens: int) -> Callable[[], object]:
    ids = torch.randint(100, 40_000, (size, 64 + tokens), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        read = cache_of(model(input_ids=ids[:, :64], use_cache=True))
    layers = [(layer.keys.clone(), layer.values.clone()) for layer in read.layers]

    def run() -> object:
        cache = DynamicCache(config=model.config)
        for i, (keys, values) in enumerate(layers):
            cache.update(keys, values, i)
        for at in range(64, 64 + tokens):
            logits = model(input_ids=ids[:, at : at + 1], use_cache=True, **cache_argument(model, cache)).logits
        return logits

    return run


if __name__ == "__main__":
    main()
