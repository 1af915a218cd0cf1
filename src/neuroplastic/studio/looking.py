"""Look inside: how a text modulates each layer at each token, and which tokens the stored edits listen to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from ..capture import capturing
from ..config import Place, Site
from ..editing.edit import Edit, Factors
from ..editing.extract import Modulation, extract_modulation
from ..editing.token_update import probing, weight_layers
from ..errors import NPTError
from ..evaluation.heat import modulation_norms
from ..statistics import READS, Input, inputs_of
from ..structure import projection
from ..surgery import Plasticity, Probe
from ..text.tokens import context_length, encode, start_token
from .edit_table import stored

if TYPE_CHECKING:
    from ..workspace.workspace import Workspace

Inputs = dict[tuple[int, Input], Tensor]


@dataclass(frozen=True)
class Look:
    text: str


@dataclass(frozen=True)
class Cell:
    """One layer at one token, both counted from 0."""

    text: str
    layer: int
    token: int


def look(ws: Workspace, form: Look) -> dict[str, Any]:
    """Norms by layer and token, and, by stored edit, how strongly it answers at each token."""
    _check(ws, form.text)
    heat = modulation_norms(ws.model, ws.tokenizer, form.text)
    inputs = _inputs(ws, form.text)
    listening = [
        {"name": edit.name, "state": state, "response": torch.stack(answers).amax(0).tolist()}
        for edit, state in stored(ws)
        if (answers := [_response(ws, edit, place, inputs) for place in edit.factors])
    ]
    return {**heat._asdict(), "listening": listening}


def cell(ws: Workspace, form: Cell) -> dict[str, Any]:
    """The modulation of one cell beside each stored edit: as weight changes, and by what the edit listens to there."""
    _check(ws, form.text)
    modulation = extract_modulation(ws.model, ws.tokenizer, form.text, form.token, str(form.layer))
    inputs, effect = _inputs(ws, form.text), _effect(ws, form)
    return {
        "layer": form.layer,
        "token": form.token,
        "norms": {site: Modulation({p: f}).norm() for (_, site), f in modulation.factors.items() for p in [(0, site)]},
        "edits": [
            {"name": edit.name, "state": state, **_beside(ws, edit, form, modulation, effect, inputs)}
            for edit, state in stored(ws)
        ],
    }


def _beside(
    ws: Workspace, edit: Edit, form: Cell, modulation: Modulation, effect: Tensor, inputs: Inputs
) -> dict[str, Any]:
    """`cosine` is that of the two changes of this layer's weights; if they share no projection it is 0, and `why`
    says so. `effect_cosine` is that of what the two add to the output of this layer's MLP at this token."""
    here = {place: f for place, f in edit.factors.items() if place[0] == form.layer}
    if not here:
        layers = ", ".join(map(str, edit.layers))
        why = f"it changes layer{'s' * (len(edit.layers) > 1)} {layers}"
        return {"cosine": 0.0, "effect_cosine": 0.0, "why": why, "listens": []}
    sites, own = ({site for _, site in places} for places in (here, modulation.factors))
    apart = f"it changes {' and '.join(sorted(sites))}, this cell modulates {' and '.join(sorted(own))}"
    x = inputs[form.layer, "x"][form.token]
    return {
        "cosine": modulation.cosine(Modulation(here)),
        "effect_cosine": cosine_similarity(effect, _effect_of_edit(ws, here, form.layer, x), dim=0).item(),
        "why": None if sites & own else apart,
        "listens": [
            {
                "site": place[1],
                "keys": len(_keys(edit, place)),
                "cosine": _cosines(edit, place, inputs)[:, form.token].max().item(),
                "response": _response(ws, edit, place, inputs)[form.token].item(),
            }
            for place in here
        ],
    }


def _keys(edit: Edit, place: Place) -> Tensor:
    """What an edit listens to at a place [n, d_in]: its keys, or, if its method leaves none, the rows of A."""
    return edit.keys[place] if place in edit.keys else edit.factors[place].A


def _cosines(edit: Edit, place: Place, inputs: Inputs) -> Tensor:
    """Between each key and what the projection reads at each token [n, T]."""
    z = inputs[place[0], READS[place[1]]]
    return normalize(_keys(edit, place).to(z), dim=-1) @ normalize(z, dim=-1).T


def _response(ws: Workspace, edit: Edit, place: Place, inputs: Inputs) -> Tensor:
    """|dW z| / |W z| at each token [T]: how much of a projection's output the edit changes there."""
    z = inputs[place[0], READS[place[1]]]
    A, B = (t.to(z) for t in edit.factors[place])
    W: Tensor = projection(ws.engine.parts[place[0]].mlp, place[1]).weight.detach().to(z)
    share: Tensor = (z @ A.T @ B.T).norm(dim=-1) / (z @ W.T).norm(dim=-1)
    return share


@torch.no_grad()
def _effect(ws: Workspace, form: Cell) -> Tensor:
    """What the modulation of one cell adds to the output of its MLP [d_model]: with it, less without it."""
    outputs: list[Tensor] = []

    def bare(layer: int, plasticity: Plasticity) -> Probe:
        return lambda site, projection, z, signals, y: projection(z)

    ids = torch.tensor([[start_token(ws.tokenizer), *encode(ws.tokenizer, form.text)]], device=ws.model.device)
    mlp = ws.engine.parts[form.layer].mlp

    def see(at: str, z: Tensor, output: Tensor) -> None:
        outputs.append(output[0, form.token + 1].float())

    with capturing({"mlp": mlp}, see), ws.seen("dynamic"), weight_layers(ws.model, (form.layer,)) as plastic:
        ws.model.base_model(input_ids=ids, use_cache=False)
        with probing(plastic, bare):
            ws.model.base_model(input_ids=ids, use_cache=False)
    return outputs[0] - outputs[1]


@torch.no_grad()
def _effect_of_edit(ws: Workspace, factors: dict[Place, Factors], layer: int, x: Tensor) -> Tensor:
    """What an edit adds to the output of a layer's MLP if that reads `x` [d_model]."""
    mlp: Any = ws.engine.parts[layer].mlp

    def output(changes: dict[Place, Factors]) -> Tensor:
        def read(site: Site, z: Tensor) -> Tensor:
            y: Tensor = projection(mlp, site)(z)
            if (layer, site) not in changes:
                return y
            A, B = (t.to(z) for t in changes[layer, site])
            return y + z @ A.T @ B.T

        z = x.to(projection(mlp, "gate").weight.dtype)
        return read("down", mlp.act_fn(read("gate", z)) * read("up", z)).float()

    with ws.engine.only(()):
        return output(factors) - output({})


@torch.no_grad()
def _inputs(ws: Workspace, text: str) -> Inputs:
    """What each MLP, and each down projection, reads at the text's tokens [T, d], in standard mode."""
    found: Inputs = {}

    def see(at: tuple[int, Input], z: Tensor, output: Tensor) -> None:
        found[at] = z[0, 1:].float()

    ids = torch.tensor([[start_token(ws.tokenizer), *encode(ws.tokenizer, text)]], device=ws.model.device)
    with ws.seen("standard"), capturing(inputs_of(ws.engine.parts), see):
        ws.model.base_model(input_ids=ids, use_cache=False)
    return found


LONGEST = 128
"""Tokens of a text that is looked into; a map of more could not be read."""


def _check(ws: Workspace, text: str) -> None:
    tokens = len(encode(ws.tokenizer, text))
    if not text.strip():
        raise NPTError("the text is empty")
    if tokens > (room := min(LONGEST, context_length(ws.model) - 1)):
        raise NPTError(f"the text has {tokens} tokens; at most {room} can be looked into")
