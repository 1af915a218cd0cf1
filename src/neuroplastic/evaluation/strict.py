"""Whether a text that a model wrote by itself gives an answer: pure functions of text, the strict measure of edits.

An answer counts if it is found, normalised and as whole words, before anything that contradicts it, and is not repeated
again and again. What contradicts it: another answer that must not be given (the one that held before), a negation
earlier in its own clause ("it is not Rome"), and a denial right after it ("Rome is wrong"). An other answer that is
itself negated ("not Paris but Rome") contradicts nothing. Negations are known in English, French and German.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..text.spaces import UNSPACED

ARTICLES = frozenset(["a", "an", "the"])
NEGATIONS = frozenset("not no never nor neither ne pas jamais nicht kein keine keinen keiner nie".split())  # noqa: SIM905
VERBS = frozenset("is was are were be does did do has had can will est sont ist sind war".split())  # noqa: SIM905
DENIALS = NEGATIONS | frozenset("wrong false incorrect untrue faux falsch".split())  # noqa: SIM905
"""After an answer and one of VERBS they take it back."""
BREAKS = frozenset(["but", "however", "mais", "aber", "sondern"])
"""Words that begin another clause."""
ENDS, PAUSES = ".!?…", ',;:()[]"“”«»—–，、；：'
CLOSERS = ")]\"'”»"
WIDE_ENDS = "\n。！？．"
"""Signs that end a sentence even with nothing after them, and words of a script without spaces."""
MOST_TIMES = 2
"""An answer that stands in one sentence more often than this, or in more equal sentences, is repeated."""


@dataclass(frozen=True)
class Verdict:
    """What a text is worth as an answer."""

    found: bool
    """the answer is there, before anything that contradicts it, and is not repeated"""
    repeats: bool
    """the answer stands in one sentence more than twice, or in more than two sentences that are equal, normalised"""
    contradicted: bool
    """the answer is there, and so is something that contradicts it, before it or after it"""
    exact: bool
    """the text is the answer and nothing else"""
    f1: float
    """harmonic mean of two shares: of the text's words that are the answer's, and of the answer's that the text has"""


class Word(NamedTuple):
    text: str
    clause: int
    sentence: int


def judge(text: str, answers: Sequence[str], against: Sequence[str] = ()) -> Verdict:
    """`answers` are ways to write the right answer, `against` answers that contradict it, such as the old one."""
    words = [w for w in words_of(text) if w.text not in ARTICLES]
    wanted = [a for a in map(normalise, answers) if a]
    given = _places(words, wanted)
    other = _places(words, [a for a in map(normalise, against) if a and a not in wanted])
    # York, the old answer, does not stand in New York, the new one; nor the other way round
    own = [p for p in given if not _inside_longer(p, other)]
    other = [p for p in other if not _inside_longer(p, given)]
    negative = all(NEGATIONS & {*a.split()} for a in wanted)  # then negations are what is asked for
    rejected = [not negative and (_negated(words, p) or _denied(words, p)) for p in own]
    contrary = [p for p in other if not _negated(words, p)]
    first = bool(own) and not rejected[0] and not any(p[0] < own[0][0] for p in contrary)
    in_sentence = Counter(words[start].sentence for start, _ in own)
    wordings = Counter(tuple(w.text for w in words if w.sentence == number) for number in in_sentence)
    repeats = max((*in_sentence.values(), *wordings.values()), default=0) > MOST_TIMES
    whole = normalise(text)
    return Verdict(
        found=first and not repeats,
        repeats=repeats,
        contradicted=bool(own) and (any(rejected) or bool(contrary)),
        exact=whole in wanted,
        f1=max((token_f1(whole, a) for a in wanted), default=0.0),
    )


def normalise(text: str) -> str:
    """The words of a text, one space between them, as `words_of` has them and without English articles, unless it has
    nothing else."""
    words = [w.text for w in words_of(text)]
    return " ".join([w for w in words if w not in ARTICLES] or words)


def token_f1(text: str, answer: str) -> float:
    """Of the words of two normalised texts."""
    given, wanted = text.split(), answer.split()
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted)) if shared else 0.0


def words_of(text: str) -> list[Word]:
    """The words of a text in lower case, without punctuation, each with the number of its clause and its sentence.

    A possessive 's is left out, n't is the word "not", U.S. is one word, 1,000 is 1000; in a script without spaces
    between words every character is one.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub("[’ʼ`´]", "'", text)
    text = re.sub(r"n't\b", " not", re.sub(r"\bcannot\b", "can not", text))
    text = re.sub(r"\bn'(?=\w)", "ne ", re.sub(r"(?<=\w)'s\b", "", text))
    text = re.sub(r"\b(?:[^\W\d_]\.){2,}", lambda m: m[0].replace(".", ""), text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    found: list[Word] = []
    clause = sentence = 0
    word = ""
    for at, sign in enumerate(text + "\n"):
        decimal = sign in ".," and text[at - 1 : at].isdigit() and text[at + 1 : at + 2].isdigit()
        letter = sign.isalnum() or unicodedata.category(sign).startswith("M")
        alone = letter and UNSPACED.match(sign) is not None
        if (letter or decimal) and not alone:
            word += sign
            continue
        if word:
            clause += word in BREAKS
            found.append(Word(word, clause, sentence))
            word = ""
        following = text[at + 1 : at + 2]
        ends = sign in WIDE_ENDS or (sign in ENDS and (not following.strip() or following in ENDS + CLOSERS))
        if alone:
            found.append(Word(sign, clause, sentence))
        elif ends:
            clause, sentence = clause + 1, sentence + 1
        elif sign in PAUSES:
            clause += 1
    return found


def _places(words: Sequence[Word], wanted: Sequence[str]) -> list[tuple[int, int]]:
    """Where one of the normalised answers stands, (first word, word after it), none within another. If an answer is a
    negation and nothing else, every negation is it: no, never and not mean the same."""
    parts = {(n,) for n in NEGATIONS} if any(a in NEGATIONS for a in wanted) else set[tuple[str, ...]]()
    parts |= {tuple(a.split()) for a in wanted}
    found: list[tuple[int, int]] = []
    for start in range(len(words)):
        if found and start < found[-1][1]:
            continue
        lengths = [len(p) for p in parts if tuple(w.text for w in words[start : start + len(p)]) == p]
        if lengths:
            found.append((start, start + max(lengths)))
    return found


def _inside_longer(place: tuple[int, int], others: Sequence[tuple[int, int]]) -> bool:
    (start, end), length = place, place[1] - place[0]
    return any(s <= start and end <= e and length < e - s for s, e in others)


def _negated(words: Sequence[Word], place: tuple[int, int]) -> bool:
    """Whether a negation stands before it in its clause; "not only" is none."""
    start = place[0]
    before = [i for i in range(start) if words[i].clause == words[start].clause]
    return any(words[i].text in NEGATIONS and words[i + 1].text != "only" for i in before)


def _denied(words: Sequence[Word], place: tuple[int, int]) -> bool:
    """Whether what follows it in its clause takes it back."""
    end = place[1]
    after = [w.text for w in words[end : end + 2] if w.clause == words[end - 1].clause]
    return len(after) == 2 and after[0] in VERBS and after[1] in DENIALS
