"""Commands that make generators good: in closed form, and by training."""

from __future__ import annotations

from tyro.conf import OmitArgPrefixes

from ..calibration.options import CalibrateOptions
from . import printing
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
