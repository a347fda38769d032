"""Finds the golden sets, arrays that the official implementations computed, in the folder of VISRT_GOLDEN."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from visrt.benchmarks.video_level.tracks import VideoResult
from visrt.runtime import image
from visrt.runtime.image import Letterbox
from visrt.runtime.masks import decode

ROOT = Path(__file__).resolve().parents[1]


def golden_folder() -> Path:
    """VISRT_GOLDEN, or `../shared/golden` beside the repository."""
    return Path(os.environ.get("VISRT_GOLDEN", ROOT.parent / "shared" / "golden"))


def golden_sets(pattern: str, without: str = "") -> list[Any]:
    """A test parameter for each set `pattern`.npz whose name lacks `without`; one that skips if there is none."""
    found = [path for path in sorted(golden_folder().glob(f"{pattern}.npz")) if not without or without not in path.stem]
    if found:
        return [pytest.param(path, id=path.stem) for path in found]
    reason = f"no golden set {pattern}.npz in {golden_folder()}; set VISRT_GOLDEN"
    return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=reason))]


def load_golden(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def golden_meta(arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads(str(arrays["meta_json"]))
    return meta


def golden_final_masks(arrays: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """The final masks [K, T, H, W]."""
    shape = tuple(arrays["final_masks_shape"])
    return np.unpackbits(arrays["final_masks_packed"])[: np.prod(shape)].reshape(shape).astype(bool)


def fit_officially(monkeypatch: pytest.MonkeyPatch, golden: dict[str, NDArray[Any]]) -> None:
    """Frames are resized to the size that the official code chose for this set, and padded to the size it padded to.

    It chooses by the short side, visrt by what fits into a fixed input: the same only where one side fills it.
    """
    height, width = golden["resized_rgb"].shape[2:] if "resized_rgb" in golden else golden["image_size"]
    monkeypatch.setattr(image, "letterbox", lambda source, size: Letterbox(source, (height, width), size))


def assert_same_finals(result: VideoResult, golden: dict[str, NDArray[Any]], score_tolerance: float = 1e-4) -> None:
    """Scores to the tolerance, labels equal, at most 1e-4 of the mask pixels different; finals are in no order."""
    by_score = np.argsort(-golden["final_scores"])
    expected = golden_final_masks(golden)[by_score]
    tracks = sorted(result.tracks, key=lambda track: -track.score)
    np.testing.assert_allclose([t.score for t in tracks], golden["final_scores"][by_score], atol=score_tolerance)
    assert [t.label for t in tracks] == list(golden["final_labels"][by_score])
    empty = np.zeros(expected.shape[2:], dtype=bool)
    made = np.stack([[decode(rle) if rle else empty for rle in track.masks] for track in tracks])
    assert np.count_nonzero(made != expected) <= 1e-4 * expected.size
