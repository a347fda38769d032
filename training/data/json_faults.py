"""Values from outside, checked one by one. A fault is named by its path in the file; all of a file are collected."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visrt.runtime.errors import DataError

__all__ = ["Faults", "known_id", "object_at", "objects_by_id", "placed_by_id", "short", "whole_number"]

MEND = (
    "mend what is faulty, or leave it out: `visrt data`, `eval` and `train --data` take --skip-faulty, settings of a "
    "training skip_faulty"
)
MOST_PLACES = 10
"""Places that a message names of a kind of fault."""


@dataclass
class _Kind:
    """Faults of one kind: the number, the message without its place, and the first places."""

    text: str
    count: int = 0
    places: list[str] = field(default_factory=list)


class Faults:
    """The faults of the annotations at `path`, by kind. leave_out: what is faulty is left out rather than refused.
    remedy: what to do otherwise.

    A reader gives each `DataError` to `add`, or reads within `entry`, goes on with the next entry, and calls `remarks`
    in the end.
    """

    def __init__(self, path: Path, leave_out: bool = False, remedy: str = MEND) -> None:
        self.path, self.leave_out, self.remedy = path, leave_out, remedy
        self._kinds: dict[str, _Kind] = {}

    @property
    def count(self) -> int:
        return sum(kind.count for kind in self._kinds.values())

    def add(self, error: DataError) -> None:
        message = str(error).removeprefix(f"{self.path}: ")
        place, _, text = message.partition(": ")
        plain = re.sub(r"[-+]?\d[\d.e+-]*", "#", f"{re.sub(r'^.*/', '', place)}: {text.partition('; found')[0]}")
        kind = self._kinds.setdefault(plain, _Kind(text))
        kind.count += 1
        if len(kind.places) < MOST_PLACES:
            kind.places.append(place)

    @contextmanager
    def entry(self) -> Iterator[None]:
        """Adds the DataError that ends the block, if one does."""
        try:
            yield
        except DataError as error:
            self.add(error)

    def remarks(self) -> tuple[str, ...]:
        """What was left out, in one remark. Raises DataError with all faults unless they are to be left out."""
        if not self._kinds:
            return ()
        if self.leave_out:
            return (f"{self.path}: {self._listed()}; what is faulty is left out",)
        raise DataError(f"{self.path}: {self._listed()}; {self.remedy}")

    def _listed(self) -> str:
        kinds = list(self._kinds.values())
        if len(kinds) == 1:
            return _described(kinds[0])
        return f"{self.count} faults: " + "; ".join(f"{kind.count} x {_described(kind)}" for kind in kinds)


def _described(kind: _Kind) -> str:
    first, *others = kind.places
    more = f" and {kind.count - len(kind.places)} more" if kind.count > len(kind.places) else ""
    also = f" (also {', '.join(others)}{more})" if others else ""
    return f"{first}: {kind.text}{also}"


def known_id(value: dict[str, Any], key: str, known: Mapping[int, Any], where: str, whose: str = "the file's: ") -> int:
    """The id at `key`, one of `known`."""
    number = whole_number(value, key, where)
    if number not in known:
        some = ", ".join(map(str, list(known)[:10])) + (", ..." if len(known) > 10 else "")
        raise DataError(f"{where}.{key}: {number} is none of {whose}{some}")
    return number


def whole_number(value: dict[str, Any], key: str, where: str, least: int = 0) -> int:
    """The whole number at `key`, at least `least`; 120.0 is one too."""
    number = value.get(key)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        bound = "one" if least else "zero"
        raise DataError(f"{where}.{key}: expected a whole number of {bound} or more; found {short(value.get(key))}")
    return number


def objects_by_id(values: dict[str, Any], key: str, path: Path) -> dict[int, dict[str, Any]]:
    """The objects of the list at `key`, at least one, by their ids, which differ, in their order."""
    return {number: value for number, (_, value) in placed_by_id(values, key, path).items()}


def placed_by_id(
    values: dict[str, Any], key: str, path: Path, faults: Faults | None = None
) -> dict[int, tuple[str, dict[str, Any]]]:
    """The objects of the list at `key` by their ids, each after its place. Only annotations may be none.

    faults: takes those without a proper id, which are left out then.
    """
    entries = values.get(key)
    if not isinstance(entries, list) or (not entries and key != "annotations"):
        at_least = "" if key == "annotations" else " of at least one"
        raise DataError(f"{path}: {key}: expected a list{at_least}; found {short(entries)}")
    first: dict[int, int] = {}
    placed = {}
    for i, value in enumerate(entries):
        where = f"{path}: {key}[{i}]"
        try:
            number = whole_number(object_at(value, where), "id", where)
            if first.setdefault(number, i) != i:
                raise DataError(f"{where}.id: {number} is the id of {key}[{first[number]}] too; ids must differ")
        except DataError as error:
            if faults is None:
                raise
            faults.add(error)
            continue
        placed[number] = where, value
    return placed


def short(value: object) -> str:
    """`value` for a message, cut to 60 characters."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a number beyond all measure"
    return text if len(text) <= 60 else text[:57] + "..."


def object_at(value: Any, where: str) -> dict[str, Any]:
    """`value`, which is an object."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object; found {type(value).__name__}")
    return value
