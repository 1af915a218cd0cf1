"""The suites by name."""

from __future__ import annotations

from .counterfact import COUNTERFACT
from .qaedit import QAEDIT
from .stated import STATED
from .suite import Suite, SuiteName
from .zsre import ZSRE

SUITES: dict[SuiteName, Suite] = {s.name: s for s in (COUNTERFACT, ZSRE, STATED, QAEDIT)}
