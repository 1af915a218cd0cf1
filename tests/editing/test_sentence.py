"""Where the answer and the subject stand in a sentence."""

from __future__ import annotations

import pytest

from neuroplastic.editing.sentence import find_subject, question_and_answer, sentences_of


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
        ('The author of Emma is "Jane Austen".', "The author of Emma is", ' "Jane Austen"'),
        ("The motto is “to be or not to be”.", "The motto is", " “to be or not to be”"),
        ("He said 'no'.", "He said", " 'no'"),
        ('"The Bridge is in Madrid."', "The Bridge is in", " Madrid"),
        ("He lives in Paris (France).", "He lives in", " Paris (France)"),
        ("It is in New York City (the largest one).", "It is in", " New York City (the largest one)"),
        ("The Bridge (a tall one) is in Madrid (Spain)", "The Bridge (a tall one) is in", " Madrid (Spain)"),
        ("It is in Madrid).", "It is in", " Madrid"),
        ("The Capitol is in Washington, D.C.", "The Capitol is in", " Washington, D.C."),
        ("He lives in the U.S.", "He lives in the", " U.S."),
        ("He lives in the U.S.!", "He lives in the", " U.S."),
        ("His name is Malcolm X.", "His name is", " Malcolm X"),
        ("The president was Ulysses S. Grant.", "The president was", " Ulysses S. Grant"),
        ("He is Martin Luther King, Jr.", "He is", " Martin Luther King, Jr."),
        ("He lives in St. Petersburg.", "He lives in", " St. Petersburg"),
        ("The house is the Joneses'.", "The house is the", " Joneses'"),
        ("The writer is Flann O'Brien.", "The writer is", " Flann O'Brien"),
        ("They are from Côte d'Ivoire.", "They are from", " Côte d'Ivoire"),
        ("The duo is Simon & Garfunkel.", "The duo is", " Simon & Garfunkel"),
        ("Tolkien wrote The Lord of the Rings.", "Tolkien wrote", " The Lord of the Rings"),
        ("It was sold on eBay.", "It was sold on", " eBay"),
        ("He was born on March 28, 1925.", "He was born on", " March 28, 1925"),
        ("Anna lives with Bob in Paris.", "Anna lives with Bob in", " Paris"),
        ("The tower is called 東京タワー。", "The tower is called", " 東京タワー"),
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
        ("The Lord of the Rings was written by", "The Lord of the Rings"),
        ("Who wrote The Lord of the Rings?", "The Lord of the Rings"),
        ("The members of Simon & Garfunkel are", "Simon & Garfunkel"),
        ("The capital of Côte d'Ivoire is", "Côte d'Ivoire"),
        ("The founder of eBay is", "eBay"),
        ("The maker of iPhone 12 is", "iPhone 12"),
        ("Flann O'Brien's birthplace is", "Flann O'Brien"),
        ("The capital of Guinea-Bissau is", "Guinea-Bissau"),
        ("Alexander the Great died in", "Alexander the Great"),
        ("Beauty and the Beast was made by", "Beauty and the Beast"),
        ("Maurice Hankey, 1st Baron Hankey died in", "Maurice Hankey, 1st Baron Hankey"),
        ("In Sambir, an official language is", "Sambir"),
        ("The team of Paris plays in", "Paris"),
        ("What type of ship is USS Kete (SS-369)?", "USS Kete (SS-369)"),
        ("Grey's Anatomy premiered on", "Grey's Anatomy"),
        ("埃菲尔铁塔位于", None),
        ("The wifi password is", None),
        ("the quick brown fox jumps over", None),
        ("", None),
    ],
)
def test_the_subject_is_the_longest_name(question: str, subject: str | None) -> None:
    span = find_subject(question)
    assert (None if span is None else question[slice(*span)]) == subject


@pytest.mark.parametrize(
    "sentences",
    [
        ["Rome is old.", "Oslo is not!", "Is it?", "Ada knows…"],
        ["It covers 15.5 ha.", "About 3,000.5 people live there (c. 1030).", "2 more came in 1917.", "It was cold."],
        ["Dr. A. B. Stone met J.R.R. Tolkien, e.g. Monday, vs. St. Paul.", "He left."],
        ["He works in the U.S. Army.", "She lives in the U.S.", "The house is at No. 5."],
        ["He left at 6:00 p.m. Eastern Time.", "She left at 6 p.m.", "In the evening it rained."],
        ["Apple Inc. Chairman Ada spoke.", "It is Apple Inc.", "It makes phones.", "eBay does not."],
        ['She wrote "It is so. He knows it." and left.', 'He wrote "No."', "Rome (it is old. Very old.) is big."],
        ["東京は日本の首都です。", "大阪は違います！"],
        ["the key is here. it is red.", "Oslo is far"],
        [],
    ],
)
def test_where_sentences_end(sentences: list[str]) -> None:
    unspaced = sentences[:1] == ["東京は日本の首都です。"]
    assert sentences_of(("" if unspaced else "  ").join(sentences)) == sentences


def test_an_empty_line_ends_a_sentence_and_a_line_break_does_not() -> None:
    assert sentences_of("The gas is O\n2. A title\n \nOslo is\tfar. ") == ["The gas is O 2.", "A title", "Oslo is far."]
