"""Strict loading of settings: plain json values into frozen dataclasses. An unknown key stops the program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from visrt.runtime.errors import SettingsError
from visrt.runtime.json_file import read_json_object

__all__ = ["load_settings", "settings_from_file"]

T = TypeVar("T")


def load_settings(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass `cls` from plain `values`, checked strictly, nested dataclasses too.

    Raises SettingsError: one line with `where`, the key, what is wrong with it, and the known keys.
    """
    try:
        return cast(T, getattr(_model(cls).model_validate({"settings": dict(values)}), "settings"))  # noqa: B009
    except ValidationError as error:
        raise SettingsError(f"{where}: {_describe_fault(error, cls)}") from None


def settings_from_file(cls: type[T], path: Path) -> T:
    """Settings of `cls` from the json file at `path`."""
    return load_settings(cls, read_json_object(path, "one object of settings", SettingsError), str(path))


def _model(cls: type[Any]) -> type[BaseModel]:
    return create_model("Settings", __config__=ConfigDict(extra="forbid"), settings=(cls, ...))


def _describe_fault(error: ValidationError, cls: type[Any]) -> str:
    """The first fault in words. Of a union, the deepest branch is the one that was meant."""
    fault = max(error.errors(), key=lambda e: len(e["loc"]))
    key = ".".join(str(part) for part in fault["loc"][1:])
    if fault["type"] == "unexpected_keyword_argument":
        return f"unknown setting {key!r}; known here: {', '.join(_known(cls, fault['loc'][1:-1]))}"
    if fault["type"] in ("missing", "missing_argument"):
        return f"setting {key!r} is missing"
    return f"setting {key!r} is {fault['input']!r}: {fault['msg']}"


def _known(cls: type[Any], path: tuple[int | str, ...]) -> list[str]:
    """Names of the settings at `path` below `cls`; union branches appear in the path by their class name."""
    import typing

    for part in path:
        hints = typing.get_type_hints(cls)
        if part not in hints:
            continue
        hint = hints[str(part)]
        choices = [c for c in (hint, *typing.get_args(hint)) if is_dataclass(c)]
        named = [c for c in choices if getattr(c, "__name__", "") in path]
        if choices:
            cls = (named or choices)[0]  # type: ignore[assignment]
    return [f.name for f in fields(cls)]
