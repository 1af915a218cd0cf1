"""How a fact is injected: declared here once, for Python, the command line and what the studio's server takes.

The studio's page lays out its form by hand (studio/static/index.html); the choices of methods come from here.
Imports no torch, so that the command line can answer at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

from tyro.conf import Suppress

from ..config import SITES, Site
from ..errors import NPTError

Method = Literal["learned", "consolidate", "refine", "token"]
Start = Literal["learned", "consolidate", "token"]
ALPHA: dict[Method, float] = {"learned": 1.0, "consolidate": 1.0, "refine": 1.0, "token": 0.1}


@dataclass(frozen=True)
class InjectOptions:
    """How a fact becomes a change of weights."""

    method: Method | None = None
    """learned reads the statement once with a trained injector, and adds units that act only where the fact's subject
    is read (with --ungated: a change of weights, a part of which a few gradient steps improve); consolidate finds what
    the early MLPs should have written at the fact's subject and solves for it in closed form; refine improves that by
    gradient steps, holding neighbours and ordinary text in place; token makes the last token's own modulation permanent
    (default learned if the model has an injector and no option needs another method, else consolidate)."""

    alpha: float | None = None
    """Strength: scales the weight change (default 1; 0.1 for token)."""

    layers: str | None = None
    """Layers that may change: all, early, upper_half, top2, 14,15, 8-15 or negative indices (default early; all for
    token)."""

    sites: str | None = None
    """Projections that may change, such as down or gate+up (default down; for token, what the generator modulates)."""

    rank: int | None = None
    """Largest rank of the change per projection; a larger one is compressed."""

    start: Start = "consolidate"
    """Method that refine starts from."""

    keep: Annotated[tuple[str, ...], Suppress] = ()
    """Sentences that should be read as before."""

    max_drift: float | None = None
    """Refuse the edit, with exit status 1, if perplexity on ordinary text would rise by more than this (0.05 is
    5 percent)."""

    require: bool = False
    """Refuse the edit, with exit status 1, if the answer is not the likeliest one afterwards."""

    consistent: bool = False
    """Refuse the edit, with exit status 1, if it contradicts an active one: the same question, another answer."""

    keep_both: bool = False
    """Keep an active edit that gives another answer to the same question; otherwise the new one replaces it, and undo
    brings it back."""

    quick: bool = False
    """For ungated edits of learned: take the injector's update as it is, with gradient steps only if it does not give
    the answer, as gated edits do anyway. It is several times as fast, but locality and ordinary text suffer, and many
    such edits disturb each other."""

    ungated: bool = False
    """For learned: change the weights of projections, which answer a little to every token, instead of adding units
    that act only where the fact's subject is read. Adapters are made of it; many such edits disturb each other."""

    def __post_init__(self) -> None:
        for field, choices in (("method", (*get_args(Method), None)), ("start", get_args(Start))):
            if getattr(self, field) not in choices:
                raise NPTError(
                    f"{field} must be one of {', '.join(filter(None, choices))}, not {getattr(self, field)!r}"
                )
        if self.alpha is not None and (not math.isfinite(self.alpha) or self.alpha == 0):
            raise NPTError(f"alpha must be a finite number other than 0, not {self.alpha}")
        if self.start != "consolidate" and self.method != "refine":
            raise NPTError(f"start={self.start!r} goes with method 'refine' alone")
        if self.keep and self.method == "token":
            raise NPTError("method 'token' makes one token's update permanent as it is: it can keep no sentences")
        if self.method is not None and self.source == "learned":
            for field in ("layers", "sites", "rank", *(("keep",) if self.method == "learned" else ())):
                if getattr(self, field):
                    raise NPTError(f"{field} has no meaning with an injector, which was trained for its own")
        if self.consistent and self.keep_both:
            raise NPTError("consistent refuses what keep_both allows; give one of them")
        if self.ungated and self.method not in ("learned", None):
            raise NPTError("ungated goes with method 'learned' alone: the others make no gated units")
        if self.quick and self.method not in ("learned", None):
            raise NPTError("quick goes with method 'learned' alone")
        if any(not sentence.strip() for sentence in self.keep):
            raise NPTError("a sentence to keep is empty")
        if self.rank is not None and self.rank < 1:
            raise NPTError(f"rank must be at least 1, not {self.rank}")
        if self.max_drift is not None and not math.isfinite(self.max_drift):
            raise NPTError(f"max_drift must be a finite number, such as 0.05 for 5 %, not {self.max_drift}")
        _ = self.chosen_sites

    def resolved(self, injector: bool) -> InjectOptions:
        """With a method, for a model that has an injector or not."""
        if self.method is not None:
            return self
        learned = injector and self.asks_injector
        if self.quick and not learned:
            raise NPTError("quick goes with method 'learned' alone, which this model and these options do not have")
        return replace(self, method="learned" if learned else "consolidate")

    @property
    def asks_injector(self) -> bool:
        """Whether the model's injector is asked, if it has one."""
        if self.method is None:
            return not (self.layers or self.sites or self.rank or self.keep)
        return self.source == "learned"

    @property
    def gated(self) -> bool:
        """Whether the edit is one of gated units."""
        return self.method == "learned" and not self.ungated

    @property
    def chosen_method(self) -> Method:
        """The method of resolved options."""
        assert self.method is not None
        return self.method

    @property
    def source(self) -> Method:
        """Where the update comes from before it is refined."""
        return self.start if self.method == "refine" else self.chosen_method

    @property
    def strength(self) -> float:
        """alpha, or the method's own."""
        return ALPHA[self.chosen_method] if self.alpha is None else float(self.alpha)

    @property
    def chosen_layers(self) -> str:
        """layers, or the method's own."""
        return self.layers or ("all" if self._modulates else "early")

    @property
    def chosen_sites(self) -> tuple[Site, ...]:
        """sites, or the method's own. Raises NPTError for an unknown one."""
        if self.sites is None:
            return SITES if self._modulates else ("down",)
        named = [s.strip() for s in self.sites.replace(",", "+").split("+")]
        if wrong := [s for s in named if s not in SITES]:
            raise NPTError(f"there is no site {wrong[0]!r}; sites are {', '.join(SITES)}, joined by +")
        return tuple(s for s in SITES if s in named)

    @property
    def _modulates(self) -> bool:
        return self.method is not None and self.source == "token"
