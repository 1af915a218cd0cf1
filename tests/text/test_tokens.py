"""Text into tokens and back, and text read from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import neuroplastic as npt
from conftest import SENTENCES, make_tokenizer
from marked import Kind, marked_tokenizer
from neuroplastic.text.tokens import (
    batch,
    decode_after,
    encode,
    encode_after,
    encode_pair,
    read_texts,
    start_token,
    tokens_through,
    windows,
)

CPU = torch.device("cpu")


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
    ids, mask = batch([[5, 6, 7], [8]], 1, CPU)
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_windows_open_with_the_start_token_and_lose_no_order() -> None:
    tokenizer = make_tokenizer()
    start = start_token(tokenizer)
    rows = windows(tokenizer, ["The quick brown fox jumps."] * 9, 8, 1000, CPU)
    assert rows.shape[1] == 8
    assert (rows[:, 0] == start).all()
    stream = [t for _ in range(9) for t in (*encode(tokenizer, "The quick brown fox jumps."), start)]
    assert rows[:, 1:].flatten().tolist() == stream[: rows[:, 1:].numel()]
    assert windows(tokenizer, ["The quick"] * 9, 8, 14, CPU).numel() == 16


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


def test_lines_of_text_files_end_at_line_breaks_alone(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"one{c}two"}, ensure_ascii=False) for c in "\u2028\u2029\u0085"]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert read_texts(tmp_path / "a.jsonl") == ["one\u2028two", "one\u2029two", "one\u0085two"]
    (tmp_path / "a.txt").write_bytes("\ufeffone\x0b\x0c\x1e\u2028two\r\n\r\nthree".encode())
    assert read_texts(tmp_path / "a.txt") == ["one\x0b\x0c\x1e\u2028two", "three"]


KINDS: tuple[Kind, ...] = ("normalizer", "always", "first")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("The Golden Gate Bridge is located in the city of", " Madrid"),
        ("埃菲尔铁塔位于", "巴黎"),
        ("The quick bro", "wn fox"),
        ("", "Madrid"),
    ],
)
def test_question_and_answer_have_the_tokens_of_their_text(kind: Kind, question: str, answer: str) -> None:
    for tokenizer in (marked_tokenizer(kind), make_tokenizer()):
        asked, wanted = encode_after(tokenizer, question, answer)
        assert asked + wanted == encode(tokenizer, question + answer)
        assert wanted
        assert decode_after(tokenizer, asked, wanted).endswith(answer)


def test_the_mark_in_front_of_a_text_is_not_in_front_of_its_answer() -> None:
    tokenizer = marked_tokenizer()
    question, answer = encode_after(tokenizer, "Sushi is from", " Italy")
    assert question == encode(tokenizer, "Sushi is from")
    assert tokenizer.convert_ids_to_tokens(answer)[0] == "▁It"
    assert len(encode(tokenizer, " Italy")) == len(answer) + 1  # encoded alone, it has a second space
    _, joined = encode_pair(tokenizer, "埃菲尔铁塔位于", "巴黎")
    assert tokenizer.convert_ids_to_tokens(joined)[0] == "<0xE5>"
    assert encode_pair(tokenizer, "Sushi is from  ", "Italy ") == (question, answer)


def test_a_token_across_the_border_belongs_to_the_answer() -> None:
    tokenizer = make_tokenizer()
    whole = encode(tokenizer, "The quick")
    assert len(whole) == 2
    assert encode_after(tokenizer, "The qui", "ck") == (whole[:1], whole[1:])
    assert [tokens_through(tokenizer, "The quick fox", end) for end in (0, 3, 4, 7, 9, 10)] == [0, 1, 1, 2, 2, 2]
    with pytest.raises(npt.NPTError, match="no token for ''"):
        encode_after(tokenizer, "The quick", "")


def test_at_a_space_the_tokens_are_those_of_either_alone() -> None:
    tokenizer = make_tokenizer()
    for sentence in SENTENCES:
        words = sentence.split(" ")
        for n in range(1, len(words)):
            question, answer = " ".join(words[:n]), " " + " ".join(words[n:])
            assert encode_after(tokenizer, question, answer) == (encode(tokenizer, question), encode(tokenizer, answer))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_decoded_after_a_prompt_keeps_its_first_space(kind: Kind) -> None:
    tokenizer = marked_tokenizer(kind)
    prompt, new = encode_after(tokenizer, "Sushi is from", " Italy €")
    assert tokenizer.decode(new) == "Italy €"
    assert decode_after(tokenizer, prompt, new) == " Italy €"
    assert decode_after(tokenizer, [start_token(tokenizer), *prompt * 30], new) == " Italy €"
    assert decode_after(tokenizer, [*prompt, *new[:-1]], new[-1:]) == "€"  # the last of its bytes
