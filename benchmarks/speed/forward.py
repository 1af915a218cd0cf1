"""Prefill: dynamic mode over the pretrained forward pass of the same model.

cd benchmarks && python -m speed.forward [--repeat 5] [--length 256] [--quick] [--check] [--json]

smollm2-135m, one row. Ratios of paired runs, median and quartiles; `limit` is what arithmetic alone would cost. The
first rows have the bars; then one axis after another changes, the others staying at `dual`, rank 64, k 1, all layers,
self key, --length tokens, float32, eager. --quick: the rows with bars alone. --check: fewer repeats of these, and exit
status 1 where a ratio is above twice its bar (what CI runs).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

import neuroplastic as npt
from neuroplastic.calibration.moments import collect
from neuroplastic.models import load_base
from neuroplastic.surgery import plastic_layers

from .paired import BARS, Ratio, arithmetic, in_mode, low_rank, paired, plastic, show, verdict

EXACT = npt.PlasticityConfig()
Case = tuple[str, npt.PlasticityConfig, dict[str, Any]]


def with_bars() -> Iterator[Case]:
    yield "prefill, top two layers", low_rank(layers="top2"), {}
    yield "prefill, all layers", low_rank(), {}
    yield "prefill, all layers, analytic", EXACT, {}


def one_axis_at_a_time() -> Iterator[Case]:
    for preset in ("single", "triple", "v1", "v2"):
        yield f"preset {preset}", low_rank(preset=preset), {}
    for rank in (16, 128, 256):
        yield f"rank {rank}", low_rank(np_rank=rank), {}
    for rank in (64, 256):
        yield f"projected heads, rank {rank}", low_rank(np_rank=rank, heads="projected"), {}
    yield "k 8, attention", low_rank(num_ranks=8, rank_weights="attention"), {}
    yield "k 8, the top 2", low_rank(num_ranks=8, rank_weights="attention", top_ranks=2), {}
    for k in (2, 8):
        yield f"k {k}", low_rank(num_ranks=k), {}
        yield f"k {k}, learned key", low_rank(num_ranks=k, key="learned"), {}
    yield "learned key", low_rank(key="learned"), {}
    yield "reads the attention output", low_rank(input="attention"), {}
    yield "analytic triple", npt.PlasticityConfig(preset="triple"), {}
    for length in (32, 512, 2048):
        yield f"{length} tokens", low_rank(), {"length": length}
    yield "bfloat16", low_rank(), {"dtype": torch.bfloat16}
    yield "torch.compile", low_rank(), {"compiled": True}
    yield "torch.compile, analytic", EXACT, {"compiled": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model, _ = load_base("smollm2-135m", "float32")
    rows = []
    quick = options.quick or options.check
    for name, config, how in [*with_bars(), *([] if quick else one_axis_at_a_time())]:
        given = {"length": options.length, **how}
        ratio = measured(model, config, options.repeat, **given)
        rows.append((name, ratio, f"{arithmetic(model, config):.3f}", verdict(name, ratio.median)))
    for name, ratio in standard(model, options.length, options.repeat):
        rows.append((name, ratio, "1.000", verdict(name, ratio.median)))
    if not options.check:
        ratio = statistics_pass(model, options.repeat)
        rows.append(("statistics pass", ratio, "", verdict("statistics pass", ratio.median)))
    show("prefill, times the pretrained forward pass", ("what", "ratio", "limit", "bar"), rows, options.json)
    failed = [name for name, ratio, *_ in rows if name in BARS and ratio.median > 2 * BARS[name]]
    if options.check and failed:
        print(f"above twice their bars: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


def measured(
    model: PreTrainedModel,
    config: npt.PlasticityConfig,
    repeat: int,
    length: int,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> Ratio:
    """Dynamic over standard mode of one converted model, which computes what the pretrained one does."""
    ids = torch.randint(100, 40_000, (1, length), generator=torch.Generator().manual_seed(0))
    before = next(model.parameters()).dtype
    model.to(dtype)
    try:
        with plastic(model, config):
            read: Any = model
            if compiled:
                torch.compiler.reset()
                read = torch.compile(model, dynamic=False)

            def run() -> object:
                return read(input_ids=ids, use_cache=False).logits

            return paired(in_mode(model, False, run), in_mode(model, True, run), repeat)
    finally:
        model.to(before)


def standard(model: PreTrainedModel, length: int, repeat: int) -> Iterator[tuple[str, Ratio]]:
    """A converted model in standard mode over the model that it was made from, and the same model against itself."""
    ids = torch.randint(100, 40_000, (1, length), generator=torch.Generator().manual_seed(0))
    base, _ = load_base("smollm2-135m", "float32")

    def run(m: PreTrainedModel) -> Any:
        return lambda: m(input_ids=ids, use_cache=False).logits

    yield "the same twice", paired(in_mode(base, False, run(base)), in_mode(model, False, run(model)), repeat)
    with plastic(model, low_rank()):
        yield "standard mode", paired(in_mode(base, False, run(base)), in_mode(model, False, run(model)), repeat)


def statistics_pass(model: PreTrainedModel, repeat: int) -> Ratio:
    """What calibration reads of 30 layers, over a plain forward pass over the same tokens (without logits)."""
    ids = torch.randint(100, 40_000, (16, 128), generator=torch.Generator().manual_seed(0))

    def plain() -> object:
        with torch.no_grad():
            for rows in ids.split(4):
                model.base_model(input_ids=rows, use_cache=False)
        return None

    with plastic(model, low_rank()):
        layers = list(plastic_layers(model).values())
        return paired(plain, lambda: collect(model, layers, ids), max(3, repeat // 3))


if __name__ == "__main__":
    main()
