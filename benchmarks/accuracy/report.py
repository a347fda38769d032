"""An evaluation as plain json values, with the machine and the settings it was measured with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visrt.benchmarks.accuracy.evaluate import Evaluation
from visrt.benchmarks.accuracy.identity import IdentityCounts
from visrt.runtime.machine import machine_and_packages
from visrt.runtime.sinks.output import write_atomically
from visrt.training.data.annotations import AnnotatedSet, Track

if TYPE_CHECKING:
    from visrt.benchmarks.accuracy.scores import Scores

__all__ = ["evaluation_report", "rates", "remarks", "without_nan", "write_report"]


def evaluation_report(
    annotated: AnnotatedSet, scores: Mapping[str, Scores], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The figures of the first of `scores` and, under the name of its rule, of each other; with machine and settings.

    null where there was nothing to measure. fps includes reading and decoding the pictures; 0 where no bundle ran as a
    stream.
    """
    first, *others = scores
    report = {
        "settings": dict(settings),
        "machine": machine_and_packages(),
        "remarks": remarks(annotated, scores[first].evaluation),
        **_figures(annotated, scores[first]),
        **{rule: _figures(annotated, scores[rule]) for rule in others},
    }
    return {key: without_nan(value) for key, value in report.items()}


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """`report` as json."""
    write_atomically(path, [json.dumps(report, indent=1, allow_nan=False).encode() + b"\n"])


def remarks(annotated: AnnotatedSet, evaluation: Evaluation) -> list[str]:
    """What a reader of the figures must know: objects left out, videos without a report, nothing annotated, reports
    given twice."""
    silent = [video.name for video in annotated.videos if not evaluation.reported[video.id].tracks]
    tracks = [track for video in annotated.videos for track in video.tracks if not track.crowd]
    twice = sum(_repeated(one.tracks) for one in evaluation.reported.values())
    found = [
        (not tracks, "no object is annotated, so recall, AP and HOTA cannot be measured"),
        (bool(silent), f"nothing is reported of {len(silent)} of {len(annotated.videos)} videos: {_some(silent)}"),
        (bool(twice), f"{twice} tracks are reported twice, with the same masks, class and score"),
    ]
    return [*annotated.remarks, *(text for applies, text in found if applies)]


def _repeated(tracks: Sequence[Track]) -> int:
    keys = [(t.label, t.score, tuple(mask and mask["counts"] for mask in t.masks)) for t in tracks]
    return len(keys) - len(set(keys))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _figures(annotated: AnnotatedSet, scores: Scores) -> dict[str, Any]:
    evaluation = scores.evaluation
    by_video = [scores.by_video[video.id] for video in annotated.videos]
    return {
        "figures": {**rates(evaluation.counts), "fps": evaluation.fps},
        "precision": asdict(evaluation.precision),
        "tracking": {**asdict(scores.tracking), "by_class": {n: asdict(one) for n, one in scores.by_class.items()}},
        "counts": evaluation.counts.as_json(),
        "videos": [
            {
                **asdict(video),
                "counts": video.counts.as_json(),
                "figures": rates(video.counts),
                "tracking": asdict(tracking),
            }
            for video, tracking in zip(evaluation.videos, by_video, strict=True)
        ],
    }


def rates(counts: IdentityCounts) -> dict[str, float]:
    """Rates (0..1) and duplicates per frame."""
    return {
        "recall": counts.recall,
        "duplicates_a_frame": counts.duplicates_a_frame,
        "id_switch_rate": counts.switch_rate,
        "lost_id_rate": counts.lost_id_rate,
    }


def without_nan(value: Any) -> Any:
    """`value` with null for NaN, which json does not know."""
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
