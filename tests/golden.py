"""Golden sets: arrays that the official implementations computed, in the folder of VISRT_GOLDEN.

Every set in that folder is taken, whatever its sizes: they come from its arrays and its settings. `NAME.npz` begins
with the family's name; which arrays it holds tells what kind of set it is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from visrt.benchmarks.video_level.tracks import VideoResult
from visrt.runtime import image
from visrt.runtime.image import Letterbox
from visrt.runtime.masks import decode

ROOT = Path(__file__).resolve().parents[1]
STRIDE = 32
"""Networks take inputs whose sides this divides."""

KINDS = {
    ("minvis", "network"): "net_input",
    ("minvis", "track"): "truth",
    ("ctvis", "network"): "net_input",
    ("ctvis", "track"): "truth",
    ("genvis", "video"): "in/frames_rgb_uint8",
    ("genvis", "assignment"): "gt_masks",
    ("inspro", "video"): "in/frames_rgb_uint8",
    ("inspro", "operators"): "roi/boxes",
    ("videomt", "video"): "queries_next",
    ("eomt", "images"): "inst_scores",
}
"""By family and kind of set, an array that only such a set of the family holds."""

SCORES = ("final_scores", "out/pred_scores", "out_assumed/scores_mean_over_frames")
LABELS = ("final_labels", "out/pred_labels", "out_assumed/labels")
MASKS = ("final_masks", "out/pred_masks", "out_assumed/masks")


def golden_folder() -> Path:
    """VISRT_GOLDEN, or `../shared/golden` next to the repository."""
    return Path(os.environ.get("VISRT_GOLDEN", ROOT.parent / "shared" / "golden"))


@cache
def _kinds(folder: Path) -> dict[Path, tuple[str, str] | None]:
    """All sets of the folder, each with its family and kind; None for one that no code here knows."""
    found: dict[Path, tuple[str, str] | None] = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as stored:
            held = set(stored.files)
        family = path.stem.split("_")[0]
        found[path] = next((kind for kind, mark in KINDS.items() if kind[0] == family and mark in held), None)
    return found


def golden_sets(family: str, *kinds: str) -> list[Any]:
    """A test parameter for each set of the family that is of one of `kinds`; one that skips if there is none."""
    found = [path for path, kind in _kinds(golden_folder()).items() if kind in [(family, one) for one in kinds]]
    if found:
        return [pytest.param(path, id=path.stem) for path in found]
    reason = f"no golden set of {family}, {' or '.join(kinds)}, in {golden_folder()}; set VISRT_GOLDEN"
    return [pytest.param(None, id=f"no_{family}_{'_or_'.join(kinds)}", marks=pytest.mark.skip(reason=reason))]


def unknown_sets() -> list[Path]:
    """Sets of no known family, or of none of its kinds."""
    return [path for path, kind in _kinds(golden_folder()).items() if kind is None]


@dataclass(frozen=True)
class Finals:
    """A video-level result: scores and labels [K], masks [K, T, H, W] bool. The K are in no order."""

    scores: NDArray[np.floating]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Golden:
    """One set. A test that takes an array which the set does not hold is skipped, and says so."""

    path: Path
    arrays: Mapping[str, NDArray[Any]] = field(repr=False)

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self.arrays:
            pytest.skip(f"{self.path.stem} does not store {name}")
        return self.arrays[name]

    def one_of(self, *names: str) -> NDArray[Any]:
        """The array that goes by one of these names."""
        return self[next((name for name in names if name in self.arrays), names[0])]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The settings of the official code."""
        settings: dict[str, Any] = json.loads(str(self.one_of("meta_json", "config_json")))
        return settings

    @property
    def weights_file(self) -> Path:
        """The official checkpoint of a set that holds no weights itself."""
        path = self.path.with_name(f"{self.path.stem}_weights.pth")
        if not path.is_file():
            pytest.skip(f"{path} is missing")
        return path

    def parts(self, kind: str, *needed: str) -> dict[int, str]:
        """Prefixes of the parts of one kind ("clip", "frame3/stage") by their numbers, in order, that hold `needed`."""
        found = {int(m[2]): m[1] for name in self.arrays if (m := re.match(rf"({re.escape(kind)}\D*(\d+)/)", name))}
        held = {number: found[number] for number in sorted(found)}
        if lacking := [name for name in needed if not any(prefix + name in self for prefix in held.values())]:
            pytest.skip(f"{self.path.stem} stores {', '.join(lacking)} of no {kind}")
        return {number: prefix for number, prefix in held.items() if all(prefix + name in self for name in needed)}

    @property
    def frames(self) -> list[NDArray[np.uint8]]:
        """The video, RGB [H, W, 3]."""
        return list(self.one_of("frames_rgb", "in/frames_rgb_uint8"))

    @property
    def resized(self) -> NDArray[np.uint8]:
        """The frames at the size that the network sees, [T, 3, h, w]."""
        return self.one_of("resized_rgb", "in/resized_uint8_chw")

    @property
    def valid_size(self) -> tuple[int, int]:
        """Height and width of a frame inside the network input."""
        height, width = self["image_size"] if "image_size" in self else self.resized.shape[2:]
        return int(height), int(width)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network input."""
        if "padded_size" in self:
            height, width = self["padded_size"]
        elif "net_input" in self:
            height, width = self["net_input"].shape[2:]
        else:
            height, width = (-(-side // STRIDE) * STRIDE for side in self.valid_size)
        return int(height), int(width)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """What is associated, [T, Q, C]."""
        return self.one_of("pred_embeds", "pred_embds")

    @cached_property
    def finals(self) -> Finals:
        name = next((name for name in MASKS if f"{name}_packed" in self), MASKS[0])
        shape = tuple(self[f"{name}_shape"])
        masks = np.unpackbits(self[f"{name}_packed"])[: np.prod(shape)].reshape(shape).astype(bool)
        return Finals(self.one_of(*SCORES), self.one_of(*LABELS), masks)


@cache
def load_golden(path: Path) -> Golden:
    with np.load(path) as stored:
        return Golden(path, {name: stored[name] for name in stored.files})


def class_names(count: int) -> tuple[str, ...]:
    return tuple(f"class {k}" for k in range(count))


def tight(stored: ArrayLike) -> float:
    """What float32 may differ by in a stage with stored inputs: 1e-4 times the larger of 1 and the largest value."""
    return 1e-4 * max(1.0, float(np.abs(stored).max(initial=0)))


Compare = Callable[[str, Mapping[str, ArrayLike]], None]


@contextmanager
def comparing(golden: Golden, bounds: Mapping[str, float] | None = None) -> Iterator[Compare]:
    """A function that compares computed arrays, by name below a prefix, with those of the set.

    They differ by no more than `bounds` has for the full name, or else than `tight` allows. What the set stores for
    other frames or clips only is passed over; a test with arrays that it stores for none is skipped at its end.
    """
    compared: set[str] = set()
    absent: set[str] = set()

    def compare(prefix: str, computed: Mapping[str, ArrayLike]) -> None:
        for name, given in computed.items():
            if prefix + name not in golden:
                absent.add(name)
                continue
            compared.add(name)
            stored = golden[prefix + name]
            bound = (bounds or {}).get(prefix + name, tight(stored))
            worst = np.abs(np.asarray(given).reshape(stored.shape) - stored).max(initial=0)
            assert worst <= bound, f"{prefix}{name} differs by {worst}, more than {bound}"

    yield compare
    if missing := absent - compared:
        pytest.skip(f"{golden.path.stem} does not store {', '.join(sorted(missing))}; the rest agrees")


def fit_officially(monkeypatch: pytest.MonkeyPatch, golden: Golden) -> None:
    """Frames are resized to the size that the official code chose for this set, and padded to the size it padded to.

    It chooses by the short side, visrt by what fits into a fixed input: the same only where one side fills it.
    """
    monkeypatch.setattr(image, "letterbox", lambda source, size: Letterbox(source, golden.valid_size, size))


def assert_same_finals(
    result: VideoResult, expected: Finals, score_tolerance: float = 1e-4, mask_share: float = 1e-4
) -> None:
    """As many tracks, and for each a different one of the same label: scores to the tolerance, and in all at most
    `mask_share` of the mask pixels different. Scores closer than the tolerance may change places.
    """
    empty = np.zeros(expected.masks.shape[2:], dtype=bool)
    made = [np.stack([decode(rle) if rle else empty for rle in track.masks]) for track in result.tracks]
    free, different = list(range(len(made))), 0
    assert len(made) == len(expected.scores)
    for score, label, masks in zip(expected.scores, expected.labels, expected.masks, strict=True):
        alike = [
            (int(np.count_nonzero(made[i] != masks)), i)
            for i in free
            if result.tracks[i].label == label and abs(result.tracks[i].score - score) <= score_tolerance
        ]
        assert alike, f"no track of label {label} and score {score} among {[(t.label, t.score) for t in result.tracks]}"
        pixels, best = min(alike)
        different += pixels
        free.remove(best)
    assert different <= mask_share * expected.masks.size
