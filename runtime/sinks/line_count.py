"""Objects that cross a line, counted by class and direction."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from visrt.runtime.errors import UsageError
from visrt.runtime.results import FrameResult
from visrt.runtime.sources.source import Image

__all__ = ["REMEMBERED", "Line", "LineCount", "line"]

Point = tuple[float, float]

REMEMBERED = 10_000
"""Objects; one that comes back after so many others is counted as a new one."""


@dataclass(frozen=True)
class Line:
    """From (x1, y1) to (x2, y2) in pixels of the frame, x to the right and y down."""

    x1: float
    y1: float
    x2: float
    y2: float

    def __str__(self) -> str:
        return f"{self.x1:g},{self.y1:g},{self.x2:g},{self.y2:g}"

    def check_inside(self, size: tuple[int, int]) -> None:
        """Raises UsageError where an end lies outside a frame of `size` (height, width)."""
        height, width = size
        outside = [
            f"{x:g},{y:g}"
            for x, y in ((self.x1, self.y1), (self.x2, self.y2))
            if not (0 <= x <= width and 0 <= y <= height)
        ]
        if outside:
            raise UsageError(
                f"the line {self} has {' and '.join(outside)} outside the picture, which is {width} wide and {height} "
                "high; expected x,y,x,y in its pixels"
            )

    def side(self, point: Point) -> float:
        """Above 0 on the right of one who looks from the first end to the second, below on the left."""
        return (self.x2 - self.x1) * (point[1] - self.y1) - (self.y2 - self.y1) * (point[0] - self.x1)

    def crossed(self, before: Point, now: Point) -> str | None:
        """ "to_right" or "to_left" where the way from `before` to `now` crosses the line between its ends."""
        sides = self.side(before), self.side(now)
        if (sides[0] > 0) == (sides[1] > 0):
            return None
        way = Line(*before, *now)
        ends = way.side((self.x1, self.y1)), way.side((self.x2, self.y2))
        if ends[0] * ends[1] > 0:
            return None
        return "to_right" if sides[1] > 0 else "to_left"


def line(text: str) -> Line:
    """The line of "x,y,x,y". Raises UsageError for what is none, and for one without length."""
    number = r"\s*(-?\d+(?:\.\d+)?)\s*"
    found = re.fullmatch(",".join([number] * 4), text)
    if not found:
        raise UsageError(f"line {text!r} is not understood; expected x,y,x,y in pixels, as 0,270,480,270")
    one = Line(*map(float, found.groups()))
    if (one.x1, one.y1) == (one.x2, one.y2):
        raise UsageError(f"line {text!r} has no length; expected two ends, as 0,270,480,270")
    return one


class LineCount:
    """A sink that counts the objects whose boxes' middle crosses a line: each once in each direction, under the class
    it has then. Of an endless stream the REMEMBERED objects that were seen last are known."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._seen: dict[int, tuple[Point, frozenset[str]]] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._checked = False

    def write(self, result: FrameResult, image: Image) -> None:
        if not self._checked:
            self._line.check_inside(result.size)
            self._checked = True
        for shown in result.objects:
            x, y, width, height = shown.box
            now = (x + width / 2, y + height / 2)
            before, counted = self._seen.pop(shown.id, (now, frozenset[str]()))
            way = self._line.crossed(before, now)
            if way and way not in counted:
                counted |= {way}
                self._counts[shown.name or f"class {shown.label}", way] += 1
            self._seen[shown.id] = now, counted
        while len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]

    def close(self) -> None:
        pass

    def summary(self) -> dict[str, Any]:
        """{"line": [x1, y1, x2, y2], "counts": {class: {"to_right": n, "to_left": n}}}; only classes that crossed."""
        names = sorted({name for name, _ in self._counts})
        counts = {name: {way: self._counts[name, way] for way in ("to_right", "to_left")} for name in names}
        ends = [self._line.x1, self._line.y1, self._line.x2, self._line.y2]
        return {"line": [int(end) if end == int(end) else end for end in ends], "counts": counts}
