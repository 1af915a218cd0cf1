"""The suites by name."""

from __future__ import annotations

from .counterfact import COUNTERFACT
from .suite import Suite, SuiteName
from .zsre import ZSRE

SUITES: dict[SuiteName, Suite] = {s.name: s for s in (COUNTERFACT, ZSRE)}
