"""Where an injector's training starts: its linear path fitted in closed form to what `consolidate` searches for.

For some facts the targets of editing/targets.py are found, six steps of Adam each: per edited layer the change delta of
the down projection's output at the subject's last token that makes the answer likely. Their directions
u_l = delta_l / |delta_l| are regressed on the features x of the answer's tokens (injector.py), every fact weighed by
the probability p that its answer reached:

    W = argmin sum_n p_n |u_n - u_mean - W x_n|^2 + lambda |W|^2         x standardised, lambda chosen on a tenth

and cut to the rank of the linear path by an SVD of the predictions. A few hundred facts take an answer's probability
further than thousands of steps from a random start.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..console import progress
from ..editing.engine import EditableModel
from ..editing.fact import asked
from ..editing.injector import Injector, mean_answer, read_statements
from ..editing.methods.consolidate import Consolidate
from ..editing.sentence import find_words
from ..editing.targets import Reader, find_targets, rows_of
from ..errors import NPTError
from ..files import read_tensors, write_tensors
from ..surgery import mode
from ..text.tokens import encode_after
from .lessons import Topic

TOGETHER = 16
"""Facts whose targets are searched for in one batch."""
LENGTH = 30.0
"""Of what the fitted heads give, of which only the direction counts: the longer, the less a step of Adam turns it."""
FEWEST = 10
"""Facts that a fit takes."""
LAMBDAS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Examples(NamedTuple):
    """What the regression is made from."""

    x: Tensor
    """features of the answers [N, depths * d]"""
    delta: Tensor
    """[N, L, d]"""
    p: Tensor
    """probability of each answer, per token, in its worst wording [N]"""


def suitable(topics: Sequence[Topic]) -> list[Topic]:
    """Those whose subject is known and stands in two wordings at least."""
    return [t for t in topics if t.subject is not None and len(_wordings(t)) > 1]


def find_examples(engine: EditableModel, injector: Injector, topics: Sequence[Topic], folder: Path) -> Examples:
    """Targets of these topics. Kept in `folder` batch by batch, so that an interrupted search continues; under a name
    made of the model, the topics and what is read, so that another search finds nothing of this one."""
    config, model, tokenizer = injector.config, engine.model, engine.tokenizer
    searched = json.dumps([engine.sha256, config.layers, config.depths, config.reads, [astuple(t) for t in topics]])
    folder = folder / hashlib.sha256(searched.encode()).hexdigest()[:16]
    parts = [p for p in engine.parts if p.index in config.layers]
    prefix, how = engine.text[0][:1, 1:6].tolist(), Consolidate()
    found: list[Examples] = []
    with mode(model, "standard"), progress("searching for the values of some facts") as step:
        for first in range(0, len(topics), TOGETHER):
            path = folder / f"examples-{first:06d}.safetensors"
            if path.exists():
                tensors, _ = read_tensors(path)
                found.append(Examples(*(tensors[n].float() for n in Examples._fields)))
                step(min(first + TOGETHER, len(topics)), len(topics))
                continue
            facts = [
                asked(w[0], t.answer, w[1:], t.subject)
                for t in topics[first : first + TOGETHER]
                for w in [_wordings(t)]
            ]
            rows, owner = rows_of(tokenizer, facts, prefix)
            reader = Reader(model, parts, ("down",), rows)
            targets = find_targets(reader, owner, how.max_steps, how.step_length, how.target_probability)
            statements = [encode_after(tokenizer, f.question, f.answer) for f in facts]
            x = mean_answer(read_statements(model, tokenizer, config, statements))
            delta = torch.stack([targets.deltas[layer, "down"] for layer in config.layers], 1)
            p = torch.tensor(targets.probability, device="cpu")
            some = Examples(x.cpu().half(), delta.cpu().half(), p.half())
            write_tensors(path, some._asdict(), {"kind": "examples"})
            found.append(Examples(*(t.float() for t in some)))  # as they will be read
            step(min(first + TOGETHER, len(topics)), len(topics))
    return Examples(*(torch.cat(ts) for ts in zip(*found, strict=True)))


class Fit(NamedTuple):
    """u = mean + (x - offset) W, W [D, L * d]."""

    offset: Tensor
    W: Tensor
    mean: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.mean + (x - self.offset) @ self.W


def ridge(x: Tensor, u: Tensor, p: Tensor, lam: float) -> Fit:
    """Weighted ridge regression on standardised features; x [N, D], u [N, O], p [N]. The dual form: N is below D."""
    weight = (p / p.mean()).clamp_min(0.05)
    offset = (weight[:, None] * x).sum(0) / weight.sum()
    mean = (weight[:, None] * u).sum(0) / weight.sum()
    scale = ((x - offset).square().mean(0).sqrt() + 1e-6) * x.shape[1] ** 0.5
    z = (x - offset) / scale
    dual = torch.linalg.solve(z @ z.T + lam * torch.diag(1 / weight), u - mean)
    return Fit(offset, (z.T @ dual) / scale[:, None], mean)


@torch.no_grad()
def fit_values(injector: Injector, examples: Examples) -> dict[str, float]:
    """Sets the linear path, and the usual size of each layer's value. Returns lambda, and the mean cosine between
    predicted and found directions on the tenth that it was chosen on."""
    config = injector.config
    if len(examples.x) < FEWEST:
        raise NPTError(f"{len(examples.x)} facts are too few to fit values to; {FEWEST} are needed at least")
    x, p = examples.x.double(), examples.p.double()
    u = normalize(examples.delta.double(), dim=-1).flatten(1)
    held = torch.arange(len(x), device=x.device) % 10 == 9

    def cosine(lam: float) -> float:
        predicted = ridge(x[~held], u[~held], p[~held], lam)(x[held])
        found, wanted = (torch.unflatten(t, 1, (-1, config.d_model)) for t in (predicted, u[held]))
        each = torch.nn.functional.cosine_similarity(found, wanted, dim=-1)
        return float((each.mean(1) * p[held]).sum() / p[held].sum())

    best = max(LAMBDAS, key=cosine)
    fit = ridge(x, u, p, best)
    predicted = (x - fit.offset) @ fit.W
    V = torch.linalg.svd(predicted, full_matrices=False).Vh[: config.straight]  # [rank, L * d]
    rank = len(V)
    code = fit.W @ V.T  # [D, rank]
    spread = ((x - fit.offset) @ code).square().mean(0).sqrt() + 1e-9
    shape = len(config.layers), config.d_model
    code, heads = code / spread, torch.unflatten(V * spread[:, None], 1, shape)
    injector.straight.weight.zero_()
    injector.straight.bias.zero_()
    injector.straight.weight[:rank] = code.T.float()
    injector.straight.bias[:rank] = -(fit.offset @ code).float()
    mean = torch.unflatten(fit.mean, 0, shape)
    sizes = examples.delta.double().norm(dim=-1).mean(0) / torch.tensor(config.norms, device=x.device).double()
    injector.size.bias.copy_(sizes.clamp_min(0.01).expm1().log())  # the inverse of softplus
    for i, head in enumerate(injector.values):
        assert isinstance(head, torch.nn.Linear)
        head.weight.zero_()
        head.weight[:, :rank] = LENGTH * heads[:, i].T.float()
        head.bias.copy_(LENGTH * mean[i])
    return {"facts": float(len(x)), "lambda": best, "cosine": cosine(best)}


def _wordings(topic: Topic) -> list[str]:
    """The first two that name the subject."""
    return [w for w in topic.wordings if topic.subject is not None and find_words(w, topic.subject) is not None][:2]
