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

import re

from visrt.benchmarks.accuracy.contact_sheet import annotated_row, reported_row, sample_frames, sheet, write_sheet
from visrt.benchmarks.accuracy.eval_plots import plot_hota, plot_precision_recall
from visrt.benchmarks.accuracy.scores import Scores, worst_videos
from visrt.runtime.sinks.output import cannot_write
from visrt.runtime.sources.source import Image
from visrt.training.data.annotations import AnnotatedVideo

__all__ = ["evaluation_report", "rates", "remarks", "without_nan", "write_folder", "write_report"]


def evaluation_report(
    annotated: AnnotatedSet, scores: Mapping[str, Scores], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The figures of the first of `scores` and, under the name of its rule, of each other; with machine and settings.

    null where there was nothing to measure; no figures where `scores` are none. fps includes reading and decoding the
    pictures; 0 where no bundle ran as a stream.
    """
    first = next(iter(scores), None)
    report = {
        "settings": dict(settings),
        "machine": machine_and_packages(),
        "remarks": remarks(annotated, None if first is None else scores[first].evaluation),
    }
    for rule, one in scores.items():
        report |= _figures(annotated, one) if rule == first else {rule: _figures(annotated, one)}
    return {key: without_nan(value) for key, value in report.items()}


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """`report` as json."""
    write_atomically(path, [json.dumps(report, indent=1, allow_nan=False).encode() + b"\n"])


def remarks(annotated: AnnotatedSet, evaluation: Evaluation | None) -> list[str]:
    """What a reader of the figures must know: objects left out, videos without a report, nothing annotated, reports
    given twice."""
    if evaluation is None:
        return [*annotated.remarks, "the set has no annotations, so nothing is measured"]
    silent = [video.name for video in annotated.videos if not evaluation.reported[video.id].tracks]
    tracks = [track for video in annotated.videos for track in video.tracks if not track.crowd]
    twice = sum(_repeated(one.tracks) for one in evaluation.reported.values())
    found = [
        (not tracks, "no object is annotated, so recall, AP and HOTA cannot be measured"),
        (bool(silent), f"nothing is reported of {len(silent)} of {len(annotated.videos)} videos: {_some(silent)}"),
        (bool(twice), f"{twice} tracks are reported twice, with the same masks, class and score"),
        (annotated.boxes_only, "boxes are measured: overlaps are those of boxes, also where masks are given"),
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
        **_of_frames(evaluation),
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


def _of_frames(evaluation: Evaluation) -> dict[str, Any]:
    """The figures of single frames, where boxes were measured."""
    if evaluation.frame_ap50 is None:
        return {}
    mean, by_class = evaluation.frame_ap50
    return {"boxes_of_frames": {"ap50": mean, "by_class": dict(by_class)}}


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


WORST = 5
"""Videos drawn."""
FRAMES = 5
"""Frames of each of them."""


def write_folder(
    folder: Path, annotated: AnnotatedSet, scores: Mapping[str, Scores], report: Mapping[str, Any]
) -> None:
    """Writes figures.json and, where there are scores, precision_recall.png, hota.png and worst/*.png, the lowest HOTA
    of the first rule first."""
    write_report(folder / "figures.json", report)
    if not scores:
        return
    try:
        plot_precision_recall(scores, folder / "precision_recall.png")
        plot_hota(scores, folder / "hota.png")
        (folder / "worst").mkdir()
    except OSError as error:
        raise cannot_write(folder, error) from None
    videos = {video.id: video for video in annotated.videos}
    worst = worst_videos(next(iter(scores.values())), WORST)
    for place, number in enumerate(worst, start=1):
        name = re.sub(r"[^\w.-]+", "_", videos[number].name)
        picture = worst_sheet(videos[number], annotated, scores)
        write_sheet(folder / "worst" / f"{place:02d}_{name}.png", picture)


def worst_sheet(video: AnnotatedVideo, annotated: AnnotatedSet, scores: Mapping[str, Scores]) -> Image:
    """One video [H, W, 3]: annotated objects, below them those that each rule reports."""
    frames = sample_frames(len(video.pictures), FRAMES)
    rows = [(f"{video.name}: annotated, frames {frames}", annotated_row(video, frames, annotated.classes))]
    for rule, one in scores.items():
        found = one.by_video[video.id]
        caption = f"{rule}: HOTA {100 * found.hota:.1f}, IDF1 {100 * found.idf1:.1f}, {found.id_switches} id switches"
        reported = one.evaluation.reported[video.id].frames
        rows.append((caption, reported_row(video, reported, frames, annotated.classes)))
    return sheet(rows)
