"""Where the benchmarks find their records: an option, or a folder that the environment names."""

from __future__ import annotations

import os
from pathlib import Path

from neuroplastic.errors import NPTError

VARIABLE = "NPT_DATA"


def records_file(given: Path | None, name: str = "counterfact_dev.json") -> Path:
    """`given`, or the file of that name in the folder $NPT_DATA. Raises NPTError if there is neither."""
    if given is None and VARIABLE not in os.environ:
        raise NPTError(
            f"there are no records: give a CounterFact file with --data, or {VARIABLE}, a folder with {name}"
        )
    path = Path(os.environ[VARIABLE]) / name if given is None else given
    if not path.is_file():
        raise NPTError(
            f"there is no file {str(path)!r}; give a CounterFact file with --data, or its folder in {VARIABLE}"
        )
    return path
