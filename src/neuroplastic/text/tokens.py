"""Text in and out of a model as tokens: the start token, answers after their questions, batches, windows of files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import NPTError
from ..files import lines_of, read_text
from .spaces import continuing, without_trailing_spaces

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BETWEEN_DOCUMENTS = "<|endoftext|>"
CONTEXT_TO_DECODE = 64
"""Number of tokens of a prompt that are decoded together with what follows it."""


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that opens every sequence, and takes the attention sink upon itself.

    It is the BOS token if the tokenizer itself begins texts with it, else the token between documents (<|endoftext|>),
    else whatever BOS or EOS there is. Raises NPTError if there is none of these.
    """
    bos = tokenizer.bos_token_id
    ids = tokenizer("a").input_ids
    if bos is not None and ids and ids[0] == bos:
        return int(bos)
    between = tokenizer.convert_tokens_to_ids(BETWEEN_DOCUMENTS)
    if between is not None and tokenizer.convert_ids_to_tokens(between) != BETWEEN_DOCUMENTS:  # the unknown token
        between = None
    for token in (between, bos, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise NPTError("the tokenizer has neither a BOS nor an end-of-text token to open a sequence with")


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of `text` alone, without any special token."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def require_finite(logits: Tensor) -> None:
    """Raises NPTError if a model's logits (..., vocabulary) are no numbers, as in a dtype too narrow for it."""
    if not bool(logits.amax(-1).isfinite().all()):  # single tokens may be ruled out by -inf
        raise NPTError(
            f"the model's logits are not finite numbers in {str(logits.dtype).removeprefix('torch.')}: its values "
            "overflow there, or its weights are damaged; make the workspace with --dtype float32 or bfloat16"
        )


def encode_after(tokenizer: PreTrainedTokenizerBase, before: str, text: str) -> tuple[list[int], list[int]]:
    """The tokens of `before`, and those of `text` as it continues it: together exactly the tokens of `before + text`.

    The two are encoded as one text and cut where the tokens cease to be those of `before` alone. A tokenizer that puts
    a mark before every text (SentencePiece) so puts none before `text`. A token that spans the border belongs to
    `text`, because it is not known before `text` is. Raises NPTError for a `text` that has no token.
    """
    ids = encode(tokenizer, before + text)
    border = _shared(ids, encode(tokenizer, before))
    if border == len(ids):
        raise NPTError(f"the model's tokenizer has no token for {text!r}")
    return ids[:border], ids[border:]


def encode_pair(tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> tuple[list[int], list[int]]:
    """The tokens of a question, or of the beginning of a sentence, and of the bare answer that follows it.

    Spaces at the end of the question are left out (`without_trailing_spaces`), and the answer is joined as the script
    asks (`continuing`). Raises NPTError as `encode_after` does.
    """
    question = without_trailing_spaces(question)
    return encode_after(tokenizer, question, continuing(question, answer))


def tokens_through(tokenizer: PreTrainedTokenizerBase, text: str, end: int) -> int:
    """The number of tokens of `text` that hold its first `end` characters, without spaces at their end.

    A space before a word is part of the word's token. A token that continues beyond `end` counts.
    """
    begins, ids = text[:end].rstrip(), encode(tokenizer, text)
    alone = encode(tokenizer, begins)
    if (shared := _shared(ids, alone)) == len(alone):
        return shared
    for n in range(shared + 1, len(ids)):
        if str(tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False)).startswith(begins):
            return n
    return min(len(alone), len(ids))  # the tokenizer does not give back the text that it was given


def decode_after(
    tokenizer: PreTrainedTokenizerBase, before: Sequence[int], new: Sequence[int], skip_special_tokens: bool = True
) -> str:
    """The text of `new` tokens as it continues the text of those `before`.

    They are decoded together and what is new is cut off: alone, some tokenizers (SentencePiece) drop a first space.
    """
    some = list(before[-CONTEXT_TO_DECODE:])

    def text(ids: list[int]) -> str:
        how = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
        return str(tokenizer.decode(ids, **how))

    whole, old = text([*some, *new]), text(some)
    return whole[_shared(whole, old) :]


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many first elements are the same."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def batch(
    sequences: Sequence[Sequence[int]], pad: int, device: torch.device, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Right-padded ids (N, T) and their attention mask (N, T), both int64; or padded on the left, to be continued."""
    length = max(map(len, sequences))
    fill = [[pad] * (length - len(s)) for s in sequences]
    rows = [[*f, *s] if left else [*s, *f] for f, s in zip(fill, sequences, strict=True)]
    ids = torch.tensor(rows, dtype=torch.long, device=device)
    lengths = torch.tensor([len(s) for s in sequences], device=device)[:, None]
    at = torch.arange(length, device=device)
    return ids, (at >= length - lengths if left else at < lengths).long()


def context_length(model: PreTrainedModel) -> int:
    """How many tokens the model can read at once."""
    return int(getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", 0) or sys.maxsize)


def read_texts(path: Path) -> list[str]:
    """The texts of a file: a .jsonl file's `text` fields, or a text file's paragraphs. Raises NPTError."""
    content = read_text(path)
    if path.suffix == ".jsonl":
        texts = []
        for number, line in enumerate(lines_of(content), 1):
            if not line.strip():
                continue
            try:
                record: Any = json.loads(line)
            except ValueError as e:
                raise NPTError(f"{path}, line {number} is not JSON: {e}") from None
            if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                raise NPTError(f"{path}, line {number} has no text field")
            texts.append(record["text"])
    else:
        texts = content.split("\n\n")
    texts = [t.strip() for t in texts if t.strip()]
    if not texts:
        raise NPTError(f"{path} holds no text")
    return texts


def windows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int, max_tokens: int, device: torch.device
) -> Tensor:
    """Texts joined by the start token and cut into rows (N, length), each opened by it; about `max_tokens` in all."""
    start, stream = start_token(tokenizer), []
    for text in texts:
        stream += [*encode(tokenizer, text), start]
        if len(stream) >= max_tokens:
            break
    rows = [stream[i : i + length - 1] for i in range(0, min(len(stream), max_tokens), length - 1)]
    rows = [r for r in rows if len(r) == length - 1] or [rows[0]]
    return torch.tensor([[start, *r] for r in rows], device=device)
