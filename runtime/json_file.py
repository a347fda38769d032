"""Json from outside as plain values: whatever is wrong with the file becomes one line of the right error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from visrt.runtime.errors import DataError

__all__ = ["parse_json", "parse_json_object", "read_json", "read_json_object"]


def read_json(path: Path, expected: str, error: type[Exception] = DataError) -> Any:
    """The values in the file at `path`. Raises `error` with the path, what is wrong, and the `expected` content."""
    return parse_json(_read(path, expected, error), str(path), expected, error)


def read_json_object(path: Path, expected: str, error: type[Exception] = DataError) -> dict[str, Any]:
    """As `read_json`, for a file that must hold one object."""
    return parse_json_object(_read(path, expected, error), str(path), expected, error)


def parse_json(text: bytes | str, where: str, expected: str, error: type[Exception] = DataError) -> Any:
    """The values in `text`, UTF-8 where it is bytes; `where` it comes from begins the message."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except UnicodeDecodeError as fault:
        raise error(f"{where}: not json (no UTF-8 text at byte {fault.start}); expected {expected}") from None
    except ValueError as fault:
        raise error(f"{where}: not json ({fault}); expected {expected}") from None
    except RecursionError:
        raise error(f"{where}: not json (nested too deeply); expected {expected}") from None


def parse_json_object(
    text: bytes | str, where: str, expected: str, error: type[Exception] = DataError
) -> dict[str, Any]:
    """As `parse_json`, for text that must hold one object."""
    values = parse_json(text, where, expected, error)
    if not isinstance(values, dict):
        raise error(f"{where}: holds a {type(values).__name__}; expected {expected}")
    return values


def _read(path: Path, expected: str, error: type[Exception]) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise error(f"{path}: no such file; expected {expected}") from None
    except OSError as fault:
        raise error(f"{path}: cannot be read ({fault.strerror}); expected {expected}") from None
