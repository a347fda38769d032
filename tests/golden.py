"""Golden sets: arrays that the official implementations computed. They are not part of the repository.

The folder is VISRT_GOLDEN, by default ../shared/golden beside the checkout. Every set that fits a pattern is tested;
without any, the test skips and says so.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

FOLDER = Path(os.environ.get("VISRT_GOLDEN", Path(__file__).parents[1].parent / "shared" / "golden"))


@dataclass(frozen=True)
class GoldenSet:
    """One npz file: arrays by name, its settings as a dictionary, and the path of its weights if it has any."""

    path: Path

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        with np.load(self.path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    @cached_property
    def meta(self) -> dict[str, Any]:
        meta: dict[str, Any] = json.loads(str(self["meta_json"]))
        return meta

    @property
    def weights_path(self) -> Path:
        return self.path.with_name(f"{self.path.stem}_weights.pth")


def golden_sets(*patterns: str, without: str = "") -> list[Any]:
    """Parameters for `pytest.mark.parametrize`: a GoldenSet for each set whose name fits a pattern but not `without`."""
    found = sorted(p for p in FOLDER.glob("*.npz") if any(fnmatch(p.stem, pattern) for pattern in patterns))
    kept = [path for path in found if not fnmatch(path.stem, without)]
    if not kept:
        reason = f"no golden set {' or '.join(patterns)} in {FOLDER}; set VISRT_GOLDEN"
        return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(GoldenSet(path), id=path.stem) for path in kept]
