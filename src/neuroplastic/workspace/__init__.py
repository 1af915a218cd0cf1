"""A workspace: one folder that holds everything about one plastic model."""

from .workspace import Comparison, Held, Verification, Workspace

__all__ = ["Comparison", "Held", "Verification", "Workspace"]
