"""Where the answer and the subject stand in a sentence, and where sentences end, found by rules for English and names
like those in English.

The answer of a statement is its last word, or the name that it ends with; quotation marks and brackets around it are
kept in pairs. The subject is the longest name in the question. A name is a run of words with a capital or a digit
(eBay and iPhone 12 too), with the small words that names have inside between them: The Lord of the Rings, Simon &
Garfunkel, Vincent van Gogh.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from ..text.spaces import UNSPACED

PARTICLES = frozenset(
    (  # noqa: SIM905
        "of de de' la du da di del della dei des do dos das van von der den ter ten zu am le les al el bin ibn y & and "
        "the"
    ).split()
)
"""Lower-case words inside names: University of Cambridge, Vincent van Gogh, Alexander the Great."""
LINKS = frozenset(["of the", "de la", "de las", "de los", "de le", "van der", "van den", "von der", "and the", "& the"])
"""Pairs of them."""
OPENERS = frozenset(
    (  # noqa: SIM905
        "the a an in on at of for to from by what who whom whose where when which how why is are was were do does did "
        "can my our your his her its their this that these those there it he she they we i you"
    ).split()
)
"""Words that are capitalised only because a sentence begins with them."""
NO_PART_OF_A_NAME = frozenset("what which in on at for from by is are was were do does did can".split())  # noqa: SIM905
"""Those of them that are left out if a name follows: In Germany."""
AFTER_A_COMMA = frozenset(
    (  # noqa: SIM905
        "Baron Baroness Viscount Viscountess Earl Countess Count Marquess Duke Duchess Prince Princess Lord Lady Jr. "
        "Jr Sr. Sr Inc. Inc Ltd. Ltd LLC"
    ).split()
)
"""Words that continue a name after a comma."""
ABBREVIATIONS = frozenset("Jr. Sr. Inc. Ltd. Co. Corp. Bros. St. Dr. Mr. Mrs. Ms. Mt. No. Prof.".split())  # noqa: SIM905
"""Words whose dot does not end a sentence."""
NEVER_LAST = (ABBREVIATIONS - frozenset("Jr. Sr. Inc. Ltd. Co. Corp. Bros.".split())) | frozenset(  # noqa: SIM905
    (  # noqa: SIM905
        "Rev. Gen. Col. Lt. Sgt. Capt. Sen. Rep. Gov. Hon. Ps. Gk. c. ca. cf. d. e.g. i.e. esp. max. min. p. pp. "
        "vs. viz. approx."
    ).split()
)
"""Abbreviations that something follows in the same sentence. After others (Inc., U.S., a.m., an initial) a sentence
ends only if the next word is capitalised because it begins one."""
PAIRS = {"(": ")", "[": "]", "{": "}", "“": "”", "„": "“", "‘": "’", "«": "»", "「": "」", "『": "』", "《": "》"}
PAIRS |= {"（": "）", "【": "】", "〈": "〉"}
APOSTROPHES = "'’"
PUNCTUATION = ".,;:!?…\"'¿¡。、，；：！？．" + "".join({*PAIRS, *PAIRS.values()})


def question_and_answer(statement: str) -> tuple[str, str]:
    """A statement's last word, or the name it ends with, and what comes before: the question it answers.

    "The Bridge is in New York." -> ("The Bridge is in", " New York"). Punctuation after the answer is left out, except
    for the dot of an abbreviation (D.C.) and what closes a quotation or a bracket, of which the answer keeps both ends.
    The question is empty if there is nothing but the answer.
    """
    text = trimmed(statement)
    words = _words(text)
    if not words:
        return "", statement
    last = len(words) - 1
    if last > 0 and text[words[last][0]] in "([":  # a remark belongs to what it is made on
        last -= 1
    start = next((s for s, end in _runs_of_names(text) if s < words[last][1] and end > words[last][0]), words[last][0])
    start = min(start, words[last][0])
    if start == 0:  # all of it a name: the last word is what there is to ask for
        start = words[last][0]
    question = text[:start].rstrip()
    return question, text[len(question) :]


def sentences_of(text: str) -> list[str]:
    """The sentences of a text, each with single spaces between its words.

    A sentence ends with . ! ? or … if a capital or a digit follows, and not in the middle of a bracket or a quotation;
    neither the dot of an abbreviation nor that of a number ends one. An empty line does, and 。！？ do.
    """
    pairs = _pairs(text)
    found, start = list[str](), 0
    for m in re.finditer(r"\n\s*\n|[。！？]+[」』”）]*|[.!?…]+[\"'”’»)\]]*(?=\s)", text):
        inside = any(i < m.start() and m.end() <= j for i, j in pairs)
        if not m[0].strip() or (not inside and _ends_a_sentence(text[start : m.start()], m[0], text[m.end() :])):
            found.append(text[start : m.end()])
            start = m.end()
    found.append(text[start:])
    return [" ".join(s.split()) for s in found if s.strip()]


def find_subject(question: str) -> tuple[int, int] | None:
    """Where the longest name stands in `question`, in characters, without a possessive after it.

    A capital that is there only because the sentence begins is none: these words, PARTICLES and possessives are
    English, elsewhere the subject may have to be given.
    """
    runs = (span for span in _runs_of_names(question) if question[slice(*span)].lower() not in OPENERS)
    return max(runs, key=lambda span: span[1] - span[0], default=None)


def find_words(text: str, words: str) -> tuple[int, int] | None:
    """Where `words` first stand in `text` as whole words, however wide the spaces between them are, in characters.

    A part of a word with a hyphen (Guinea in Guinea-Bissau) counts only if they stand nowhere else.
    """
    wanted = r"\s+".join(map(re.escape, words.split()))
    found = [m.span() for m in re.finditer(wanted, text) if not cuts_a_word(text, *m.span())] if wanted else []
    return min(found, key=lambda span: beside_a_hyphen(text, *span), default=None)


def cuts_a_word(text: str, start: int, end: int) -> bool:
    """Whether the beginning or the end of text[start:end] lies inside a word.

    An apostrophe is inside a word (O'Brien), except for a possessive's and that of an article (l'Italie).
    """
    before, after = text[:start], text[end:]
    if re.search(r"\w['’]$", before) and not re.search(r"(\b[a-z]+|\bL)['’]$", before):
        return True
    if re.match(r"['’](?!s\b)\w", after):
        return True
    return any(
        0 < at < len(text) and _in_word(text[at - 1]) and _in_word(text[at]) and not _separate(text[at - 1], text[at])
        for at in (start, end)
    )


def trimmed(statement: str) -> str:
    """A sentence without quotation marks around all of it, and without the punctuation at its end."""
    text = statement.strip()
    while True:
        pairs = _pairs(text)
        closing = {end for _, end in pairs}
        end = len(text)
        while end > 0 and (text[end - 1].isspace() or text[end - 1] in PUNCTUATION) and end - 1 not in closing:
            if _keeps_its_sign(text[:end]):
                break
            end -= 1
        text = text[:end]
        if (0, end - 1) not in pairs:
            return text
        text = text[1:-1].strip()


def balanced(text: str, start: int, end: int) -> tuple[int, int]:
    """The span from `start` to `end` with the quotation marks or brackets that stand right around it."""
    return next(((i, j + 1) for i, j in _pairs(text) if (i + 1, j) == (start, end)), (start, end))


def _keeps_its_sign(text: str) -> bool:
    """Whether the dot or the apostrophe at the end of `text` belongs to its last word: D.C., Jr., the Joneses'."""
    word = text.split()[-1]
    if text[-1] == ".":
        return word in ABBREVIATIONS or re.fullmatch(r"(\w\.){2,}", word.lstrip("([\"'“‘")) is not None
    return text[-1] in APOSTROPHES and re.search(r"\ws.$", word) is not None


def _pairs(text: str) -> list[tuple[int, int]]:
    """Where quotations and brackets open and close, in characters; an apostrophe is none."""
    opened: list[int] = []
    found = []
    for at, sign in enumerate(text):
        before, after = text[at - 1 : at], text[at + 1 : at + 2]
        if sign == "'" or (sign == "’" and after.isalnum()):
            closing = "'" if before and not before.isspace() and not after.isalnum() else ""
            opens = sign == "'" and not before.isalnum() and after.isalnum()
        elif sign == '"':
            closing, opens = sign, True
        else:
            closing, opens = sign, sign in PAIRS
        match = next((i for i in reversed(opened) if PAIRS.get(text[i], text[i]) == closing), None)
        if match is not None:
            found.append((match, at))
            del opened[opened.index(match) :]
        elif opens:
            opened.append(at)
    return found


def _words(text: str) -> list[tuple[int, int]]:
    """Spans of words; a quotation or a bracket is one word."""
    pairs, found = _pairs(text), list[tuple[int, int]]()
    for m in re.finditer(r"\S+", text):
        if found and any(i < found[-1][1] and m.start() <= j for i, j in pairs):
            found[-1] = (found[-1][0], m.end())
        else:
            found.append(m.span())
    return found


def _is_name(word: str) -> bool:
    return any(c.isupper() or c.istitle() or c.isdigit() for c in word.strip(PUNCTUATION))


def _runs_of_names(text: str) -> Iterator[tuple[int, int]]:
    """Spans of capitalised words and numbers, with particles between them; punctuation ends a run, an initial's dot
    does not."""
    run: tuple[int, int] | None = None
    between: list[str] = []
    ended_by = ""
    words = list(re.finditer(r"\S+", text))
    for number, m in enumerate(words):
        word = m[0]
        if _is_name(word):
            core = word.strip(PUNCTUATION)
            start = m.start() + word.index(core)
            following = words[number + 1][0] if number + 1 < len(words) else ""
            goes_on = ended_by in ("", "'s", "’s") or (
                ended_by == "," and _after_a_comma(text[: m.start()], word, following)
            )
            remark = re.match(r"\(\S+\)", word)
            joined = start == m.start() or (remark is not None and not between)
            if run is not None and not (goes_on and joined and _is_link(between)):
                yield run
                run = None
            opens = run is None and core.lower() in NO_PART_OF_A_NAME and _begins_a_sentence(text[: m.start()])
            if opens and _is_name(following):
                continue
            end = start + len(re.sub(r"(?<=\w)['’]s?$", "", core))
            if re.fullmatch(r"(\w\.)+", word) or word in ABBREVIATIONS:
                end = m.end()
            if remark is not None and run is not None:
                end = m.start() + remark.end()
            run = (start if run is None else run[0], end)
            between, ended_by = [], text[end : m.end()]
        elif run is not None and ended_by == "" and _may_link([*between, word]):
            between.append(word)
        elif run is not None:
            yield run
            run, between, ended_by = None, [], ""
    if run is not None:
        yield run


def _is_link(words: list[str]) -> bool:
    return not words or (len(words) == 1 and words[0] in PARTICLES) or " ".join(words) in LINKS


def _may_link(words: list[str]) -> bool:
    return _is_link(words) or any(link.startswith(" ".join(words) + " ") for link in LINKS)


def _after_a_comma(before: str, word: str, following: str) -> bool:
    """Whether a name continues after its comma: Washington, D.C.; Maurice Hankey, 1st Baron Hankey; March 28, 1925."""
    if re.fullmatch(r"\d+(st|nd|rd|th)", word):
        return following in AFTER_A_COMMA
    if re.fullmatch(r"\d{4}\W*", word):
        return re.search(r"[A-Z]\w+ \d\d?,\s*$", before) is not None
    return word in AFTER_A_COMMA or re.match(r"(\w\.){2,}", word) is not None


def _begins_a_sentence(before: str) -> bool:
    return re.search(r"(^|[.!?…])[\s\"“‘'(]*$", before) is not None


def _ends_a_sentence(before: str, signs: str, after: str) -> bool:
    """Whether a sentence ends with `signs`: what stands before them in it, and after them, decides."""
    if signs[0] in "。！？":
        return True
    following = next(iter(after[:100].split()), "")
    if not _is_name(following):
        return not following
    word = ("".join(before.split()[-1:]) + signs).lstrip("([\"'“‘«")
    if signs != ".":
        return True
    if word in NEVER_LAST:
        return False
    if word in ABBREVIATIONS or word in ("etc.", "al.") or re.fullmatch(r"([^\W\d_]\.)+", word):
        return following.rstrip(",").lower() in OPENERS
    return True


def _in_word(c: str) -> bool:
    return c == "_" or c.isalnum() or unicodedata.category(c).startswith("M")


def _separate(one: str, other: str) -> bool:
    """Whether two characters may belong to different words with nothing between them."""
    return UNSPACED.match(one) is not None or UNSPACED.match(other) is not None


def beside_a_hyphen(text: str, start: int, end: int) -> bool:
    """Whether a hyphen joins text[start:end] to another word."""
    return text[start - 1 : start] in ("-", "‑") or text[end : end + 1] in ("-", "‑")
