"""Closed-form calibration against its bars: perplexity on held-out tokens, and seconds.

python benchmarks/calibrate.py [--full | --sequential] [--tokens N] [--json]

smollm2-135m in float32, `dual`, generators that read the effect, default data (text that the model wrote itself; it is
written first, if it is not in the cache). Held out: 64 rows of the same kind and the 16 of `npt fidelity`, 128 tokens
each, none of which is fitted on. Bars: top two layers at rank 64 within 1 % of the base's perplexity; all 30 layers at
rank 256 within 5 %; the fit of all layers in under 90 s. Then projected heads: the top two with 57 % of the parameters
that rank 64 has with heads of its own, all layers with as many as rank 64 has and `auto` ranks. --full: other ranks,
generators that read the attention output, `--np-rank auto` beside equal ranks of the same budget, and `--sequential`.
--sequential: that comparison alone, which has no bars.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import neuroplastic as npt
from neuroplastic.surgery import mode
from neuroplastic.text.perplexity import perplexity
from neuroplastic.text.self_text import calibration_text

PROJECTED: dict[str, Any] = {"heads": "projected"}


@dataclass(frozen=True)
class Row:
    layers: str
    what: str
    parameters: int
    rise: float
    """of perplexity on held-out tokens, relative"""
    rise_fidelity: float
    """on the 16 rows of `npt fidelity` alone"""
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--sequential", action="store_true")
    parser.add_argument("--tokens", type=int, default=npt.CalibrateOptions().tokens, help="fitted on")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    runs: list[tuple[str, dict[str, Any]]] = [("top2", {"np_rank": 64}), ("all", {"np_rank": 256})]
    runs += [("top2", {"np_rank": 115, **PROJECTED}), ("all", {"np_rank": "auto", "budget": "5.2%", **PROJECTED})]
    if options.full:
        runs += [("top2", {"np_rank": r}) for r in (16, 256)] + [("all", {"np_rank": r}) for r in (16, 64, 128)]
        runs += [("all", {"np_rank": "auto", "budget": budget}) for budget in ("5.2%", "20.8%")]  # as ranks 64, 256
        runs += [("all", {"np_rank": 256, "input": "attention"}), ("all", {"np_rank": 64, "sequential": True})]
    if options.sequential:
        runs = [("all", {"np_rank": 64, "sequential": sequential}) for sequential in (False, True)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        base: tuple[float, float] | None = None
        for layers, settings in runs:
            heads = {k: v for k, v in settings.items() if k in PROJECTED}
            config = npt.PlasticityConfig(layers=layers, generator="low_rank", input="effect", **heads)
            ws = npt.Workspace.create(Path(folder) / str(len(rows)), "smollm2-135m", config)
            with mode(ws.model, "standard"):
                held_out = calibration_text(ws.model, ws.tokenizer, ws.base.sha256)[1]
                base = base or measure(ws, held_out)
            how = {k: v for k, v in settings.items() if k not in PROJECTED}
            done = npt.calibrate(ws, npt.CalibrateOptions(tokens=options.tokens, **how))
            found = measure(ws, held_out)
            what = " ".join(f"{k} {v}" for k, v in settings.items())
            rises = [after / before - 1 for after, before in zip(found, base, strict=True)]
            rows.append(Row(layers, what, done.generator_parameters, rises[0], rises[1], done.seconds))
            if not options.json:
                show(rows[-1])
    bars: dict[str, bool] = {}
    if not options.sequential:
        bars["top two layers, rank 64, within 1 %"] = rows[0].rise <= 0.01
        bars["all layers, rank 256, within 5 %"] = rows[1].rise <= 0.05
        bars["all layers in under 90 s"] = rows[1].seconds < 90
    if options.json:
        print(json.dumps({"perplexity_base": base, "rows": [asdict(r) for r in rows], "bars": bars}))
        return
    for bar, met in bars.items():
        print(f"{'met' if met else 'NOT MET':<8} {bar}")


def measure(ws: npt.Workspace, held_out: torch.Tensor) -> tuple[float, float]:
    """Perplexity on all held-out rows, and on those of `npt fidelity`."""
    return perplexity(ws.model, torch.cat([held_out, ws.held_out])), perplexity(ws.model, ws.held_out)


def show(r: Row) -> None:
    rises = f"perplexity {r.rise:+.2%} (on npt fidelity's rows {r.rise_fidelity:+.2%})"
    print(f"{r.layers:<5} {r.what:<34} {r.parameters:>11,} parameters  {rises}  {r.seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
