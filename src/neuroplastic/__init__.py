"""Neuro-Plastic Transformer: a pretrained decoder whose attention rewrites the weights of its MLPs.

`import neuroplastic` is instant; torch is loaded when a name that needs it is first used.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import export
    from .calibration.calibrate import Calibration, calibrate
    from .calibration.calibrate_options import CalibrateOptions
    from .config import PlasticityConfig
    from .editing.edit import Edit
    from .editing.engine import EditableModel
    from .editing.extract import Modulation, extract_modulation, mean, transfer
    from .editing.fact import Fact, asked, fact_of
    from .editing.in_memory import consolidate_weights, editable, inject
    from .editing.inject_options import InjectOptions
    from .errors import CheckFailed, NPTError
    from .evaluation.fidelity import Fidelity, measure_fidelity
    from .models import load_base
    from .surgery import convert, plastic_layers, revert, set_mode
    from .training.recipe import TrainSettings
    from .training.train_generators import train
    from .workspace import Workspace

__version__ = "0.1.0"

_HOME = {
    "Calibration": "calibration.calibrate",
    "CalibrateOptions": "calibration.calibrate_options",
    "calibrate": "calibration.calibrate",
    "transfer": "editing.extract",
    "mean": "editing.extract",
    "extract_modulation": "editing.extract",
    "Modulation": "editing.extract",
    "Edit": "editing.edit",
    "Fact": "editing.fact",
    "asked": "editing.fact",
    "fact_of": "editing.fact",
    "InjectOptions": "editing.inject_options",
    "Fidelity": "evaluation.fidelity",
    "EditableModel": "editing.engine",
    "editable": "editing.in_memory",
    "CheckFailed": "errors",
    "NPTError": "errors",
    "PlasticityConfig": "config",
    "Workspace": "workspace",
    "consolidate_weights": "editing.in_memory",
    "convert": "surgery",
    "inject": "editing.in_memory",
    "load_base": "models",
    "measure_fidelity": "evaluation.fidelity",
    "plastic_layers": "surgery",
    "revert": "surgery",
    "set_mode": "surgery",
    "TrainSettings": "training.recipe",
    "train": "training.train_generators",
}

__all__ = [
    "CalibrateOptions",
    "Calibration",
    "CheckFailed",
    "Edit",
    "EditableModel",
    "Fact",
    "Fidelity",
    "InjectOptions",
    "Modulation",
    "NPTError",
    "PlasticityConfig",
    "TrainSettings",
    "Workspace",
    "asked",
    "calibrate",
    "consolidate_weights",
    "convert",
    "editable",
    "export",
    "extract_modulation",
    "fact_of",
    "inject",
    "load_base",
    "mean",
    "measure_fidelity",
    "plastic_layers",
    "revert",
    "set_mode",
    "train",
    "transfer",
]


def __getattr__(name: str) -> Any:
    if name == "export":
        return import_module(".export", __name__)
    if name == "LiveEdit":
        warnings.warn("LiveEdit is Edit now: the edit is its own handle", DeprecationWarning, stacklevel=2)
        name = "Edit"
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
