"""Score and similarity floors for a deployment: the ones that serve a criterion best on labelled videos.

Which of them there are depends on the family. They are changed one at a time, until no change of one alone helps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visrt.calibration.criterion import Counts, Criterion
from visrt.runtime.bundle import MANIFEST, Bundle
from visrt.runtime.errors import DataError, UsageError
from visrt.runtime.families import family_of
from visrt.runtime.manifest import FileSpec, Manifest

__all__ = ["FLOORS", "THRESHOLDS", "Fit", "Trial", "fit", "floors_of", "write_fitted"]

THRESHOLDS = "thresholds.json"
ROUNDS_MAX = 4

SCORES = tuple(round(0.05 * step, 2) for step in range(1, 20))
LOW_SCORES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SIMILARITIES = tuple(round(0.1 * step, 1) for step in range(10))

FLOORS: dict[str, dict[str, tuple[float, ...]]] = {
    "minvis": {"birth_score": SCORES, "keep_score": SCORES, "revive_similarity": SIMILARITIES},
    "ctvis": {
        "birth_score": LOW_SCORES,
        "keep_score": LOW_SCORES,
        "show_score": (0.0, *LOW_SCORES),
        "similarity_floor": SIMILARITIES,
    },
}
"""By family, the settings that are fitted and the values that are tried."""

Floors = dict[str, float]
Measure = Callable[[Mapping[str, float]], Counts]


@dataclass(frozen=True)
class Trial:
    """Floors that were tried, what they made of the videos, and the criterion's value."""

    floors: Floors
    counts: Counts
    value: float


@dataclass(frozen=True)
class Fit:
    """before: the floors the bundle had; best: the ones chosen; trials: all in the order they were tried."""

    criterion: Criterion
    before: Trial
    best: Trial
    trials: tuple[Trial, ...]


def floors_of(bundle: Bundle) -> Floors:
    """The floors in force in `bundle`, by setting. Raises UsageError for a family that has none to fit."""
    family = bundle.manifest.family
    settings = family_of(bundle.manifest).settings
    if family not in FLOORS:
        raise UsageError(
            f"{bundle.folder}: the thresholds of family {family!r} cannot be fitted; expected a bundle of "
            f"{', '.join(FLOORS)}"
        )
    return {name: float(getattr(settings, name)) for name in FLOORS[family]}


def fit(
    measure: Measure,
    start: Floors,
    values: Mapping[str, tuple[float, ...]],
    criterion: Criterion,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> Fit:
    """The floors that serve `criterion` best by `measure`, from `start` on, among `values` of each.

    Where several serve equally, the one nearest to what was there stays. Raises DataError if no object was wanted.
    """
    tried: dict[tuple[float, ...], Trial] = {}

    def tried_with(floors: Floors) -> Trial:
        key = tuple(floors.values())
        if key not in tried:
            counts = measure(floors)
            tried[key] = Trial(floors, counts, criterion.of(counts))
            on_trial(tried[key])
        return tried[key]

    before = best = tried_with(start)
    if not before.counts.gt:
        raise DataError("no labelled object is in sight in any frame; give videos that show what the bundle is for")
    for _ in range(ROUNDS_MAX):
        last = best
        for name in values:
            best = max(map(tried_with, _around(best.floors, name, values[name])), key=lambda trial: trial.value)
        if best is last:
            break
    return Fit(criterion, before, best, tuple(tried.values()))


def _around(floors: Floors, name: str, values: tuple[float, ...]) -> Iterator[Floors]:
    """`floors`, then the same with other values of `name`, nearest first: of equals the first is chosen."""
    yield floors
    for value in sorted(values, key=lambda value: abs(value - floors[name])):
        yield _in_order({**floors, name: value}, name)


def _in_order(floors: Floors, name: str) -> Floors:
    """An object that is born is kept: of the two scores the one that is not `name` gives way."""
    if name == "birth_score":
        return {**floors, "keep_score": min(floors["keep_score"], floors["birth_score"])}
    if name == "keep_score":
        return {**floors, "birth_score": max(floors["keep_score"], floors["birth_score"])}
    return floors


def write_fitted(folder: Path, bundle: Bundle, fitted: Fit, data: Mapping[str, Any]) -> Manifest:
    """Writes to `folder` a copy of `bundle` with the fitted floors and thresholds.json, the figures that chose them.

    data: what they were fitted on, for people.
    """
    old = bundle.manifest
    report = json.dumps(told(fitted, data), indent=1, allow_nan=False).encode() + b"\n"
    spec = FileSpec(file=THRESHOLDS, bytes=len(report), sha256=hashlib.sha256(report).hexdigest())
    association = {**old.association, **fitted.best.floors}
    manifest = old.model_copy(update={"association": association, "thresholds": spec})
    for file in old.files():
        if file != old.thresholds:
            (folder / file.file).write_bytes(bundle.read(file))
    (folder / THRESHOLDS).write_bytes(report)
    (folder / MANIFEST).write_text(manifest.model_dump_json(by_alias=True, indent=1) + "\n")
    return manifest


def told(fitted: Fit, data: Mapping[str, Any]) -> dict[str, Any]:
    """The figures as plain json values."""
    return {
        "data": dict(data),
        "criterion": "(found - duplicate * duplicates - spurious * spurious - changed_id * (switches + lost_ids)) "
        "/ wanted",
        "prices": vars(fitted.criterion),
        "before": _told(fitted.before),
        "chosen": _told(fitted.best),
        "tried": [_told(trial) for trial in fitted.trials],
    }


def _told(trial: Trial) -> dict[str, Any]:
    counts = {name: getattr(trial.counts, field) for name, field in COUNTED.items()}
    return {"floors": trial.floors, "criterion": trial.value, "counts": counts}


COUNTED = {
    "wanted": "gt",
    "found": "tp",
    "duplicates": "duplicates",
    "spurious": "fp",
    "switches": "id_switches",
    "lost_ids": "lost_ids",
}
"""Names of counts in thresholds.json, and in `Counts`."""
