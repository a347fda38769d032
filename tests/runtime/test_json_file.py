"""Claims about json from outside: each fault of a file is one line with its path and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from visrt.runtime.errors import BundleError, SettingsError
from visrt.runtime.json_file import parse_json, read_json, read_json_object

FAULTS = {
    "deep": (b"[" * 100_000, r"not json \(nested too deeply\)"),
    "page": (b"<html>", r"not json \(Expecting value: line 1 column 1"),
    "cut short": (b'{"a": [1, 2', r"not json \(.*line 1 column 12"),
    "latin": ('{"name": "café"}'.encode("latin-1"), r"not json \(no UTF-8 text at byte 13\)"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), r"not json \(no UTF-8 text at byte 0\)"),
    "digits": (b"1" * 10_000, r"not json \(Exceeds the limit"),
    "list": (b"[]", "holds a list"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_file_is_named_with_its_fault_and_what_was_expected(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    content, fault = FAULTS[name]
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=rf"x\.json: {fault}.*; expected one object of settings$") as refusal:
        read_json_object(path, "one object of settings", SettingsError)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_not_there_or_is_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.json: no such file; expected a list"):
        read_json(tmp_path / "none.json", "a list", SettingsError)
    with pytest.raises(SettingsError, match=r"cannot be read \(Is a directory\); expected a list"):
        read_json(tmp_path, "a list", SettingsError)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes('{"name": "café"}'.encode("utf-8-sig"))
    assert read_json(tmp_path / "x.json", "names") == {"name": "café"}


def test_text_in_hand_is_read_by_the_same_rules() -> None:
    assert parse_json("[1]", "its list", "a list") == [1]
    with pytest.raises(BundleError, match=r"its list: not json .*; expected a list"):
        parse_json(b"[1", "its list", "a list", BundleError)
