"""Fidelity of the same model converted in different ways, as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from ..calibration.calibrate import solved, write_solutions
from ..calibration.fit import Solution
from ..config import PlasticityConfig, Preset
from ..console import Progress
from ..errors import NPTError
from ..surgery import convert, plastic_layers, revert
from .fidelity import Fidelity, measure_fidelity

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Variant:
    """One way to convert a model, and what its generators need before they can be measured."""

    config: PlasticityConfig
    prepare: Callable[[PreTrainedModel], object] = lambda model: None
    """given the converted model; a calibration, for generators that have parameters"""


@dataclass(frozen=True)
class Measured:
    """One row of the table."""

    preset: str
    generator: str
    np_rank: int | None
    """None if the generator has no bottleneck"""
    parameters: int
    fidelity: Fidelity | None
    refused: str | None
    """why this model cannot be converted in this way"""


def analytic_presets(layers: str) -> list[Variant]:
    """Every preset with the generator that has no parameters."""
    return [Variant(PlasticityConfig(preset=p, layers=layers)) for p in get_args(Preset)]


def calibrated_ranks(layers: str, ranks: Sequence[int], text: Tensor) -> list[Variant]:
    """Every preset with low-rank generators of these widths, fitted in closed form to `text` (N, T)."""
    return [
        Variant(PlasticityConfig(preset=p, layers=layers, generator="low_rank", np_rank=r, input="effect"), fit)
        for p in get_args(Preset)
        for fit in [_ClosedForm(text)]
        for r in ranks
    ]


class _ClosedForm:
    """Fits the generators of a converted model. One regression serves all ranks of a preset, so it is made once."""

    def __init__(self, text: Tensor):
        self._text = text
        self._solutions: dict[int, Solution] | None = None

    def __call__(self, model: PreTrainedModel) -> None:
        if self._solutions is None:
            self._solutions = solved(model, self._text)
        write_solutions(model, self._solutions)


def sweep(
    model: PreTrainedModel, text: Tensor, variants: Sequence[Variant], step: Progress | None = None
) -> Iterator[Measured]:
    """Converts the unconverted `model` in each way, measures it on `text` (N, T), and gives it back as it was."""
    for number, variant in enumerate(variants):
        config = variant.config
        rank = config.np_rank if config.generator == "low_rank" else None
        try:
            convert(model, config)
        except NPTError as e:
            yield Measured(config.preset, config.generator, rank, 0, None, str(e))
        else:
            try:
                variant.prepare(model)
                parameters = sum(p.numel() for q in plastic_layers(model).values() for p in q.generator.parameters())
                found = measure_fidelity(model, text)
            finally:
                revert(model)
            yield Measured(config.preset, config.generator, rank, parameters, found, None)
        if step is not None:
            step(number + 1, len(variants))


def as_rows(measured: Sequence[Measured]) -> list[dict[str, object]]:
    """For `--json`: one flat object per variant, without what is measured by position and layer."""
    rows = []
    for m in measured:
        row = {k: v for k, v in vars(m).items() if k != "fidelity"}
        if m.fidelity is not None:
            figures = dataclasses.asdict(m.fidelity)
            row |= {k: v for k, v in figures.items() if not isinstance(v, dict)}
        rows.append(row)
    return rows
