"""Names near their marks, in a plot."""

from __future__ import annotations

import random

import pytest

from neuroplastic.evaluation.labels import Box, placed

FRAME = Box(0, 0, 600, 400)


@pytest.mark.parametrize("spread", [0, 15, 200])
def test_no_name_covers_another_one_or_a_mark(spread: int) -> None:
    rng = random.Random(spread)
    marks = [
        Box.around(300 + rng.uniform(-spread, spread), 200 + rng.uniform(-spread, spread) / 2, rng.uniform(3, 9))
        for _ in range(10)
    ]
    sizes = [(rng.uniform(20, 80), 12.0) for _ in marks]
    height = Box(250, 190, 270, 200)
    found = placed(marks, sizes, [*marks, height], FRAME)
    for i, (box, (width, tall)) in enumerate(zip(found, sizes, strict=True)):
        assert (box.right - box.left, box.top - box.bottom) == pytest.approx((width, tall))
        assert box.inside(FRAME)
        assert not any(box.overlaps(other) for other in (*marks, height, *found[:i], *found[i + 1 :]))


def test_a_name_stands_beside_its_mark_if_there_is_room() -> None:
    (alone,) = placed([Box.around(100, 100, 5)], [(40, 10)], [Box.around(100, 100, 5)], FRAME)
    assert alone == pytest.approx((108, 95, 148, 105))
    (edge,) = placed([Box.around(580, 100, 5)], [(40, 10)], [], FRAME)
    assert edge == pytest.approx((532, 95, 572, 105))  # to its left, where the frame leaves room
    (nowhere,) = placed([Box.around(100, 100, 5)], [(700, 10)], [], FRAME)
    assert nowhere.right - nowhere.left == pytest.approx(700)
