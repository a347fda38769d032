"""Json from outside, read with suspicion: the first fault is told by its path in the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visrt.runtime.errors import DataError

__all__ = ["an_object", "known_id", "objects_in", "read_json", "short", "whole_number"]

EXPECTED = "instances.json and its pictures"


def known_id(value: dict[str, Any], key: str, known: Mapping[int, Any], where: str, whose: str = "the file's: ") -> int:
    number = whole_number(value, key, where)
    if number not in known:
        some = ", ".join(map(str, list(known)[:10])) + (", ..." if len(known) > 10 else "")
        raise DataError(f"{where}.{key}: {number} is none of {whose}{some}")
    return number


def whole_number(value: dict[str, Any], key: str, where: str) -> int:
    number = value.get(key)
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise DataError(f"{where}.{key}: expected a whole number of zero or more; found {number!r}")
    return number


def objects_in(values: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    """The objects of a list, each with an id of its own. Only annotations may be none."""
    found = values.get(key)
    if not isinstance(found, list) or (not found and key != "annotations"):
        raise DataError(f"{path}: {key}: expected a list{_some(key)}; found {short(found)}")
    first: dict[int, int] = {}
    for i, value in enumerate(found):
        number = whole_number(an_object(value, f"{path}: {key}[{i}]"), "id", f"{path}: {key}[{i}]")
        if first.setdefault(number, i) != i:
            raise DataError(f"{path}: {key}[{i}].id: {number} is the id of {key}[{first[number]}] too; ids must differ")
    return found


def _some(key: str) -> str:
    return "" if key == "annotations" else " of at least one"


def short(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a number beyond all measure"
    return text if len(text) <= 60 else text[:57] + "..."


def an_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object; found {type(value).__name__}")
    return value


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give a folder with {EXPECTED}, or a json file") from None
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as json ({error})") from None
