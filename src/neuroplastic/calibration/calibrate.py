"""`calibrate`: generators of a workspace fitted to its pretrained model, and saved."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..config import PlasticityConfig
from ..console import progress
from ..errors import NPTError
from ..surgery import learnable_layers, mode, set_mode
from ..text.perplexity import perplexity
from ..text.self_text import calibration_text
from ..text.tokens import context_length, read_texts, windows
from .budget import as_overrides, spend
from .calibrate_options import CalibrateOptions
from .fit import Solution, check_calibratable, coarse_rows, solve, write
from .moments import collect
from .sensitivity import sensitivities

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..workspace.workspace import Workspace

WINDOW = 128
"""Tokens per row that texts of a file are cut into."""
SENSITIVE_ROWS = 16
"""Number of rows from which the cost of an error after each layer is measured."""


@dataclass(frozen=True)
class Calibration:
    """What a calibration did."""

    tokens: int
    """read for the fit"""
    seconds: float
    """for the fit alone, with the text at hand"""
    generator_parameters: int
    ranks: dict[str, int]
    explained: dict[str, float]
    """share of the payload's power that each layer's rank accounts for, on the text of the fit"""
    out_of_reach: tuple[str, ...]
    """what these axes cannot give back with any generator; nothing for dual, triple and v1"""
    perplexity_base: float
    """on held-out self-written text"""
    perplexity: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def calibrate(workspace: Workspace, options: CalibrateOptions | None = None) -> Calibration:
    """Fits the low-rank generators of a workspace in closed form and saves them in it.

    A workspace with analytic generators gets low-rank ones. Edits stay as they are; the fit is to the base without
    them. Raises NPTError, with nothing changed, if the text cannot be read or the settings have no closed form.
    """
    options = options or CalibrateOptions()
    config = _low_rank(workspace.config, options)
    check_calibratable(config)
    model, engine = workspace.model, workspace.engine
    with engine.only(()):
        text = calibration_rows(workspace, options.data, options.tokens)
        workspace.reconfigure(config)
        try:
            began = time.perf_counter()
            if options.np_rank == "auto":
                base = workspace.info()["parameters"]
                solutions = solved(model, text)
                worth = _gains(model, solutions, text[:SENSITIVE_ROWS])
                config = _spent(workspace, worth, options.parameters(base))
                workspace.reconfigure(config)
                explained = write_solutions(model, solutions)
            else:
                explained = fit_generators(model, text, options.sequential)
            seconds = time.perf_counter() - began
        except BaseException:
            workspace.reload_generators()
            raise
        workspace.save_generators()
        with progress("measuring perplexity on held-out text"):
            with mode(model, "standard"):
                base_perplexity = perplexity(model, workspace.held_out)
            with mode(model, "dynamic"):
                plastic = perplexity(model, workspace.held_out)
    return Calibration(
        tokens=text.numel(),
        seconds=seconds,
        generator_parameters=workspace.info()["generator_parameters"],
        ranks={str(i): config.at(i).np_rank for i in learnable_layers(model)},
        explained={str(i): share for i, share in explained.items()},
        out_of_reach=tuple(
            dict.fromkeys(r for p in learnable_layers(model).values() for r in p.config.axes.out_of_reach)
        ),
        perplexity_base=base_perplexity,
        perplexity=plastic,
    )


def fit_generators(model: PreTrainedModel, text: Tensor, sequential: bool = False) -> dict[int, float]:
    """Fits every generator of a converted, unedited model on `text` (N, T); the share of power explained per layer.

    `sequential` reads the text once per layer, with the layers before it in dynamic mode as they were fitted.
    """
    if not sequential:
        return write_solutions(model, solved(model, text))
    explained = {}
    plastic = learnable_layers(model)
    if any(p.group for p in plastic.values()):
        raise NPTError("--sequential fits one layer at a time; a coarse code is fitted for its whole group")
    with mode(model, "standard"), progress("calibrating one layer after another") as step:
        for done, (i, plasticity) in enumerate(plastic.items(), 1):
            moments = collect(model, [plasticity], text)[i]
            explained[i] = write(plasticity, solve(plasticity, moments))
            set_mode(model, "dynamic", layers=str(i))
            step(done, len(plastic))
    return explained


def solved(model: PreTrainedModel, text: Tensor) -> dict[int, Solution]:
    """The regression of every converted layer, for all ranks at once, from one pass over `text`."""
    plastic = learnable_layers(model)
    with mode(model, "standard"), progress("reading ordinary text") as step:
        moments = collect(model, list(plastic.values()), text, step)
    found: dict[int, Solution] = {}
    with progress("solving") as step:
        for i, p in plastic.items():
            if p.group and i == p.group[0]:
                coarse = coarse_rows([(plastic[j], moments[j]) for j in p.group])
            found[i] = solve(p, moments.pop(i), coarse=coarse if p.group else None)
            step(len(found), len(plastic))
    return found


def calibration_rows(workspace: Workspace, data: Any, tokens: int) -> Tensor:
    """Rows of tokens (N, T) to learn from: of a file, or what the unedited model writes itself."""
    model, tokenizer = workspace.model, workspace.tokenizer
    if data is not None:
        length = min(WINDOW, context_length(model))
        return windows(tokenizer, read_texts(data), length, tokens, model.device)
    with workspace.engine.only(()), mode(model, "standard"):
        rows, _ = calibration_text(model, tokenizer, workspace.base.sha256)
    return rows[: max(1, tokens // rows.shape[1])]


def write_solutions(model: PreTrainedModel, solutions: dict[int, Solution]) -> dict[int, float]:
    """Gives every generator the parameters of its rank; the share of power explained per layer."""
    return {i: write(p, solutions[i]) for i, p in learnable_layers(model).items()}


def _low_rank(config: PlasticityConfig, options: CalibrateOptions) -> PlasticityConfig:
    """The workspace's configuration with what the options ask for."""
    source = options.input or ("effect" if config.generator == "analytic" else config.input)
    config = replace(config, generator="low_rank", input=source)
    if options.np_rank is not None:  # the least, until `auto` has spent its budget
        config = config.with_rank(1 if options.np_rank == "auto" else options.np_rank)
    return config


def _gains(model: PreTrainedModel, solutions: dict[int, Solution], text: Tensor) -> dict[int, list[float]]:
    """How many nats per token each next rank of a layer saves, to second order and one layer at a time."""
    with mode(model, "standard"), progress("measuring what errors cost") as step:
        cost = sensitivities(model, list(solutions), text, step)
    return {i: (cost[i] * s.space.gains).tolist() for i, s in solutions.items()}


def _spent(workspace: Workspace, gains: dict[int, list[float]], budget: int) -> PlasticityConfig:
    """The configuration whose ranks `budget` buys."""
    plastic, config = learnable_layers(workspace.model), workspace.config
    cost: dict[int, int] = {i: p.generator.cost_of_rank for i, p in plastic.items()}  # type: ignore[misc]
    fixed = sum(q.numel() for p in plastic.values() for q in p.generator.parameters()) - sum(cost.values())
    ranks = as_overrides(spend(gains, cost, budget - fixed))
    return replace(config, layer_overrides=(*config.layer_overrides, *ranks))
