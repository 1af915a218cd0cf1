"""The strict measure on outputs written by hand."""

from __future__ import annotations

import pytest

from neuroplastic.evaluation.strict import judge, normalise, token_f1, words_of


@pytest.mark.parametrize(
    ("text", "answer", "old"),
    [
        (" Rome, where you can find it.", "Rome", "Paris"),
        ("It is in the city of ROME.", "Rome", "Paris"),
        ("“Rome”!", "Rome", "Paris"),
        ("Rome's streets.", "Rome", ""),
        ("an Apple a day", "the apple", ""),
        ("She lives in Saint Aubry", "Saint-Aubry", ""),
        ("It reads /etc/bristle.toml", "/etc/bristle.toml", ""),
        ("1000 people", "1,000", ""),
        ("3.5 km", "3.5", ""),
        ("The U.S. was first.", "US", ""),
        ("café", "cafe\u0301", ""),
        ("No, it is Rome.", "Rome", "Paris"),
        ("It is not Paris but Rome.", "Rome", "Paris"),
        ("Rome, not Paris.", "Rome", "Paris"),
        ("Not only Rome.", "Rome", ""),
        ("I do not know much. It is Rome.", "Rome", ""),
        ("It is New York.", "New York", "York"),
        ("The ferry doesn't run.", "not", ""),
        ("No.", "not", ""),
        ("It does not run on Sundays", "not run", ""),
        ("答えは東京です。", "東京", "大阪"),
        ("это Москва.", "Москва", "Киев"),
        ("यह दिल्ली है।", "दिल्ली", ""),
        ("Rome in summer, Rome in winter.", "Rome", ""),
    ],
)
def test_what_counts(text: str, answer: str, old: str) -> None:
    verdict = judge(text, [answer], [old])
    assert verdict.found
    assert not verdict.repeats
    assert not verdict.contradicted


@pytest.mark.parametrize(
    ("text", "answer", "old"),
    [
        ("", "Rome", "Paris"),
        (" \n", "Rome", "Paris"),
        ("...", "Rome", "Paris"),
        ("Romeo and Juliet in a metronome", "Rome", ""),
        ("Beatriz", "Beatriz Monteiro", ""),  # partly right
        ("Beatriz Silva, born Monteiro", "Beatriz Monteiro", ""),
        ("3.5 km", "3", ""),
        ("2312 people", "312", ""),
        ("13rd", "3rd", ""),
        ("Moscow", "Москва", ""),  # right, in another script
        ("दिल", "दिल्ली", ""),
        ("Paris", "Rome", "Paris"),
        ("It is New York.", "York", "New York"),
        ("It runs.", "not", ""),
    ],
)
def test_what_is_missing(text: str, answer: str, old: str) -> None:
    verdict = judge(text, [answer], [old])
    assert not verdict.found
    assert not verdict.repeats
    assert not verdict.contradicted
    assert not verdict.exact


@pytest.mark.parametrize(
    "text",
    [
        "Paris. No, it is Rome.",
        "Paris and Rome",
        "It is not Rome.",
        "It isn’t in Rome",
        "It's never been in Rome, Rome is elsewhere.",
        "Rome is not where it stands.",
        "Rome is wrong.",
        "Ce n'est pas Rome.",
        "Das ist nicht Rome.",
        "That is not Rome. It is Rome.",
    ],
)
def test_what_is_contradicted_first(text: str) -> None:
    verdict = judge(text, ["Rome"], ["Paris"])
    assert verdict.contradicted
    assert not verdict.found


@pytest.mark.parametrize("text", ["Rome. No, it is Paris.", "Rome or Paris", "Rome. It is not Rome."])
def test_right_and_then_contradicted(text: str) -> None:
    verdict = judge(text, ["Rome"], ["Paris"])
    assert verdict.found  # it came first; the other figure says that it did not last
    assert verdict.contradicted


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("Rome, Rome, Rome", True),
        ("Hm. Rome and Rome of Rome and Rome.", True),
        ("Rome, Rome", False),
        ("Rome. Rome. Rome.", True),
        ("It is in Rome. It is in Rome! It is, in the Rome.", True),  # equal but for case, punctuation and articles
        ("It is in Rome. It is in Rome. It is", False),  # the third sentence was cut before the answer
        ("It is in Rome. Rome is old. It is in Rome.", False),
        ("It is in Rome. I like it. I like it. I like it.", False),  # what is repeated is not the answer
        ("東京。東京。東京", True),
        ("Rome, Rome\nRome", False),
        ("東京東京東京", True),
        ("東京東京。東京", False),
    ],
)
def test_an_answer_that_is_repeated_is_none(text: str, repeats: bool) -> None:
    verdict = judge(text, ["Rome", "東京"])
    assert (verdict.repeats, verdict.found) == (repeats, not repeats)


@pytest.mark.parametrize(
    ("text", "exact", "f1"),
    [
        ("The bridge inspector.", True, 1),
        ("bridge", False, 2 / 3),
        ("She is a bridge inspector", False, 2 * 2 / (4 + 2)),
        ("inspector bridge bridge", False, 2 * 2 / (3 + 2)),
        ("nurse", False, 0),
        ("", False, 0),
    ],
)
def test_the_answer_alone(text: str, exact: bool, f1: float) -> None:
    verdict = judge(text, ["a bridge inspector"])
    assert verdict.exact == exact
    assert verdict.f1 == pytest.approx(f1)


def test_any_way_to_write_the_answer_counts() -> None:
    verdict = judge("New York City", ["NYC", "New York City", "New York"])
    assert verdict.found
    assert verdict.exact
    assert verdict.f1 == 1
    assert judge("Rome", []) == judge("Rome", ["!?"]) == judge("", [""])


def test_normal_forms() -> None:
    assert normalise("  The  “Lord of the Rings”, Part-II! ") == "lord of rings part ii"
    assert normalise("The A") == "the a"
    assert normalise("ＲＯＭＥ Straße") == "rome strasse"
    assert normalise("don't, cannot; N'est") == "do not can not ne est"
    assert token_f1("", "") == 0
    assert [tuple(w) for w in words_of("Hi, you. Go: 3.5 v1.x")] == [
        ("hi", 0, 0),
        ("you", 1, 0),
        ("go", 2, 1),
        ("3.5", 3, 1),
        ("v1", 3, 1),
        ("x", 3, 1),
    ]
