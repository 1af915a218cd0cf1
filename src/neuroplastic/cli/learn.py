"""Commands that fit generators: in closed form, and by training."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from tyro.conf import OmitArgPrefixes

from ..calibration.calibrate_options import CalibrateOptions
from ..cli import common, printing
from ..training.recipe import TrainSettings
from ..training.settings import from_yaml
from .common import Json, WorkspaceArg, app, open_workspace, show_result


@app.command
def calibrate(workspace: WorkspaceArg, *, options: OmitArgPrefixes[CalibrateOptions], json: Json = False) -> int:
    """Fit the low-rank generators of a workspace to its model in closed form: no gradient, about a minute.

    A workspace with analytic generators gets low-rank ones.

    Args:
        workspace: The workspace, which is changed.
        options: How they are fitted.
    """
    ws = open_workspace(workspace)
    from ..calibration.calibrate import calibrate

    return show_result(json, calibrate(ws, options).to_dict(), printing.calibration)


@app.command
def train(
    workspace: WorkspaceArg,
    *,
    recipe: Path | None = None,
    resume: bool = False,
    settings: OmitArgPrefixes[TrainSettings] = TrainSettings(),  # noqa: B008
    json: Json = False,
) -> int:
    """Distil the low-rank generators of a workspace from its model.

    On several devices: accelerate launch -m neuroplastic.cli train WORKSPACE. Checkpoints, a log of every step and
    report.html are in WORKSPACE/training/generators; an interrupted run continues with --resume, to the same bits as
    one that was not interrupted.

    Args:
        workspace: The workspace, which gets the trained generators in the end.
        recipe: YAML file of the settings below (recipes/dual.yaml); flags that are given as well take precedence.
        resume: Continue the training that the workspace holds.
        settings: How they are trained.
    """
    if recipe is not None:
        given = {a.split("=")[0].removeprefix("--").replace("-", "_") for a in common.arguments if a.startswith("--")}
        chosen = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name in given}
        settings = replace(from_yaml(TrainSettings, recipe), **chosen)
    ws = open_workspace(workspace)
    from ..training.launch import process
    from ..training.train_generators import train

    found = train(ws, settings, resume)
    return show_result(json, found, printing.training) if process().is_main_process else 0  # of several, one speaks
