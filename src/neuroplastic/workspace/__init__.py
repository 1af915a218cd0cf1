"""A workspace: one folder that holds everything about one plastic model."""

from ..editing.engine import Held
from .workspace import Comparison, Verification, Workspace

__all__ = ["Comparison", "Held", "Verification", "Workspace"]
