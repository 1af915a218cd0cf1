"""One permanent update and its file: the factors of dW per layer and site, and how they came to be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import uuid
import warnings
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..config import SITES, Place
from ..errors import NPTError
from ..files import content_hash, read_tensors, write_tensors
from ..modulation import frobenius_norm
from .units import Units

if TYPE_CHECKING:
    from .engine import EditableModel

FORMAT = 2
"""Files of format 1 have no gated units, and are read as they were."""


class Factors(NamedTuple):
    """dW = B A of one projection: A [rank, d_in], B [d_out, rank], float32 (float64 for a float64 base)."""

    A: Tensor
    B: Tensor


@dataclass(frozen=True, eq=False)
class Edit:
    """A named weight change, immutable and self-contained; `alpha` is in the factors already.

    It is also the handle of the change that it is in a model: `undo` takes it out, `redo` puts it back. Two are equal
    if they have the same id.
    """

    name: str
    statement: str
    method: str
    alpha: float
    base: str
    """content hash of the base weights it was made for"""
    sequence: int
    """edits are added to the weights in this order, so that the same set always gives the same bits"""
    created: str
    """UTC time, ISO 8601"""
    factors: dict[Place, Factors]
    report: dict[str, Any] = field(default_factory=dict)
    """question, answer and subject, and the figures measured at injection"""
    keys: dict[Place, Tensor] = field(default_factory=dict)
    """per layer and site, the inputs [n, d_in] that the factors answer to, for later edits to leave alone; empty if
    the method has none"""
    rho: float | None = None
    """the ridge of the joint solution (joint_solve.py): edits with the same one are solved together; None for an edit
    whose factors are added as they are"""
    units: dict[int, Units] = field(default_factory=dict)
    """per layer, the gated units that the edit is in the model; if there are any, the factors are its form for adapters
    alone"""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """what identifies the edit; a name or a number may be given to a later one again"""
    home: weakref.ref[EditableModel] | None = field(default=None, repr=False)
    """the engine of the model that it was made for or loaded into"""

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, Edit) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def engine(self) -> EditableModel:
        """Raises NPTError for an edit that belongs to no model in memory."""
        engine = None if self.home is None else self.home()
        if engine is None:
            raise NPTError(f"the edit {self.name!r} belongs to no model in memory; add it to a workspace first")
        return engine

    @property
    def active(self) -> bool:
        """Whether it is in the weights of its model."""
        engine = None if self.home is None else self.home()
        return engine is not None and any(e.id == self.id for e in engine.edits)

    def undo(self) -> None:
        """Takes it out of the weights, in any order, bit for bit. Raises NPTError if it was undone already."""
        self.engine.undo(self)

    def redo(self) -> None:
        """Puts it back into the weights. Raises NPTError if it is there, or another edit has taken its place."""
        self.engine.redo(self)

    @property
    def edit(self) -> Edit:
        """Itself: what an edit in memory held in the first release, where its handle was another object."""
        warnings.warn("an edit is its own handle now: leave .edit out", DeprecationWarning, stacklevel=2)
        return self

    @property
    def replaces(self) -> tuple[str, ...]:
        """Names of the edits that it took the place of; they come back when it is undone."""
        return tuple(self.report.get("replaces", ()))

    def has_replaced(self, other: Edit) -> bool:
        """Whether it took the place of that very edit, not of another one of its name."""
        return other.id in self.replaced_ids

    @property
    def replaced_ids(self) -> tuple[str, ...]:
        """Ids of the edits that it took the place of."""
        return tuple(self.report.get("replaced_ids", ()))

    @property
    def asked(self) -> tuple[str, str] | None:
        """The question that the edit answers, and the answer with what separates it from the question; None for an
        edit that was not made from a statement."""
        if "question" not in self.report:
            return None
        question, answer = self.report["question"], self.report["answer"]
        stated = self.statement.removeprefix(question)
        between = stated[: len(stated) - len(stated.lstrip())]
        return question, between + answer if self.statement.startswith(question + between + answer) else f" {answer}"

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.units or {layer for layer, _ in self.factors}))

    @property
    def ungated(self) -> Edit:
        """The same edit as a change of weights, which answers a little to every token."""
        return dataclasses.replace(self, units={}) if self.units else self

    @property
    def norm(self) -> float:
        """Frobenius norm of the whole change."""
        return float(sum(frobenius_norm(*f).item() ** 2 for f in self.factors.values()) ** 0.5)

    def summary(self) -> dict[str, Any]:
        """What `--json` prints of an edit."""
        return {
            "name": self.name,
            "statement": self.statement,
            "method": self.method,
            "alpha": self.alpha,
            "created": self.created,
            "layers": list(self.layers),
            "gated": bool(self.units),
            "norm": self.norm,
            **self.report,
        }

    def save(self, path: Path) -> None:
        kept = ["id", "name", "statement", "method", "alpha", "base", "sequence", "created", "report"]
        kept += ["rho"] if self.rho is not None else []
        metadata = {"kind": "edit", "format": FORMAT, **{k: getattr(self, k) for k in kept}}
        tensors = write_factors(self.factors) | {f"layers.{i}.{site}.K": k for (i, site), k in self.keys.items()}
        tensors |= {f"layers.{i}.units.{n}": t for i, u in self.units.items() for n, t in u._asdict().items()}
        write_tensors(path, tensors, {**metadata, "seal": _seal(tensors, metadata)})

    @classmethod
    def load(cls, path: Path) -> Edit:
        """Raises NPTError, naming the file, if it is damaged or not an edit."""
        tensors, metadata = read_tensors(path)
        if metadata.get("kind") != "edit" or metadata.get("format") not in range(1, FORMAT + 1):
            raise NPTError(f"{path} is not an edit of format {FORMAT} or an earlier one")
        expected = {
            "name": str,
            "statement": str,
            "method": str,
            "base": str,
            "sequence": int,
            "created": str,
        }
        for key, kind in {**expected, "alpha": (int, float), "report": dict}.items():
            if not isinstance(metadata.get(key), kind):  # type: ignore[arg-type]
                raise NPTError(f"{path} is damaged: its {key} is missing or of the wrong kind")
        units = read_units(path, {n: t for n, t in tensors.items() if ".units." in n})
        factors, keys = read_factors(path, {n: t for n, t in tensors.items() if ".units." not in n})
        rho = metadata.get("rho")
        if rho is not None and not (isinstance(rho, float) and rho > 0 and keys.keys() == factors.keys()):
            raise NPTError(f"{path} is damaged: it cannot be solved together with others")
        if rho is not None and any(len(keys[p]) != len(factors[p].A) for p in keys):
            raise NPTError(f"{path} is damaged: its keys and factors do not fit together")
        seal = metadata.pop("seal", None)
        if seal != _seal(tensors, metadata):
            raise NPTError(
                f"{path} was changed after it was written; restore it from a copy, or undo it by moving it away"
            )
        known = metadata.get("id", seal)  # files of the first release have none
        if not isinstance(known, str):
            raise NPTError(f"{path} is damaged: its id is of the wrong kind")
        fields = {k: metadata[k] for k in (*expected, "alpha", "report")}
        return cls(factors=factors, keys=keys, rho=rho, units=units, id=known, **fields)


def _seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """sha256 over everything that an edit file holds."""
    header = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256((content_hash(dict(tensors)) + header).encode()).hexdigest()


def read_units(path: Path, tensors: Mapping[str, Tensor]) -> dict[int, Units]:
    """The gated units in a file's tensors. Raises NPTError, naming `path`, if a name, a shape or a value is wrong."""
    parts: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        m = re.fullmatch(r"layers\.(\d+)\.units\.(\w+)", name)
        if m is None or m[2] not in Units._fields:
            raise NPTError(f"{path} is damaged: unexpected tensor {name!r} of shape {tuple(tensor.shape)}")
        parts.setdefault(int(m[1]), {})[m[2]] = tensor
    units: dict[int, Units] = {}
    for layer, found in sorted(parts.items()):
        if found.keys() != set(Units._fields):
            raise NPTError(f"{path} is damaged: the units of layer {layer} are not whole")
        u = Units(**found)
        n, d = u.A.shape if u.A.dim() == 2 else (0, 0)
        if n == 0 or [t.shape for t in u] != [(n, d), (n, d), (n,), (d,), (n, d)] or not bool((u.width > 0).all()):
            raise NPTError(f"{path} is damaged: the units of layer {layer} do not fit together")
        if not all(torch.isfinite(t).all() for t in u):
            raise NPTError(f"{path} is damaged: the units of layer {layer} are not finite")
        units[layer] = u
    return units


def write_factors(factors: Mapping[Place, Factors]) -> dict[str, Tensor]:
    """The tensors of a file: layers.{i}.{site}.A and .B."""
    return {
        f"layers.{layer}.{site}.{side}": t
        for (layer, site), pair in factors.items()
        for side, t in zip("AB", pair, strict=True)
    }


def read_factors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[Place, Factors], dict[Place, Tensor]]:
    """The factors, and the keys, in a file's tensors.

    Raises NPTError, naming `path`, if a name, a shape or a value is wrong.
    """
    parts: dict[Place, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        m = re.fullmatch(r"layers\.(\d+)\.(gate|up|down)\.([ABK])", name)
        if m is None or tensor.dim() != 2:
            raise NPTError(f"{path} is damaged: unexpected tensor {name!r} of shape {tuple(tensor.shape)}")
        site = next(s for s in SITES if s == m[2])
        parts.setdefault((int(m[1]), site), {})[m[3]] = tensor
    factors: dict[Place, Factors] = {}
    keys: dict[Place, Tensor] = {}
    for (layer, site), found in sorted(parts.items()):
        A, B, K = (found.get(name) for name in "ABK")
        if A is None or B is None or len(A) != B.shape[1] or (K is not None and K.shape[1] != A.shape[1]):
            raise NPTError(f"{path} is damaged: the factors of layer {layer}, {site} do not fit together")
        if not all(torch.isfinite(t).all() for t in found.values()):
            raise NPTError(f"{path} is damaged: the factors of layer {layer}, {site} are not finite")
        factors[layer, site] = Factors(A, B)
        if K is not None:
            keys[layer, site] = K
    return factors, keys


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED = frozenset(["con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))])
"""Names that a file cannot have on some systems, with or without an extension."""


def check_name(name: str) -> str:
    """Returns `name`, or raises NPTError if it cannot be a file's name everywhere."""
    if not NAME.fullmatch(name) or name.endswith("."):
        raise NPTError(
            f"{name!r} cannot name an edit; use up to 64 letters, digits, dots, dashes and underscores, with no dot at "
            "the end"
        )
    if name.split(".")[0].lower() in RESERVED:
        raise NPTError(f"{name!r} cannot name an edit: some systems reserve that name for a device; choose another")
    return name


def is_taken(name: str, taken: Iterable[str]) -> bool:
    """Whether a file of that name would meet another one on a system that does not tell upper case from lower."""
    return name.casefold() in {n.casefold() for n in taken}


def name_from(statement: str, taken: Iterable[str]) -> str:
    """A free name made from the statement's first words."""
    words = re.findall(r"[a-z0-9]+", statement.lower())[:5]
    stem = "-".join(words)[:40] or "edit"
    if stem in RESERVED:
        stem = f"{stem}-edit"
    number = 1
    name = stem
    while is_taken(name, taken):
        number += 1
        name = f"{stem}-{number}"
    return name
