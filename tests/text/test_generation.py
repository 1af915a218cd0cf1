"""Continuations: told in pieces that join to the text, ended where they should, stopped by whoever listens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

import neuroplastic as npt
from marked import marked_tokenizer
from neuroplastic.errors import NPTError
from neuroplastic.evaluation import free_text as generation
from neuroplastic.text.generation import Writing, _Teller
from neuroplastic.text.tokens import encode_after, start_token

PROMPT = "The quick brown fox"


@pytest.mark.parametrize("seed", range(8))
def test_pieces_join_to_the_text(workspace: npt.Workspace, seed: int) -> None:
    pieces: list[str] = []
    made = workspace.write(PROMPT, Writing(24, temperature=3.0, seed=seed), tell=pieces.append)
    assert "".join(pieces) == made.text
    assert made.text == workspace.write(PROMPT, Writing(24, temperature=3.0, seed=seed)).text
    for stop in {made.text[5:7], made.text[10:14], made.text[-2:]}:
        pieces.clear()
        cut = workspace.write(PROMPT, Writing(24, temperature=3.0, seed=seed, stop=("§", stop)), tell=pieces.append)
        assert cut.ended
        assert cut.text == "".join(pieces)
        assert stop not in cut.text
        assert made.text.startswith(cut.text)


def test_a_character_of_several_tokens_is_told_whole(workspace: npt.Workspace) -> None:
    pieces: list[str] = []
    teller = _Teller(workspace.tokenizer, 0, (), pieces.append)
    ids = workspace.tokenizer("a€b", return_tensors="pt", add_special_tokens=False).input_ids
    assert ids.shape[1] == 5  # the euro sign is three tokens
    for n in range(1, 6):
        teller(ids[:, :n], None)
    teller.finish()
    assert pieces == ["a", "€", "b"]


def test_whoever_listens_can_stop_it(workspace: npt.Workspace) -> None:
    def stop(piece: str) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        workspace.write(PROMPT, Writing(20), "standard", stop)
    assert workspace.ask(PROMPT)  # and is in its own mode again


@pytest.mark.parametrize(
    ("setting", "cause"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"temperature": 1e-320}, "temperature must be"),
        ({"top_p": 1.1}, "top_p must be"),
        ({"top_k": -1}, "top_k must be"),
        ({"min_p": float("nan")}, "min_p must be"),
        ({"seed": -1}, "seed must be"),
        ({"stop": ("",)}, "a stop string is empty"),
    ],
)
def test_settings_out_of_range(setting: dict[str, object], cause: str) -> None:
    with pytest.raises(NPTError, match=cause):
        Writing(**setting)  # type: ignore[arg-type]


def argmax(ws: npt.Workspace, prompt: str, count: int) -> list[int]:
    """The likeliest tokens, one after the other, each from a forward pass over everything before it."""
    ids = ws.tokens(prompt)
    prompt_length = len(ids)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(ws.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[prompt_length:]


TOKENS = 12
OWN: dict[str, dict[str, Any]] = {
    "repetition penalty": {"repetition_penalty": 5.0},
    "no repeated n-grams": {"no_repeat_ngram_size": 1},
    "least length": {"min_length": 15},
    "least new tokens": {"min_new_tokens": 10},
    "bad words": {"bad_words_ids": "likeliest"},
    "suppressed tokens": {"suppress_tokens": "likeliest"},
    "suppressed first tokens": {"begin_suppress_tokens": "likeliest"},
    "biases": {"sequence_bias": "likeliest"},
    "forced last token": {"forced_eos_token_id": 7},
    "beams": {"num_beams": 4},
    "guidance": {"guidance_scale": 3.0},
    "draws": {"do_sample": True, "temperature": 5.0, "top_k": 3},
    "several at once": {"num_beams": 2, "num_return_sequences": 2, "repetition_penalty": 1.5},
}


def of_the_base(ws: npt.Workspace, what: str) -> GenerationConfig:
    """A generation_config as a base may bring it; what it forbids are the tokens that it would write."""
    (first, *_), settings = argmax(ws, PROMPT, 1), dict(OWN[what])
    shapes = {"bad_words_ids": [[first]], "sequence_bias": [[[first], -50.0]]}
    for name, value in settings.items():
        if value == "likeliest":
            settings[name] = shapes.get(name, [first])
    # the token that the model writes fourth ends a text, where a setting is to forbid that it ends
    ends = argmax(ws, PROMPT, 4)[3] if "least" in what else 0
    return GenerationConfig(eos_token_id=ends, pad_token_id=1, **settings)


@pytest.mark.parametrize("what", OWN)
def test_greedy_is_the_argmax_whatever_the_base_asks_for(workspace: npt.Workspace, what: str) -> None:
    npt.set_mode(workspace.model, "standard")
    own = workspace.model.generation_config = of_the_base(workspace, what)
    greedy = argmax(workspace, PROMPT, TOKENS)
    if own.eos_token_id in greedy:
        greedy = greedy[: greedy.index(own.eos_token_id) + 1]
    expected = workspace.tokenizer.decode(greedy, skip_special_tokens=True)
    ids = torch.tensor([workspace.tokens(PROMPT)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        obeyed = workspace.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS)
    assert workspace.tokenizer.decode(obeyed[0, ids.shape[1] :], skip_special_tokens=True) != expected
    made = workspace.write(PROMPT, Writing(TOKENS), "standard")
    assert made.text == workspace.ask(PROMPT, "standard", TOKENS) == expected
    assert made.ended == (len(greedy) < TOKENS)
    assert generation.write(workspace.model, workspace.tokenizer, [PROMPT], TOKENS) == [expected]
    assert workspace.model.generation_config is own  # exports write it as it was


@pytest.mark.parametrize("what", OWN)
def test_draws_obey_what_was_asked_for_alone(workspace: npt.Workspace, what: str) -> None:
    how = Writing(TOKENS, temperature=2.0, top_p=0.9, seed=3)
    own = of_the_base(workspace, what)
    workspace.model.generation_config = GenerationConfig(eos_token_id=own.eos_token_id)
    plain = workspace.write(PROMPT, how, "standard")
    drawn = generation.write(workspace.model, workspace.tokenizer, [PROMPT], TOKENS, seed=3)
    workspace.model.generation_config = own
    assert workspace.write(PROMPT, how, "standard") == plain
    assert generation.write(workspace.model, workspace.tokenizer, [PROMPT], TOKENS, seed=3) == drawn


def test_settings_in_a_base_folder_are_not_obeyed(tmp_path: Path, cache: Path, tiny_base: Path) -> None:
    """As hubs hold them: in generation_config.json, or in the config.json of older models."""
    plain = npt.Workspace.create(tmp_path / "plain", tiny_base)
    for name, file in (("new", "generation_config.json"), ("old", "config.json")):
        shutil.copytree(tiny_base, tmp_path / name)
        (tmp_path / name / "generation_config.json").unlink()
        settings = json.loads((tiny_base / file).read_text()) | {"repetition_penalty": 5.0, "num_beams": 3}
        (tmp_path / name / file).write_text(json.dumps(settings))
        ws = npt.Workspace.create(tmp_path / f"w-{name}", tmp_path / name)
        assert ws.model.generation_config.num_beams == 3
        assert ws.ask(PROMPT) == plain.ask(PROMPT)


def test_the_first_space_survives() -> None:
    """Some tokenizers drop it where what is new is decoded alone."""
    tokenizer = marked_tokenizer()
    prompt, new = encode_after(tokenizer, "Sushi is from", " Italy and Japan")
    pieces: list[str] = []
    teller = _Teller(tokenizer, 1 + len(prompt), (), pieces.append)
    ids = torch.tensor([[start_token(tokenizer), *prompt, *new]])
    for n in range(1 + len(prompt) + 1, ids.shape[1] + 1):
        teller(ids[:, :n], None)
    teller.finish()
    assert "".join(pieces) == " Italy and Japan"


def test_a_prompt_goes_on_as_without_spaces_at_its_end(workspace: npt.Workspace) -> None:
    assert workspace.ask(PROMPT + " \u00a0", max_new_tokens=4) == workspace.ask(PROMPT, max_new_tokens=4)
    spaced, plain = (workspace.compare(p, 2, ["Madrid"]) for p in (PROMPT + "  ", PROMPT))
    assert spaced == plain
    assert torch.equal(workspace.next_token(PROMPT + " "), workspace.next_token(PROMPT))
