"""A step of the teacher stage against the plain recipe: teacher forward, student forward, backward through the model.

python benchmarks/train_step.py [--rank 64] [--rows 8] [--length 128] [--repeat 5] [--json]

smollm2-135m in float32, `dual`. Both make the same losses of the same generators on the same batch and step the same
optimiser; the plain recipe has the KL of the logits too, which is what its pass through the model is for. Medians. Bar:
at least 2.5 times faster, for the top two layers and for all. By default each of many layers learns from every fourth
token of the batch, which all are read (`--every` of `npt train`); `every token` is the same step without that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

import neuroplastic as npt
from neuroplastic.training.distill import Distillation
from neuroplastic.training.loop import only_trainable
from neuroplastic.training.packing import Packed

BAR = 2.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = {}
    for layers in ("top2", "all"):
        with tempfile.TemporaryDirectory() as folder:
            config = npt.PlasticityConfig(layers=layers, generator="low_rank", np_rank=options.rank, input="effect")
            ws = npt.Workspace.create(Path(folder) / "w", "smollm2-135m", config)
            ids = torch.randint(100, 40_000, (options.rows, options.length), generator=torch.Generator().manual_seed(0))
            rows = Packed(ids, torch.arange(options.length).expand_as(ids), torch.ones_like(ids, dtype=torch.bool))
            weight = rows.valid / rows.valid.sum()
            module = Distillation(ws.model, npt.TrainSettings())
            module.measure_power(ids[:2])
            optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5)
            ways = {"local": (0.0, None), "every_token": (0.0, 1), "plain": (1.0, 1)}
            taken: dict[str, list[float]] = {name: [] for name in ways}
            with only_trainable(ws.model, module):
                for repeat in range(options.repeat + 1):
                    for name, (blend, every) in ways.items():  # in turns, so that all meet the same machine
                        module.settings = npt.TrainSettings(every=every)
                        began = time.perf_counter()
                        module(rows, weight, blend)["loss"].backward()
                        optimizer.step()
                        optimizer.zero_grad()
                        if repeat:  # the first is for warming up
                            taken[name].append(time.perf_counter() - began)
        local, whole, plain = (statistics.median(taken[name]) for name in ways)
        met = plain / local >= BAR
        figures[layers] = {"local": local, "every_token": whole, "plain": plain, "ratio": plain / local, "met": met}
        if not options.json:
            print(f"{layers:<5} local {local:.2f} s, plain {plain:.2f} s: {plain / local:.2f} times faster", end=" ")
            print(f"({'met' if met else 'NOT MET'}); from every token {whole:.2f} s: {plain / whole:.2f} times faster")
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
