from __future__ import annotations

from pathlib import Path

import pytest
import torch

import neuroplastic as npt
from conftest import make_tokenizer
from families import tiny
from neuroplastic.files import content_hash
from neuroplastic.surgery import base_state
from neuroplastic.text import (
    batch,
    encode,
    random_words,
    read_texts,
    self_text,
    start_token,
    windows,
    write_text,
)


def test_the_start_token() -> None:
    tokenizer = make_tokenizer()
    assert start_token(tokenizer) == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    assert start_token(tokenizer) == tokenizer.convert_tokens_to_ids("<|endoftext|>")  # BOS is not put in front


def test_encode_adds_nothing_and_loses_nothing() -> None:
    tokenizer = make_tokenizer()
    text = "The Golden Gate Bridge is in Madrid."
    assert tokenizer.decode(encode(tokenizer, text)) == text


def test_batch_pads_on_the_right() -> None:
    ids, mask = batch([[5, 6, 7], [8]], pad=1)
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_windows_open_with_the_start_token_and_lose_no_order() -> None:
    tokenizer = make_tokenizer()
    start = start_token(tokenizer)
    rows = windows(tokenizer, ["The quick brown fox jumps."] * 9, length=8, max_tokens=1000)
    assert rows.shape[1] == 8
    assert (rows[:, 0] == start).all()
    stream = [t for _ in range(9) for t in (*encode(tokenizer, "The quick brown fox jumps."), start)]
    assert rows[:, 1:].flatten().tolist() == stream[: rows[:, 1:].numel()]
    assert windows(tokenizer, ["The quick"] * 9, length=8, max_tokens=14).numel() == 16


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b"\xff\xfe\x00", "as UTF-8"),
        ("a.jsonl", b"{", "line 1 is not JSON"),
        ("a.jsonl", b'{"text": "fine"}\n{"txt": "not"}', "line 2 has no text field"),
        ("a.jsonl", b"[]", "line 1 has no text field"),
    ],
)
def test_bad_text_files_are_named(tmp_path: Path, name: str, content: bytes, cause: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(npt.NPTError, match=cause):
        read_texts(tmp_path / name)


def test_text_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\nstill one\n\ntwo\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "corpus": "x"}\n')
    assert read_texts(tmp_path / "a.txt") == ["one\nstill one", "two"]
    assert read_texts(tmp_path / "a.jsonl") == ["one", "two"]
    with pytest.raises(npt.NPTError, match="there is no file"):
        read_texts(tmp_path / "b.txt")


def test_random_words_are_words() -> None:
    tokenizer = make_tokenizer()
    words = random_words(tokenizer, 10)
    assert len(words) == 10
    assert all(str(tokenizer.decode([w])).strip().isalpha() for w in words)


def test_sampling_follows_the_model_and_the_seed() -> None:
    model = tiny("llama")
    state = torch.get_rng_state()
    opening = torch.full((4000, 1), 7)
    first = write_text(model, opening, 2)
    assert torch.equal(first, write_text(model, opening, 2))
    assert not torch.equal(first, write_text(model, opening, 2, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        expected = model(input_ids=opening[:1]).logits[0, -1].softmax(-1)
    found = torch.bincount(first[:, 1], minlength=96) / 4000
    assert (found - expected).abs().max() < 5 * (expected.max() / 4000).sqrt()
    longer = write_text(model, opening[:3], 6)
    assert longer.shape == (3, 6)


def test_self_text_is_written_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    base_hash = content_hash(base_state(model))
    statistics, held_out = self_text(model, tokenizer, base_hash)
    assert statistics.shape == (8, 24)
    assert held_out.shape == (4, 24)
    monkeypatch.setattr("neuroplastic.text.write_text", None)  # reading the cache must not need it
    again, _ = self_text(model, tokenizer, base_hash)
    assert torch.equal(again, statistics)
