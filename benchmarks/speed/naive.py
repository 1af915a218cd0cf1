"""The fast path against the explicit one, which forms v_a [B, T, k, d] and v_b [B, T, k, f] of every token.

cd benchmarks && python -m speed.naive [--repeat 5] [--length 256] [--json]

smollm2-135m in float32, `dual` on all layers, one row, the same generators on both sides, at the published settings
(rank 256, k 2; rank 512, k 8), with the self key and with learned ones. Times in turns; `MB` is the peak beyond that of
the pretrained forward pass. Outputs are compared first. Bars: rank 512, k 8 at least 4 times faster and at most a third
of the extra memory; rank 256, k 2 at least 1.5 times faster.
"""

from __future__ import annotations

import argparse

import torch
from transformers import PreTrainedModel

from naive import naively
from neuroplastic.evaluation.memory import peak_memory
from neuroplastic.models import load_base
from neuroplastic.surgery import mode

from .paired import in_mode, low_rank, paired, plastic, show

BARS = {(512, 8): 4.0, (256, 2): 1.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model, _ = load_base("smollm2-135m", "float32")
    ids = torch.randint(100, 40_000, (1, options.length), generator=torch.Generator().manual_seed(0))
    rows = []
    for (rank, k), bar in BARS.items():
        for key in ("self", "learned"):
            with plastic(model, low_rank(np_rank=rank, num_ranks=k, key=key)):
                rows.append((f"rank {rank}, k {k}, {key} key", *compared(model, ids, options.repeat), f">= {bar}"))
    columns = ("what", "naive / fast, time", "difference", "MB fast", "MB naive", "bar on time")
    show("the explicit path against ours", columns, rows, options.json)


def compared(model: PreTrainedModel, ids: torch.Tensor, repeat: int) -> tuple[object, ...]:
    def run() -> torch.Tensor:
        states: torch.Tensor = model.base_model(input_ids=ids, use_cache=False)[0]
        return states

    def slow() -> object:
        with naively(model):
            return run()

    with torch.inference_mode(), mode(model, "dynamic"):
        fast = run()
        with naively(model):
            explicit = run()
    difference = ((fast - explicit).norm() / fast.norm()).item()
    ratio = paired(in_mode(model, True, run), in_mode(model, True, slow), repeat)
    peaks = [peak(in_mode(model, dynamic, f)) for dynamic, f in ((False, run), (True, run), (True, slow))]
    own, theirs = (f"{max(0.0, p - peaks[0]):.1f}" for p in peaks[1:])
    return ratio, f"{difference:.1e}", own, theirs


def peak(run: object) -> float:
    """MB; nan where the system does not tell."""
    assert callable(run)
    with peak_memory() as found:
        run()
    return float("nan") if found.bytes is None else found.bytes / 1e6


if __name__ == "__main__":
    main()
