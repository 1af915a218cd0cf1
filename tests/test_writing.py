"""Continuations: told in pieces that join to the text, ended where they should, stopped by whoever listens."""

from __future__ import annotations

import pytest
import torch

import neuroplastic as npt
from marked import marked_tokenizer
from neuroplastic.errors import NPTError
from neuroplastic.text import encode_after, start_token
from neuroplastic.writing import Writing, _Teller

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
        ({"seed": -1}, "seed must be"),
        ({"stop": ("",)}, "a stop string is empty"),
    ],
)
def test_settings_out_of_range(setting: dict[str, object], cause: str) -> None:
    with pytest.raises(NPTError, match=cause):
        Writing(**setting)  # type: ignore[arg-type]


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
