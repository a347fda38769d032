"""Json values from outside, checked one by one: the first fault is named by its path in the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visrt.runtime.errors import DataError

__all__ = ["known_id", "object_at", "objects_by_id", "short", "whole_number"]


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
    """The objects of the list at `key` by their ids, which differ, in their order. Only annotations may be none."""
    entries = values.get(key)
    if not isinstance(entries, list) or (not entries and key != "annotations"):
        at_least = "" if key == "annotations" else " of at least one"
        raise DataError(f"{path}: {key}: expected a list{at_least}; found {short(entries)}")
    first: dict[int, int] = {}
    for i, value in enumerate(entries):
        where = f"{path}: {key}[{i}]"
        number = whole_number(object_at(value, where), "id", where)
        if first.setdefault(number, i) != i:
            raise DataError(f"{where}.id: {number} is the id of {key}[{first[number]}] too; ids must differ")
    return dict(zip(first, entries, strict=True))


def short(value: object) -> str:
    """`value` for a message, cut to 60 characters."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a number beyond all measure"
    return text if len(text) <= 60 else text[:57] + "..."


def object_at(value: Any, where: str) -> dict[str, Any]:
    """`value`, which is an object."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object; found {type(value).__name__}")
    return value
