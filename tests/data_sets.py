"""Annotated sets for tests of quality: those in the folder named by VISRT_DATA, by default ../shared/data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def data_set(name: str) -> Path:
    """The folder of the set `name`; skips the test, with the reason, where it is not at hand."""
    folder = Path(os.environ.get("VISRT_DATA", ROOT.parent / "shared" / "data")) / name
    if not (folder / "instances.json").is_file():
        pytest.skip(f"no {folder / 'instances.json'}: set VISRT_DATA to a folder that holds {name}/")
    return folder
