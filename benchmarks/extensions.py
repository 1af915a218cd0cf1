"""The four extensions of the generator: what each gains, and what its bar asks for.

make extensions
    or: python benchmarks/extensions.py [--parts PART[,PART...]] [--steps 150] [--rank 64] [--report DIR]

smollm2-135m in float32, `dual`, generators that read the effect; errors and fidelity on held-out self-written text.
Parts:

adaptive       top two layers, 8 components: fixed weights, attention over them, the 2 most wanted; the same training
layers         all layers: one rank for all against ranks that `auto` chooses, at equal budgets, closed form
conditional    top two layers: gates that close for half the tokens; what an oracle could close; time at 512 tokens
hierarchical   independent generators against coarse codes and shared heads, closed form

With --report, what is finished is kept in the folder and not measured again. Prints Markdown.
"""

from __future__ import annotations

import argparse
import atexit
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import neuroplastic as npt
from neuroplastic.calibration.calibrate import calibration_rows, fit_generators
from neuroplastic.config import PlasticityConfig
from neuroplastic.evaluation.result_store import ResultStore
from neuroplastic.generators import LowRank
from neuroplastic.surgery import learnable_layers, mode, plastic_layers
from neuroplastic.text.self_text import calibration_text
from speed.paired import in_mode, low_rank, paired
from study import ROWS, Cell, chosen_parts, fidelity, show, workspace
from train_bars import direct_error

PARTS = ("adaptive", "layers", "conditional", "hierarchical")
TOKENS = 24_576
"""that the closed form reads"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    parts = chosen_parts(options.parts, PARTS)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"steps": options.steps, "rank": options.rank}
        store = ResultStore(options.report or Path(folder), settings, Cell)
        for part in parts:
            print(f"\n### {part}\n", flush=True)
            arms = {"adaptive": adaptive, "layers": layers, "conditional": conditional, "hierarchical": hierarchical}
            show(measured(store, part, arms[part](options.steps, options.rank)))


Arms = Iterator[tuple[str, Callable[[], dict[str, list[float]]]]]


def measured(store: ResultStore[Cell], part: str, arms: Arms) -> Iterator[Cell]:
    """One cell for each arm, measured where it is not kept."""
    for arm, measure in arms:
        known = next((c for c in store.done if (c.part, c.arm) == (part, arm)), None)
        if known is None:
            known = Cell(part, arm, measure())
            store.keep(known)
        yield known


# --- adaptive rank -----------------------------------------------------------------------------------------------


def adaptive(steps: int, rank: int) -> Arms:
    """`rank` is halved, so that 8 components have the parameters of a few hundred numbers, not of five."""
    r = rank // 2
    arms: dict[str, dict[str, Any]] = {
        "k 8, fixed weights": {"num_ranks": 8, "np_rank": r + 1},  # the attention's parameters, and more
        "k 8, attention over them": {"num_ranks": 8, "np_rank": r, "rank_weights": "attention"},
        "k 8, the top 2 of them": {"num_ranks": 8, "np_rank": r, "rank_weights": "attention", "top_ranks": 2},
        f"k 1, rank {8 * r}": {"np_rank": 8 * r},
    }
    for init in ("random", "calibrated"):
        for name, settings in arms.items():
            yield (
                f"{name}, {'from noise' if init == 'random' else 'from the closed form'}",
                partial(reduced, settings, init, steps),
            )


def reduced(settings: dict[str, Any], init: str, steps: int) -> dict[str, list[float]]:
    """Held-out direct error before and after training, and the share of the error of no modulation that is gone."""
    with workspace(low_rank(layers="top2", **settings)) as ws:
        if init == "calibrated":
            fit_generators(ws.model, calibration_rows(ws, None, TOKENS))
        before = direct_error(ws)
        npt.train(ws, training(steps, init))
        after = direct_error(ws)
        figures = {"direct error before": [before], "after": [after]}
        figures["parameters"] = [float(ws.info()["generator_parameters"])]
        silence(ws)
        figures["error gone"] = [1 - after / direct_error(ws)]
    return figures


def silence(ws: npt.Workspace) -> None:
    """No modulation, whatever the weights and gates say."""
    with torch.no_grad():
        for p in learnable_layers(ws.model).values():
            for name, t in p.generator.named_parameters():
                if name.startswith("payload"):
                    t.zero_()


def training(steps: int, init: str, **settings: Any) -> npt.TrainSettings:
    given = {"curriculum": "1,0,0", "lr": 4e-3 if init == "random" else 1e-3, "init": init, **settings}
    return npt.TrainSettings(
        steps=steps, weight_decay=0.0, eval_every=0, eval_tokens=256, save_every=steps, batch_size=4, **given
    )


# --- layers of their own -----------------------------------------------------------------------------------------


def layers(steps: int, rank: int) -> Arms:
    for r in (rank // 4, rank, 2 * rank):
        equal = low_rank(np_rank=r)
        yield f"rank {r} in every layer", partial(closed_form, equal)
        yield f"auto, the parameters of rank {r}", partial(closed_form, equal, equal)
        yield (
            f"auto, projected heads, the parameters of rank {r}",
            partial(closed_form, replace(equal, heads="projected"), equal),
        )


def closed_form(config: PlasticityConfig, worth: PlasticityConfig | None = None) -> dict[str, list[float]]:
    """Fidelity of generators fitted in closed form; with ranks from `auto`, which spends the parameters of `worth`."""
    with workspace(config) as ws:
        if worth is None:
            fit_generators(ws.model, calibration_rows(ws, None, TOKENS))
        else:
            ws.reconfigure(worth)
            budget = str(ws.info()["generator_parameters"])
            ws.reconfigure(config)
            npt.calibrate(ws, npt.CalibrateOptions(np_rank="auto", budget=budget, tokens=TOKENS))
        return fidelity(ws)


# --- gates -------------------------------------------------------------------------------------------------------


def conditional(steps: int, rank: int) -> Arms:
    plain = low_rank(layers="top2", np_rank=rank)

    @cache
    def every() -> npt.Workspace:
        return trained(plain, steps)

    @cache
    def gate() -> npt.Workspace:
        return trained(replace(plain, gate="learned"), steps, gate_open=0.5, gate_weight=1.0)

    shares = (0.1, 0.25, 0.5)
    yield "every token", lambda: {**fidelity(every()), "closed": [0.0]}
    for share in (0.0, *shares):
        yield f"a gate, {share:.0%} closed", lambda share=share: gated(gate(), share)  # type: ignore[misc]
    for share in shares:
        yield f"an oracle, {share:.0%} closed", lambda share=share: oracle(every(), share)  # type: ignore[misc]
    for r in (rank, 4 * rank):
        yield f"time, rank {r}, 50% closed", partial(time_left, r)


def trained(config: PlasticityConfig, steps: int, **settings: Any) -> npt.Workspace:
    """From the closed form, in a folder that goes when the program does."""
    ws = npt.Workspace.create(Path(tempfile.mkdtemp()) / "w", "smollm2-135m", config)
    atexit.register(shutil.rmtree, ws.path.parent)
    npt.train(ws, training(steps, "calibrated", curriculum="0.5,0.2,0.3", **settings))
    return ws


def gated(ws: npt.Workspace, share: float) -> dict[str, list[float]]:
    """Closed are the tokens below the quantile of that share on training text."""
    close(ws, share)
    return {**fidelity(ws), "closed": [closed(ws)]}


def close(ws: npt.Workspace, share: float) -> None:
    layers = learnable_layers(ws.model)
    found = gates(ws, calibration_rows(ws, None, 64 * 128))
    for i, p in layers.items():
        assert isinstance(p.generator, LowRank)
        threshold = float(found[i].quantile(share)) if share > 0 else 0.0
        p.generator.config = replace(p.config, gate_threshold=threshold)


@torch.no_grad()
def gates(ws: npt.Workspace, text: Tensor) -> dict[int, Tensor]:
    """The gate of every token after the first, an attention sink."""
    found: dict[int, Tensor] = {}

    def look(i: int) -> Any:
        def probe(site: Any, linear: Any, z: Tensor, s: Any, y: Tensor) -> None:
            generator = plastic_layers(ws.model)[i].generator
            assert isinstance(generator, LowRank)
            g = generator.openness(s)
            assert g is not None
            found[i] = g[:, 1:].flatten()

        return probe

    for i, p in learnable_layers(ws.model).items():
        p.probe = look(i)
    with mode(ws.model, "dynamic"):
        ws.model(input_ids=text, use_cache=False)
    for p in plastic_layers(ws.model).values():
        p.probe = None
    return found


def closed(ws: npt.Workspace) -> float:
    """Share of held-out tokens below their threshold."""
    with mode(ws.model, "standard"):
        text = calibration_text(ws.model, ws.tokenizer, ws.base.sha256)[1][:ROWS]
    found = gates(ws, text)
    shares = [
        float((g < learnable_layers(ws.model)[i].generator.config.gate_threshold).float().mean())  # type: ignore
        for i, g in found.items()
    ]
    return sum(shares) / len(shares)


def time_left(rank: int) -> dict[str, list[float]]:
    """Time of the top two layers at 512 tokens, over that with every token modulated: with half of them closed by gates
    that are drawn at random, and with none modulated. Medians and quartiles of paired runs."""
    config = low_rank(layers="top2", np_rank=rank)
    with workspace(config) as plain, workspace(replace(config, gate="learned")) as ws:
        for p in learnable_layers(ws.model).values():
            assert isinstance(p.generator, LowRank)
            assert p.generator.gate is not None
            torch.nn.init.normal_(p.generator.gate.wanted.weight, std=0.05)
        close(ws, 0.5)
        ids = calibration_rows(ws, None, 512).flatten()[None, :512]
        half = paired(mlps(plain, ids), mlps(ws, ids), 31)
        none = paired(mlps(plain, ids), mlps(plain, ids, "standard"), 31)
    return {n: [r.median, r.low, r.high] for n, r in (("time", half), ("time without any", none))}


def mlps(ws: npt.Workspace, ids: Tensor, how: Any = "dynamic") -> Callable[[], object]:
    """Runs the plastic layers alone, on what they read in this text."""
    read: dict[int, tuple[Any, Any]] = {}
    hooks = []
    plastic = plastic_layers(ws.model)
    for i, p in plastic.items():

        def keep(module: Any, args: Any, kwargs: Any, i: int = i) -> None:
            read[i] = (args, kwargs)

        hooks.append(p.parts.layer.register_forward_pre_hook(keep, with_kwargs=True))
    with torch.no_grad():
        ws.model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()

    def run() -> None:
        for i, p in plastic.items():
            args, kwargs = read[i]
            p.parts.layer(*args, **kwargs)

    return in_mode(ws.model, how == "dynamic", run)


def oracle(ws: npt.Workspace, share: float) -> dict[str, list[float]]:
    """Closes, in each row and layer, the tokens whose modulation changes the output of the gate projection least."""
    layers = learnable_layers(ws.model).values()
    for p in layers:

        def probe(site: Any, linear: Any, z: Tensor, s: Any, y: Tensor) -> Tensor:
            unmodulated = linear(z)
            if "kept" not in s.codes:
                size = (y - unmodulated).norm(dim=-1, keepdim=True)
                s.codes["kept"] = size >= size.quantile(share, dim=-2, keepdim=True)
            return torch.where(s.codes["kept"], y, unmodulated)

        p.probe = probe
    try:
        return fidelity(ws)
    finally:
        for p in layers:
            p.probe = None


# --- coarse codes and shared heads -------------------------------------------------------------------------------


def hierarchical(steps: int, rank: int) -> Arms:
    coarse, fine = rank // 8, rank // 2
    for where in ("top2", "all"):
        arms = {
            f"independent, rank {rank}": low_rank(layers=where, np_rank=rank),
            f"independent, rank {int(0.6 * rank)}": low_rank(layers=where, np_rank=int(0.6 * rank)),
            f"coarse {coarse} + {fine}": low_rank(layers=where, np_rank=fine, coarse_rank=coarse),
            f"coarse {coarse} + {fine}, groups of 2": low_rank(
                layers=where, np_rank=fine, coarse_rank=coarse, coarse_group=2
            ),
            f"projected heads, rank {rank}": low_rank(layers=where, np_rank=rank, heads="projected"),
            f"projected heads, coarse {rank // 4} + {3 * rank // 4}, groups of 2": low_rank(
                layers=where, np_rank=3 * rank // 4, coarse_rank=rank // 4, coarse_group=2, heads="projected"
            ),
            f"projected heads, rank {int(1.8 * rank)}": low_rank(
                layers=where, np_rank=int(1.8 * rank), heads="projected"
            ),
        }
        for name, config in arms.items():
            yield f"{where}: {name}", partial(closed_form, config)


if __name__ == "__main__":
    torch.manual_seed(0)
    try:
        main()
    except npt.NPTError as e:
        print(f"extensions: {e}", file=sys.stderr)
        sys.exit(2)
