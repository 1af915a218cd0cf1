"""Spaces between words: which of them count, and which scripts write none."""

from __future__ import annotations

import re


def plain_spaces(text: str) -> str:
    """With one plain space for every run of spaces of any kind, and none at the ends; line breaks stay."""
    return re.sub(r"[^\S\n]+", " ", text).strip()


def without_trailing_spaces(text: str) -> str:
    """A prompt without the spaces at its end: the space before a word is part of the word's token, and a model that has
    read one already seldom finds a word to continue with. Line breaks stay, and so does a last line of spaces alone,
    which is an indentation."""
    return re.sub(r"(?<=\S)[^\S\r\n]+\Z", "", text)


UNSPACED = re.compile(
    r"[\u3000-\u303f\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\uff00-\uffef\U0001b000-\U0001b16f\U00020000-\U0003ffff"
    r"\u0e00-\u0fff\u1000-\u109f\uaa60-\uaa7f\u1780-\u17ff\u1a20-\u1aaf]"
)
"""A character of a script that writes no spaces between words: Chinese and Japanese, with their signs; Thai, Lao,
Tibetan, Burmese and Khmer."""


def writes_no_spaces(text: str, last: bool = True) -> bool:
    """Whether the last letter of `text` (the first, if not `last`) is of a script without spaces between words."""
    letters = reversed(text) if last else iter(text)
    found = next((c for c in letters if c.isalpha()), "")
    return UNSPACED.match(found) is not None


def mostly_unspaced(text: str) -> bool:
    """Whether most of its letters are of scripts that write no spaces between words."""
    letters = [c for c in text if c.isalpha()]
    return 2 * sum(UNSPACED.match(c) is not None for c in letters) > len(letters)


def continuing(question: str, answer: str) -> str:
    """`answer` as it is written after `question`: with a space before it, and with none if the question ends in a
    script that writes no spaces between words."""
    ends = question.rstrip()[-1:]
    joined = UNSPACED.match(ends) or (writes_no_spaces(question) and writes_no_spaces(answer, last=False))
    return answer.strip() if joined else f" {answer.strip()}"
