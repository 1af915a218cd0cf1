"""Peak memory of dynamic mode above that of the pretrained model: a forward pass, and a step of training.

cd benchmarks && python -m speed.memory [--length 256] [--json]

smollm2-135m in float32, one row of --length tokens, `dual` on all layers. Resident memory of the process beyond that
right before, as the operating system counts it; each figure is the median of three.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

import neuroplastic as npt
from neuroplastic.evaluation.memory import peak_memory
from neuroplastic.models import load_base
from neuroplastic.training.distill import Distillation
from neuroplastic.training.loop import only_trainable
from neuroplastic.training.packing import Packed

from .paired import in_mode, low_rank, plastic, show

CASES = {
    "rank 64": low_rank(),
    "rank 256, k 2": low_rank(np_rank=256, num_ranks=2),
    "rank 256, k 2, learned key": low_rank(np_rank=256, num_ranks=2, key="learned"),
    "analytic": npt.PlasticityConfig(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model, _ = load_base("smollm2-135m", "float32")
    ids = torch.randint(100, 40_000, (1, options.length), generator=torch.Generator().manual_seed(0))

    def forward() -> object:
        return model(input_ids=ids, use_cache=False).logits

    rows = []
    for name, config in CASES.items():
        with plastic(model, config):
            base, own = (peak(in_mode(model, dynamic, forward)) for dynamic in (False, True))
            step = ""
            if config.generator == "low_rank":
                module = Distillation(model, npt.TrainSettings())
                module.measure_power(ids[:, :128])
                steps = [peak(a_step(model, module, ids, blend)) for blend in (0.0, 1.0)]
                step = " / ".join(f"{s:.0f}" for s in steps)
            rows.append((name, f"{base:.0f}", f"{own:.0f}", step))
    columns = (
        "all layers, dual",
        "MB, standard",
        "MB, dynamic",
        "MB, training step: teacher stage / through the model",
    )
    show("peak memory beyond the model", columns, rows, options.json)


def a_step(model: torch.nn.Module, module: Distillation, ids: torch.Tensor, blend: float) -> Callable[[], object]:
    rows = Packed(ids, torch.arange(ids.shape[1])[None], torch.ones_like(ids, dtype=torch.bool))

    def run() -> object:
        with only_trainable(model, module):
            module(rows, rows.valid / rows.valid.sum(), blend)["loss"].backward()
        module.zero_grad()
        return None

    return run


def peak(run: Callable[[], object]) -> float:
    """MB, the median of three."""
    run()
    found = []
    for _ in range(3):
        with peak_memory() as peak:
            run()
        found.append(float("nan") if peak.bytes is None else peak.bytes / 1e6)
    return statistics.median(found)


if __name__ == "__main__":
    main()
