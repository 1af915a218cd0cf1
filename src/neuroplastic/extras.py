"""The optional parts of the package: what each needs is brought by an extra of the installation."""

from __future__ import annotations

from importlib.util import find_spec

from .errors import NPTError


def need_extra(extra: str, *modules: str, reason: str) -> None:
    """Raises NPTError, naming the extra, if one of the modules is not installed; called before any work is done."""
    if missing := [m for m in modules if find_spec(m) is None]:
        raise NPTError(f"{reason} needs {' and '.join(missing)}: pip install 'neuroplastic[{extra}]'")
