"""The five presets at equal parameters: what the design claims of them, measured.

make study
    or: python benchmarks/study.py [--parts PART[,PART...]] [--data FILE] [--records 20] [--steps 80] [--seeds 3]
        [--report DIR]

smollm2-135m in float32, generators that read the effect, about 233,000 parameters a layer for every preset. Parts:

calibrated    fidelity after the closed form, top two layers and all, on held-out self-written text
trained       fidelity of the top two layers after the same training from noise: mean, least and largest of the seeds
injected      CounterFact records edited by the exact generator's `token`, and by `consolidate` on each preset's sites
regularised   `dual` trained from the closed form with several --reg-weight: norm of dW, fidelity, its `token` edits

With --report, what is finished is kept in the folder and not measured again. Data is --data, or counterfact_dev.json in
the folder $NPT_DATA. Prints Markdown; takes about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch

import neuroplastic as npt
from baselines.data import records_file
from neuroplastic.calibration.calibrate import calibration_rows, fit_generators
from neuroplastic.config import PlasticityConfig, Preset
from neuroplastic.console import note
from neuroplastic.editing.inject_options import InjectOptions
from neuroplastic.evaluation.edits import Row, evaluate, summarise
from neuroplastic.evaluation.evaluator import Evaluator
from neuroplastic.evaluation.fidelity import measure_fidelity
from neuroplastic.evaluation.methods import EditingMethod, injected, unedited
from neuroplastic.evaluation.records import Record, choose, read_records
from neuroplastic.evaluation.result_store import ResultStore
from neuroplastic.evaluation.suites import SUITES
from neuroplastic.evaluation.summary import mean_interval
from neuroplastic.surgery import mode
from neuroplastic.text.self_text import calibration_text
from neuroplastic.training.loop import read_log
from neuroplastic.training.train_generators import FOLDER

PARTS = ("calibrated", "trained", "injected", "regularised")
RANKS: dict[Preset, int] = {"v1": 110, "v2": 55, "single": 110, "dual": 64, "triple": 55}
"""Of equal parameters: 2,112 r a layer for v1 and single, 4,224 r for v2 and triple, 3,648 r for dual."""
SITES = {"single": "gate", "dual": "gate+up", "triple": "gate+up+down"}
REG_WEIGHTS = (0.0, 1e-4, 1e-2)
TOKENS = 12_288
"""that the closed form reads"""
ROWS = 16
"""of held-out text, 128 tokens each, that fidelity is measured on"""


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    part: str
    arm: str
    figures: dict[str, list[float]] = field(default_factory=dict)
    refused: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--records", type=int, default=20)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    parts = chosen_parts(options.parts, PARTS)
    records: list[Record] = []
    if {"injected", "regularised"} & set(parts):
        everything, malformed = read_records(records_file(options.data), SUITES["counterfact"].parse)
        for name, why in malformed.items():
            note(f"record {name} is left out: {why}")
        records = choose(everything, options.records, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"records": [r.id for r in records], "steps": options.steps}
        study = Study(options.report or Path(folder), settings, records, options.steps)
        for part in parts:
            print(f"\n### {part}\n", flush=True)
            if part == "calibrated":
                show(study.calibrated())
            elif part == "trained":
                show(study.trained(options.seeds))
            elif part == "injected":
                show(study.injected())
            else:
                show(study.regularised())


def chosen_parts(given: str, known: Sequence[str]) -> list[str]:
    """The parts named in a list separated by commas. Raises NPTError for one that there is not."""
    parts = [p.strip() for p in given.split(",")]
    if wrong := [p for p in parts if p not in known]:
        raise npt.NPTError(f"there is no part {wrong[0]!r}; there are {', '.join(known)}")
    return parts


class Study:
    """Cells, measured where they are not kept."""

    def __init__(self, folder: Path, settings: dict[str, object], records: Sequence[Record], steps: int):
        self.folder, self.records, self.steps = folder, records, steps
        self.cells = ResultStore(folder, {"steps": settings["steps"]}, Cell)
        self.rows = ResultStore(folder / "edits", settings, Row) if records else None

    def calibrated(self) -> Iterator[Cell]:
        for layers in ("top2", "all"):
            for preset, rank in RANKS.items():
                arm = f"{preset}, r {rank}, {layers}"
                if (known := self._known("calibrated", arm)) is None:
                    with workspace(config(preset, layers)) as ws:
                        fit_generators(ws.model, calibration_rows(ws, None, TOKENS))
                        known = self._keep(Cell("calibrated", arm, fidelity(ws)))
                yield known

    def trained(self, seeds: int) -> Iterator[Cell]:
        for preset in (p for p in get_args(Preset) if p != "v1"):  # which has nothing left to learn
            arm = f"{preset}, from noise"
            found = [self._train("trained", f"{arm}, seed {s}", preset, "random", s)[0].figures for s in range(seeds)]
            spread = {n: [f[n][0] for f in found] for n in ("kl", "perplexity", "loss", "gradient")}
            figures = {n: [statistics.mean(x), min(x), max(x)] for n, x in spread.items()}
            yield Cell("trained", arm, figures)

    def _train(
        self, part: str, arm: str, preset: Preset, init: str, seed: int, reg_weight: float = 1e-4
    ) -> tuple[Cell, list[Row]]:
        """A training of the top two layers, and the rows of its `token` edits where the part is `regularised`."""
        known, edits = self._known(part, arm), part == "regularised"
        done = [r for r in (self.rows.done if self.rows else ()) if r.method == arm]
        if known is not None and (not edits or len(done) == len(self.records)):
            return known, done
        with workspace(config(preset, "top2")) as ws:
            settings = npt.TrainSettings(
                init=init,  # type: ignore[arg-type]
                steps=self.steps,
                lr=2e-3,
                warmup=10,
                reg_weight=reg_weight,
                eval_every=0,
                eval_tokens=128,
                save_every=self.steps,
                batch_size=4,
                max_length=64,
                seed=seed,
            )
            npt.train(ws, settings)
            log = [e for e in read_log(ws.path / FOLDER) if "loss" in e]
            last = log[-max(1, len(log) // 10) :]
            figures = fidelity(ws)
            figures["loss"] = [statistics.mean(e["loss"] for e in last)]
            figures["gradient"] = [max(e["gradient"] for e in log)]
            norms = [e[n] for e in last for n in e if n.startswith("norm.")]
            figures["norm of dW"] = [statistics.mean(norms)] if norms else []
            cell = known or self._keep(Cell(part, arm, figures))
            if edits:
                token = injected(InjectOptions("token", alpha=1.0, layers="top2"))
                done = self._edits(ws, {arm: token})
        return cell, done

    def injected(self) -> Iterator[Cell]:
        rows: list[Row] = []
        for preset in get_args(Preset):
            with workspace(PlasticityConfig(preset=preset)) as ws:
                own: dict[str, EditingMethod] = {f"{preset}, token": injected(InjectOptions("token"))}
                own[f"{preset}, token, alpha 1"] = injected(InjectOptions("token", alpha=1.0))
                try:
                    rows += self._edits(ws, own)
                except npt.NPTError as e:
                    yield Cell("injected", f"{preset}, token", refused=str(e))
        with workspace(PlasticityConfig()) as ws:
            own = {"unedited": unedited}
            for preset, sites in SITES.items():
                options = InjectOptions("consolidate", sites=sites)
                own[f"{preset}'s sites ({sites}), consolidate"] = injected(options)
            own["down alone, consolidate"] = injected(InjectOptions("consolidate"))
            rows += self._edits(ws, own)
        yield from summaries("injected", rows)

    def regularised(self) -> Iterator[Cell]:
        for weight in REG_WEIGHTS:
            arm = f"dual, --reg-weight {weight:g}"
            cell, rows = self._train("regularised", arm, "dual", "calibrated", 0, weight)
            (edits,) = summaries("regularised", rows)
            trained = {k: v for k, v in cell.figures.items() if k in ("norm of dW", "kl")}
            yield Cell("regularised", arm, {f"training's {k}": v for k, v in trained.items()} | edits.figures)

    def _edits(self, ws: npt.Workspace, methods: Mapping[str, EditingMethod]) -> list[Row]:
        return evaluate(Evaluator(ws.engine, SUITES["counterfact"]), self.records, methods, self.rows)

    def _known(self, part: str, arm: str) -> Cell | None:
        return next((c for c in self.cells.done if (c.part, c.arm) == (part, arm)), None)

    def _keep(self, cell: Cell) -> Cell:
        self.cells.keep(cell)
        return cell


def config(preset: Preset, layers: str) -> PlasticityConfig:
    return PlasticityConfig(preset=preset, layers=layers, generator="low_rank", np_rank=RANKS[preset], input="effect")


@contextmanager
def workspace(config: PlasticityConfig) -> Iterator[npt.Workspace]:
    with tempfile.TemporaryDirectory() as folder:
        yield npt.Workspace.create(Path(folder) / "w", "smollm2-135m", config)


def fidelity(ws: npt.Workspace) -> dict[str, list[float]]:
    """KL, relative rise of perplexity and agreement on held-out rows, with 95 % intervals over the rows."""
    with mode(ws.model, "standard"):
        text = calibration_text(ws.model, ws.tokenizer, ws.base.sha256)[1][:ROWS]
    rows = [measure_fidelity(ws.model, row[None]) for row in text]
    rise = mean_interval([math.log(r.perplexity_ratio) for r in rows])
    return {
        "kl": list(mean_interval([r.kl for r in rows])),
        "perplexity": [math.expm1(x) for x in rise],
        "top-1": list(mean_interval([r.top1_agreement for r in rows])),
        "parameters": [float(ws.info()["generator_parameters"])],
    }


def summaries(part: str, rows: Sequence[Row]) -> Iterator[Cell]:
    """Per method of these rows: the suite's figures with their intervals."""
    found = summarise(rows, SUITES["counterfact"])
    for method, own in found["methods"].items():
        names = ("S", "ES", "PS", "NS", "perplexity", "kl", "seconds")
        yield Cell(part, method, {n: list(own["figures"][n]) for n in names if n in own["figures"]})


def show(cells: Iterator[Cell]) -> None:
    """A Markdown table, line by line as cells come."""
    names: list[str] = []
    waiting = []
    for cell in cells:
        if cell.refused:
            waiting.append(f"{cell.arm}: refused: {cell.refused}")
            continue
        if set(cell.figures) - set(names):  # another table
            names = list(cell.figures)
            print(f"\n| | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
        print(f"| {cell.arm} | {' | '.join(text(n, cell.figures.get(n, [])) for n in names)} |", flush=True)
    print("\n".join(["", *waiting]), flush=True)


def text(name: str, figure: Sequence[float]) -> str:
    """A figure, with its interval where it has one."""
    if name == "perplexity":
        shown = [f"{x:+.2%}" for x in figure]
    elif name == "parameters":
        shown = [f"{x:,.0f}" for x in figure]
    else:
        shown = [f"{x:.2f}" if name in ("S", "ES", "PS", "NS") else f"{x:.3g}" for x in figure]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]" if len(shown) == 3 else "".join(shown)


if __name__ == "__main__":
    torch.manual_seed(0)
    try:
        main()
    except npt.NPTError as e:
        print(f"study: {e}", file=sys.stderr)
        sys.exit(2)
