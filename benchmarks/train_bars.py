"""Training from noise and from the closed form: direct error, top two layers, rank 64.

python benchmarks/train_bars.py [--steps 400] [--rank 64] [--rows 4] [--lr 1.6e-2] [--lr-calibrated 1e-3] [--json]

smollm2-135m in float32, `dual`, self-written text, seed 0, teacher stage alone. The direct error is measured on
held-out rows, before and after. Bars: from random initialisation it falls below 10 % of its start; from the calibrated
one, training takes it below that of the closed form of the same rank.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

import neuroplastic as npt
from neuroplastic.calibration.calibrate import calibration_rows, fit_generators
from neuroplastic.text.self_text import calibration_text
from neuroplastic.training.distill import Distillation
from neuroplastic.training.packing import Packed

WEIGHTS = npt.TrainSettings(direct_weight=1.0, fidelity_weight=0.0, reg_weight=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1.6e-2, help="from noise")
    parser.add_argument("--lr-calibrated", type=float, default=1e-3, help="from the closed form")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    errors = {}
    for init, lr in (("random", options.lr), ("calibrated", options.lr_calibrated)):
        with tempfile.TemporaryDirectory() as folder:
            config = npt.PlasticityConfig(layers="top2", generator="low_rank", np_rank=options.rank, input="effect")
            ws = npt.Workspace.create(Path(folder) / "w", "smollm2-135m", config)
            if init == "calibrated":
                fit_generators(ws.model, calibration_rows(ws, None, npt.CalibrateOptions().tokens))
            before = direct_error(ws)
            settings = npt.TrainSettings(
                init=init,  # type: ignore[arg-type]
                steps=options.steps,
                lr=lr,
                weight_decay=0.0,
                curriculum="1,0,0",
                eval_every=0,
                eval_tokens=256,
                save_every=options.steps,
                batch_size=options.rows,
            )
            npt.train(ws, settings)
            e = errors[init] = {"before": before, "after": direct_error(ws)}
            if not options.json:
                share = e["after"] / e["before"]
                print(f"{init:<11} direct error {e['before']:.4f} -> {e['after']:.4f} ({share:.1%})", flush=True)
    random, calibrated = errors["random"], errors["calibrated"]
    bars = {
        "from random initialisation, below 10 % of its start": random["after"] < 0.1 * random["before"],
        "from the closed form, below the closed form": calibrated["after"] < calibrated["before"],
    }
    if options.json:
        print(json.dumps({"errors": errors, "bars": bars}))
        return
    for bar, met in bars.items():
        print(f"{'met' if met else 'NOT MET':<8} {bar}")


@torch.no_grad()
def direct_error(ws: npt.Workspace) -> float:
    """The mean direct error of the layers on held-out rows."""
    held_out = calibration_text(ws.model, ws.tokenizer, ws.base.sha256)[1][:32]
    module = Distillation(ws.model, WEIGHTS)
    module.measure_power(held_out)
    rows = Packed(held_out, torch.arange(held_out.shape[1]).expand_as(held_out), torch.ones_like(held_out).bool())
    return float(module(rows, rows.valid / rows.valid.sum(), 0.0)["direct"])


if __name__ == "__main__":
    main()
