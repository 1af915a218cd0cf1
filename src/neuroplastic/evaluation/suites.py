"""The suites by name."""

from __future__ import annotations

from .counterfact import COUNTERFACT
from .paragraphs import PARAGRAPHS
from .passages import PASSAGES
from .qaedit import QAEDIT
from .suite import Suite, SuiteName
from .told import TOLD
from .zsre import ZSRE

SUITES: dict[SuiteName, Suite] = {s.name: s for s in (COUNTERFACT, ZSRE, TOLD, PARAGRAPHS, PASSAGES, QAEDIT)}
