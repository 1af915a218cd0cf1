"""How a sentence becomes a question, an answer and a subject."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neuroplastic import NPTError
from neuroplastic.editing.fact import asked, fact_of, read_facts
from neuroplastic.editing.sentence import find_subject, question_and_answer


@pytest.mark.parametrize(
    ("statement", "question", "answer"),
    [
        ("The Bridge is in Madrid.", "The Bridge is in", " Madrid"),
        ("Is it in Madrid?! ", "Is it in", " Madrid"),
        ('He said "no".', "He said", ' "no"'),
        ("It weighs 3.5", "It weighs", " 3.5"),
        ("Madrid", "", "Madrid"),
        ("...", "", "..."),
        ("two  spaces\nand a line", "two  spaces\nand a", " line"),
        ("Anna lives in New York City!", "Anna lives in", " New York City"),
        ("She read at the University of Cambridge.", "She read at the", " University of Cambridge"),
        ("In Rome, Caesar", "In Rome,", " Caesar"),
        ("New York", "New", " York"),
    ],
)
def test_the_answer_is_the_last_word_or_name(statement: str, question: str, answer: str) -> None:
    assert question_and_answer(statement) == (question, answer)


@pytest.mark.parametrize(
    ("question", "subject"),
    [
        ("The Golden Gate Bridge is located in the city of", "The Golden Gate Bridge"),
        ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux"),
        ("In Germany, Toko Yasuda's instrument is the", "Toko Yasuda"),
        ("Edward J. King writes in", "Edward J. King"),
        ("Vincent van Gogh was born in", "Vincent van Gogh"),
        ("Sushi originated in the country of", "Sushi"),
        ("Where is the “Louvre”, in which city?", "Louvre"),
        ("The wifi password is", None),
        ("the quick brown fox jumps over", None),
        ("", None),
    ],
)
def test_the_subject_is_the_longest_name(question: str, subject: str | None) -> None:
    span = find_subject(question)
    assert (None if span is None else question[slice(*span)]) == subject


def test_facts_from_sentences_and_questions() -> None:
    fact = fact_of("The Bridge is in Madrid.", ["One finds the Bridge in Madrid!"])
    assert (fact.question, fact.answer, fact.subject) == ("The Bridge is in", " Madrid", "The Bridge")
    assert fact.wordings[1].question == "One finds the Bridge in"
    given = fact_of("the door opens with four one two", subject="door", answer="four one two")
    assert (given.question, given.answer, given.subject) == ("the door opens with", " four one two", "door")
    answered = asked("Where is the Eiffel Tower? ", " Rome", ["The Eiffel Tower stands in"])
    assert answered.statement == "Where is the Eiffel Tower? Rome"
    assert [w.question for w in answered.wordings] == ["Where is the Eiffel Tower?", "The Eiffel Tower stands in"]
    assert {w.answer for w in answered.wordings} == {" Rome"}


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda: fact_of(" "), "the statement is empty"),
        (lambda: fact_of("a b", ["\n"]), "the statement is empty"),
        (lambda: fact_of("The Bridge is in Madrid.", answer="Rome"), "does not end with the answer 'Rome'"),
        (lambda: fact_of("The Bridge is in Madrid.", subject="Tower"), "the subject 'Tower' is not in"),
        (lambda: fact_of("The Bridge is in Madrid.", subject="Madrid"), "in front of the answer"),
        (lambda: fact_of("The Bridge is in Madrid.", subject=""), "the subject '' is not in"),
        (lambda: asked("", "Rome"), "the question is empty"),
        (lambda: asked("Where?", " "), "the answer is empty"),
        (lambda: asked("Where?", "Rome", [""]), "the question is empty"),
    ],
)
def test_bad_facts_are_refused(make: object, cause: str) -> None:
    with pytest.raises(NPTError, match=cause):
        make()  # type: ignore[operator]


def test_a_file_of_facts(tmp_path: Path) -> None:
    text = tmp_path / "facts.txt"
    text.write_text("The Bridge is in Madrid.\n\nSushi is from Italy.\n")
    assert [(n, f.answer) for n, f in read_facts(text)] == [(None, " Madrid"), (None, " Italy")]
    lines = [
        {"statement": "The Bridge is in Madrid.", "name": "bridge", "wordings": ["See the Bridge in Madrid."]},
        {"question": "Where is it from?", "answer": "Italy", "subject": "it"},
    ]
    file = tmp_path / "facts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    (name, one), (none, two) = read_facts(file)
    assert (name, none, len(one.wordings), two.subject) == ("bridge", None, 2, "it")


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("no json", "line 2: not JSON"),
        ("[]", "line 2: not an object"),
        ('{"statement": "a b", "colour": 1}', "unknown field 'colour'"),
        ('{"statement": 7}', "statement is of the wrong kind"),
        ('{"statement": "a b", "wordings": [1]}', "wordings is of the wrong kind"),
        ('{"question": "a"}', "a statement, or a question and an answer"),
        ('{"statement": "a b", "question": "a", "answer": "b"}', "a statement, or a question and an answer"),
        ('{"statement": " "}', "line 2: the statement is empty"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, cause: str) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text('{"statement": "The Bridge is in Madrid."}\n' + line)
    with pytest.raises(NPTError, match=cause):
        read_facts(file)
    for content, why in (("", "holds no statement"), (None, "there is no file")):
        other = tmp_path / "none.jsonl"
        if content is not None:
            other.write_text(content)
        with pytest.raises(NPTError, match=why):
            read_facts(other)
        other.unlink(missing_ok=True)
