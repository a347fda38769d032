"""Thresholds for a deployment: floors of scores and similarities, and the time after which an object is lost.

Which there are depends on the family. Those that maximise a criterion on labelled videos are found by changing one at a
time, until no single change helps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visrt.benchmarks.accuracy.identity import JSON_NAMES, IdentityCounts
from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.bundles.writer import copied_files, file_spec, write_bundle
from visrt.runtime.errors import DataError, UsageError
from visrt.runtime.methods.ctvis import CtVisSettings
from visrt.runtime.methods.genvis import GenVisSettings
from visrt.runtime.methods.inspro import InsProSettings
from visrt.runtime.methods.minvis import MinVisSettings
from visrt.runtime.methods.registry import METHODS, method_of
from visrt.runtime.methods.videomt import VideoMtSettings

__all__ = [
    "FLOORS",
    "THRESHOLDS",
    "Criterion",
    "Fit",
    "Measure",
    "Trial",
    "fit",
    "floors_of",
    "values_of",
    "write_fitted",
]

THRESHOLDS = "thresholds.json"
ROUNDS_MAX = 4

SCORES = tuple(round(0.05 * step, 2) for step in range(1, 20))
LOW_SCORES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SIMILARITIES = tuple(round(0.1 * step, 1) for step in range(10))
LOST_S = (0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, None)
NEVER_S = 7 * 24 * 3600.0
"""Seconds that None stands for, where values are compared: an object that is never lost."""

Floor = float | None
Floors = Mapping[str, Floor]
Values = Mapping[str, Sequence[Floor]]
Measure = Callable[[Mapping[str, Any]], IdentityCounts]

FLOORS: dict[type, Values] = {
    MinVisSettings: {"birth_score": SCORES, "keep_score": SCORES, "revive_similarity": SIMILARITIES},
    CtVisSettings: {
        "birth_score": LOW_SCORES,
        "keep_score": LOW_SCORES,
        "show_score": (0.0, *LOW_SCORES),
        "similarity_floor": SIMILARITIES,
    },
    GenVisSettings: {"birth_score": SCORES, "keep_score": SCORES, "lost_s": LOST_S},
    InsProSettings: {"birth_score": LOW_SCORES, "keep_score": LOW_SCORES, "lost_s": LOST_S},
    VideoMtSettings: {
        "birth_score": SCORES,
        "keep_score": SCORES,
        "revive_similarity": SIMILARITIES,
        "lost_s": LOST_S,
    },
}
"""By a family's association settings, those that are fitted and the values that are tried."""

COUNTED = ("gt", "tp", "duplicates", "fp", "id_switches", "lost_ids")
"""The counts that thresholds.json lists for each trial."""


@dataclass(frozen=True)
class Criterion:
    """Objects found, less a price for each fault, as a share of the labelled objects; 1 is perfect.

    With all prices at 1 this is MOTA (Bernardin and Stiefelhagen, 2008), with ids lost over a gap counted as switches.
    Prices are in missed objects. spurious is 0 where not every object is labelled.
    """

    duplicate: float = 1.0
    spurious: float = 1.0
    changed_id: float = 1.0

    def __post_init__(self) -> None:
        for name, price in vars(self).items():
            if not 0 <= price < float("inf"):
                raise UsageError(f"price {name} is {price}; expected 0 or more, in missed objects")

    def score(self, counts: IdentityCounts) -> float:
        """NaN where no object is labelled."""
        faults = self.duplicate * counts.duplicates + self.spurious * counts.fp
        faults += self.changed_id * (counts.id_switches + counts.lost_ids)
        return (counts.tp - faults) / counts.gt if counts.gt else float("nan")


@dataclass(frozen=True)
class Trial:
    """Floors that were tried, the counts they led to, and the criterion's value."""

    floors: Floors
    counts: IdentityCounts
    value: float


@dataclass(frozen=True)
class Fit:
    """before: the floors the bundle had; best: the ones chosen; trials: all in the order they were tried."""

    criterion: Criterion
    before: Trial
    best: Trial
    trials: tuple[Trial, ...]


def values_of(bundle: Bundle) -> Values:
    """The settings of `bundle` that are fitted, with the values to try; UsageError for a family that has none."""
    settings = type(method_of(bundle.manifest).settings)
    if settings not in FLOORS:
        known = [name for name, family in METHODS.items() if type(family({}).settings) in FLOORS]
        raise UsageError(
            f"{bundle.folder}: the thresholds of family {bundle.manifest.family!r} cannot be fitted; expected a bundle "
            f"of {', '.join(known)}"
        )
    return FLOORS[settings]


def floors_of(bundle: Bundle) -> Floors:
    """The floors in force in `bundle`, by setting. Raises UsageError for a family that has none to fit."""
    names, settings = values_of(bundle), method_of(bundle.manifest).settings
    return {name: getattr(settings, name) for name in names}


def fit(
    measure: Measure,
    start: Floors,
    values: Values,
    criterion: Criterion,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> Fit:
    """The floors among `values` that maximise `criterion` of what `measure` counts, searched from `start` on.

    Of equally good values the one nearest to the present one is taken. Raises DataError if no object is labelled.
    """
    tried: dict[tuple[Floor, ...], Trial] = {}

    def tried_with(floors: Floors) -> Trial:
        key = tuple(floors.values())
        if key not in tried:
            counts = measure(floors)
            tried[key] = Trial(floors, counts, criterion.score(counts))
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


def _around(floors: Floors, name: str, values: Sequence[Floor]) -> Iterator[Floors]:
    """`floors`, then the same with other values of `name`, nearest first, as of equals the first is taken."""
    yield floors
    present = _number(floors[name])
    for value in sorted(values, key=lambda value: abs(_number(value) - present)):
        yield _in_order({**floors, name: value}, name)


def _number(value: Floor) -> float:
    return NEVER_S if value is None else value


def _in_order(floors: Floors, name: str) -> Floors:
    """A new track is kept, so keep_score <= birth_score: of the two the one that is not `name` is adjusted."""
    keep, birth = (_number(floors[score]) for score in ("keep_score", "birth_score"))
    if name == "birth_score":
        return {**floors, "keep_score": min(keep, birth)}
    if name == "keep_score":
        return {**floors, "birth_score": max(keep, birth)}
    return floors


def write_fitted(folder: Path, bundle: Bundle, fitted: Fit, data: Mapping[str, Any]) -> Manifest:
    """Writes to `folder` a copy of `bundle` with the fitted floors and thresholds.json, the figures that chose them.

    data: what they were fitted on, for people.
    """
    old = bundle.manifest
    report = json.dumps(_values(fitted, data), indent=1, allow_nan=False).encode() + b"\n"
    update = {"association": {**old.association, **fitted.best.floors}, "thresholds": file_spec(THRESHOLDS, report)}
    manifest = old.model_copy(update=update)
    write_bundle(folder, manifest, copied_files(bundle, replaced=[old.thresholds]) | {THRESHOLDS: report})
    return manifest


def _values(fitted: Fit, data: Mapping[str, Any]) -> dict[str, Any]:
    """The figures as plain json values."""
    return {
        "data": dict(data),
        "criterion": "(found - duplicate * duplicates - spurious * spurious - changed_id * (switches + lost_ids)) "
        "/ wanted",
        "prices": vars(fitted.criterion),
        "before": _trial_values(fitted.before),
        "chosen": _trial_values(fitted.best),
        "tried": [_trial_values(trial) for trial in fitted.trials],
    }


def _trial_values(trial: Trial) -> dict[str, Any]:
    counts = {JSON_NAMES.get(name, name): getattr(trial.counts, name) for name in COUNTED}
    return {"floors": trial.floors, "criterion": trial.value, "counts": counts}
