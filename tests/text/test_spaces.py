from __future__ import annotations

import pytest

from neuroplastic.text.spaces import continuing, mostly_unspaced, plain_spaces, without_trailing_spaces


@pytest.mark.parametrize(
    ("question", "answer", "continued"),
    [
        ("The Bridge is in", "Madrid", " Madrid"),
        ("Where is it?", " Madrid ", " Madrid"),
        ("埃菲尔铁塔位于", "巴黎", "巴黎"),
        ("埃菲尔铁塔在哪里？", "巴黎", "巴黎"),
        ("埃菲尔铁塔在哪里?", "巴黎", "巴黎"),
        ("他的名字是", "Anna", "Anna"),
        ("東京タワーの高さは", "333メートル", "333メートル"),
        ("หอไอเฟลตั้งอยู่ที่กรุง", "ปารีส", "ปารีส"),
        ("Who painted 富士山?", "Hokusai", " Hokusai"),
        ("In Japanese, Tokyo is", "東京", " 東京"),
        ("에펠탑이 있는 도시는", "파리", " 파리"),
    ],
)
def test_an_answer_follows_as_its_script_is_written(question: str, answer: str, continued: str) -> None:
    assert continuing(question, answer) == continued


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("in the city of ", "in the city of"),
        ("in the city of\u00a0 \t", "in the city of"),
        ("in  the city", "in  the city"),
        ("Answer:\n", "Answer:\n"),
        ("def f():\n    ", "def f():\n    "),
        ("", ""),
    ],
)
def test_trailing_spaces_are_left_out_but_no_indentation(prompt: str, read: str) -> None:
    assert without_trailing_spaces(prompt) == read


def test_wide_and_doubled_spaces_are_one() -> None:
    assert plain_spaces(" a\u00a0b  c\u3000d\n e\u2009 ") == "a b c d\n e"


def test_scripts_without_spaces() -> None:
    assert mostly_unspaced("iPhone 12 的制造商是苹果公司。")
    assert not mostly_unspaced("In Japanese, the tower is called 東京タワー.")
    assert not mostly_unspaced("")
