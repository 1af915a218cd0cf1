"""How a sentence becomes a question, an answer and a subject."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neuroplastic import NPTError
from neuroplastic.editing.fact import asked, fact_of, read_facts


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


def test_spaces_of_any_kind_count_as_one() -> None:
    fact = fact_of(" The Golden\u00a0Gate  Bridge is in  New\u00a0York. ")
    assert (fact.statement, fact.answer) == ("The Golden Gate Bridge is in New York.", " New York")
    assert (fact.question, fact.subject) == ("The Golden Gate Bridge is in", "The Golden Gate Bridge")
    assert fact_of("The Bridge is in\u00a0Madrid.", answer="Madrid").answer == " Madrid"
    answered = asked("Where  is it?\u00a0", " New  York")
    assert (answered.question, answered.answer) == ("Where is it?", " New York")


def test_an_answer_that_is_given_stays_whole_and_balanced() -> None:
    quoted = 'The author is "Jane Austen".'
    for answer in ("Jane Austen", '"Jane Austen"', "Jane Austen."):
        fact = fact_of(quoted, answer=answer)
        assert (fact.question, fact.answer) == ("The author is", ' "Jane Austen"')
    assert fact_of("It was founded by Yahoo!", answer="Yahoo!").answer == " Yahoo!"
    assert fact_of("He lives in Paris (France).", answer="Paris (France)").answer == " Paris (France)"
    assert fact_of("It is in Washington, D.C.", answer="Washington, D.C.").answer == " Washington, D.C."


def test_scripts_without_spaces_get_none() -> None:
    answered = asked("埃菲尔铁塔位于", " 巴黎", ["埃菲尔铁塔在哪里？", "The Eiffel Tower is in"])
    assert answered.statement == "埃菲尔铁塔位于巴黎"
    assert [w.answer for w in answered.wordings] == ["巴黎", "巴黎", " 巴黎"]
    stated = fact_of("埃菲尔铁塔位于巴黎。", answer="巴黎", subject="埃菲尔铁塔")
    assert (stated.question, stated.answer, stated.subject) == ("埃菲尔铁塔位于", "巴黎", "埃菲尔铁塔")
    thai = fact_of("หอไอเฟลตั้งอยู่ที่กรุงปารีส", answer="ปารีส", subject="หอไอเฟล")
    assert (thai.question, thai.answer) == ("หอไอเฟลตั้งอยู่ที่กรุง", "ปารีส")


def test_a_subject_is_found_as_whole_words() -> None:
    assert fact_of("A catalogue of the cat is in Madrid.", subject=" cat ").wordings[0].subject == (19, 22)
    assert fact_of("Guinea-Bissau is larger than Guinea and is in Africa.", subject="Guinea").wordings[0].subject == (
        29,
        35,
    )
    assert fact_of("The  Eiffel\u00a0Tower is in Rome.", subject="Eiffel  Tower").subject == "Eiffel Tower"
    assert fact_of("The capital of l'Italie is Rome.", subject="Italie").subject == "Italie"
    assert fact_of("Toko Yasuda's instrument is the guitar.", subject="Toko Yasuda").subject == "Toko Yasuda"


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda: fact_of(" "), "the statement is empty"),
        (lambda: fact_of("a b", ["\n"]), "the statement is empty"),
        (lambda: fact_of("The Bridge is in Madrid.", answer="Rome"), "does not end with the answer 'Rome'"),
        (lambda: fact_of("The Bridge is in Madrid.", subject="Tower"), "the subject 'Tower' is not in"),
        (lambda: fact_of("The Bridge is in Madrid.", subject="Madrid"), "before the answer"),
        (lambda: fact_of("The Bridge is in Madrid.", subject=""), "the subject '' is not in"),
        (lambda: fact_of("A catalogue is in Madrid.", subject="cat"), "as whole words"),
        (lambda: fact_of("The capital of O'Brien is Rome.", subject="Brien"), "as whole words"),
        (lambda: fact_of("The Bridge is in Madrid.", answer="rid"), "only a part of the word"),
        (lambda: fact_of("The pub is O'Brien.", answer="Brien"), "only a part of the word"),
        (lambda: fact_of("She is from Guinea-Bissau.", answer="Bissau"), "only a part of the word"),
        (lambda: fact_of("埃菲尔铁塔位于巴黎。"), "no spaces between its words.*--answer"),
        (lambda: fact_of("iPhone 12 的制造商是苹果公司。"), "no spaces between its words.*--answer"),
        (lambda: fact_of("หอไอเฟล ตั้งอยู่ในกรุงปารีส"), "no spaces between its words.*--answer"),
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


def test_lines_end_at_line_breaks_alone(tmp_path: Path) -> None:
    odd = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e"
    file = tmp_path / "facts.jsonl"
    lines = [json.dumps({"question": f"a{c}b", "answer": "Rome"}, ensure_ascii=False) for c in "\u2028\u2029\u0085"]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert len(read_facts(file)) == 3
    text = tmp_path / "facts.txt"
    text.write_bytes("\ufeff".encode() + f"The Bridge{odd} is in Madrid.\r\nSushi is from Italy.\n".encode())
    (_, one), (_, two) = read_facts(text)
    assert (one.answer, two.statement) == (" Madrid", "Sushi is from Italy.")
    assert one.statement.startswith("The Bridge")  # without the mark


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
