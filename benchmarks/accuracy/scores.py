"""An evaluation with its identity figures through trackeval: over all, by class and by video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from visrt.benchmarks.accuracy.evaluate import Evaluation
from visrt.benchmarks.accuracy.hota import TrackingFigures, figures_of, tracking_counts
from visrt.benchmarks.datasets.ytvis import AnnotatedSet

__all__ = ["Scores", "score", "worst_videos"]


@dataclass(frozen=True)
class Scores:
    """by_class: by name; by_video: by the video's id."""

    evaluation: Evaluation
    tracking: TrackingFigures
    by_class: Mapping[str, TrackingFigures]
    by_video: Mapping[int, TrackingFigures]


def score(annotated: AnnotatedSet, evaluation: Evaluation) -> Scores:
    """The figures of what `evaluation` says was reported of `annotated`."""
    counts = {video.id: tracking_counts(video, evaluation.reported[video.id].frames) for video in annotated.videos}
    return Scores(
        evaluation,
        figures_of(counts.values()),
        {name: figures_of(counts.values(), label) for label, name in enumerate(annotated.classes)},
        {number: figures_of([of_video]) for number, of_video in counts.items()},
    )


def worst_videos(scores: Scores, most: int) -> list[int]:
    """Ids of the videos with the lowest HOTA, lowest first; one without annotations has none."""
    known = {number: figures.hota for number, figures in scores.by_video.items() if figures.hota == figures.hota}
    return sorted(known, key=lambda number: known[number])[:most]
