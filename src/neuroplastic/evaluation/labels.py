"""Where the names of points stand in a plot, so that none covers another one or a point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

DIRECTIONS = (0, 180, 90, 270, 30, 150, 330, 210, 60, 120, 300, 240)
"""In degrees, from the best one on: to the right of a point, to its left, above it, below it, ..."""
GAP, STEP, RINGS = 3.0, 9.0, 16
"""Distance of a name from its point, how much further each next ring of places is, and the number of rings."""


class Box(NamedTuple):
    """A rectangle in pixels; y grows upwards."""

    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def around(cls, x: float, y: float, radius: float) -> Box:
        return cls(x - radius, y - radius, x + radius, y + radius)

    @property
    def middle(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of it that is nearest to another one."""
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)

    def overlaps(self, other: Box) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.bottom < other.top and other.bottom < self.top

    def inside(self, other: Box) -> bool:
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.bottom <= self.bottom
            and self.top <= other.top
        )


def placed(marks: Sequence[Box], sizes: Sequence[tuple[float, float]], taken: Sequence[Box], frame: Box) -> list[Box]:
    """A box of each size (width, height) near each mark, inside the frame: the nearest one that overlaps nothing that
    is taken and no box before it. The last place tried is used if there is none."""
    found: list[Box] = []
    for mark, size in zip(marks, sizes, strict=True):
        for box in _places(mark, size):
            if box.inside(frame) and not any(box.overlaps(b) for b in (*taken, *found)):
                break
        found.append(box)
    return found


def _places(mark: Box, size: tuple[float, float]) -> Iterator[Box]:
    """Boxes around a mark, ring by ring: the middle of the side or the corner that is nearest lies on the ring."""
    (x, y), (width, height) = mark.middle, size
    for ring in range(RINGS):
        distance = (mark.right - mark.left) / 2 + GAP + ring * STEP
        for degrees in DIRECTIONS:
            along, up = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            left = x + distance * along + (along - 1) / 2 * width
            bottom = y + distance * up + (up - 1) / 2 * height
            yield Box(left, bottom, left + width, bottom + height)
