"""The folder of an evaluation: its figures, the plots, and the worst videos as contact sheets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visrt.benchmarks.accuracy.contact_sheet import annotated_row, reported_row, sample_frames, sheet, write_sheet
from visrt.benchmarks.accuracy.eval_plots import plot_hota, plot_precision_recall
from visrt.benchmarks.accuracy.report import write_report
from visrt.benchmarks.accuracy.scores import Scores, worst_videos
from visrt.runtime.sinks.output import cannot_write
from visrt.runtime.sources.source import Image
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo

__all__ = ["write_folder"]

WORST = 5
"""Videos drawn."""
FRAMES = 5
"""Frames of each of them."""


def write_folder(
    folder: Path, annotated: AnnotatedSet, scores: Mapping[str, Scores], report: Mapping[str, Any]
) -> None:
    """Writes figures.json, precision_recall.png, hota.png and worst/*.png, the lowest HOTA of the first rule first."""
    write_report(folder / "figures.json", report)
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
