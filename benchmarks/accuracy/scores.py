"""A bundle or a results file against an annotated set: whole tracks by the official rule, HOTA by trackeval."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from visrt.benchmarks.accuracy.evaluate import Evaluation, evaluate_official, evaluate_results, evaluate_session
from visrt.benchmarks.accuracy.hota import TrackingFigures, figures_of, tracking_counts
from visrt.benchmarks.accuracy.results_file import load_results
from visrt.benchmarks.video_level.rules import official_rule
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.errors import UsageError
from visrt.runtime.session import Session
from visrt.training.data.annotations import AnnotatedSet, ClassMap
from visrt.training.data.set_formats import load_annotations

__all__ = ["BundleRun", "Measured", "Scores", "evaluate", "evaluate_results_file", "score", "worst_videos"]

OnVideo = Callable[[str, int, int], None]
"""Called with the rule, the number of videos that are done, and of all."""


@dataclass(frozen=True)
class Scores:
    """by_class: by name; by_video: by the video's id."""

    evaluation: Evaluation
    tracking: TrackingFigures
    by_class: Mapping[str, TrackingFigures]
    by_video: Mapping[int, TrackingFigures]


@dataclass(frozen=True)
class BundleRun:
    """How a bundle is run over the videos.

    association: settings in place of the bundle's or the `preset`'s. fps: frames a second of the videos, for ages.
    rules: "causal" is what a stream gives; "official" the family's published video-level result, which sees the future.
    """

    engine: str = "cpu"
    threads: int | None = None
    association: Mapping[str, Any] | None = None
    preset: str | None = None
    fps: float = 24.0
    rules: tuple[str, ...] = ("causal",)


@dataclass(frozen=True)
class Measured:
    """The scores by rule ("results" for a file), what they were measured on, and how it was made, for the report."""

    annotated: AnnotatedSet
    scores: dict[str, Scores]
    settings: dict[str, Any] = field(default_factory=dict)


def evaluate(
    bundle: Path,
    data: Path,
    class_map: ClassMap | None = None,
    run: BundleRun = BundleRun(),  # frozen
    on_video: OnVideo = lambda rule, done, of: None,
) -> Measured:
    """AP, HOTA, IDF1 and identity counts of `bundle` on the annotated set in the folder `data`.

    `class_map` names a class of the bundle, or None, for each category of the set. For example
    `evaluate(Path("bundles/default"), Path("street")).scores["causal"].tracking.hota`. Raises VisrtError.
    """
    opened = open_bundle(bundle)
    annotated = load_annotations(data, opened.manifest.classes, class_map)
    with Session.open(
        opened, run.engine, threads=run.threads, association=run.association, preset=run.preset
    ) as session:
        changed = run.association is not None and "official" in run.rules
        if changed and not official_rule(session.method).takes_settings:
            raise UsageError(
                "this family's official rule follows every query through the video: it takes no --association"
            )
        scores = {rule: score(annotated, _by_rule(rule, session, annotated, run.fps, on_video)) for rule in run.rules}
        return Measured(annotated, scores, _settings(run, session))


def _by_rule(rule: str, session: Session, annotated: AnnotatedSet, fps: float, on_video: OnVideo) -> Evaluation:
    done = iter(range(1, len(annotated.videos) + 1))
    if rule == "official":
        return evaluate_official(session, annotated, lambda _: on_video(rule, next(done), len(annotated.videos)))
    return evaluate_session(session, annotated, fps, lambda _: on_video(rule, next(done), len(annotated.videos)))


def _settings(run: BundleRun, session: Session) -> dict[str, Any]:
    """How it was run, what tells this bundle from another in its place, and the settings that were in force."""
    manifest = session.manifest
    return {
        "engine": run.engine,
        "threads": run.threads,
        "rule": run.rules[0] if len(run.rules) == 1 else "both",
        "fps_of_videos": run.fps,
        "bundle_name": manifest.name,
        "frame_sha256": manifest.graphs["frame"].file.sha256,
        "preset": run.preset,
        "association_settings": asdict(session.method.settings),
    }


def evaluate_results_file(results: Path, data: Path, class_map: ClassMap | None = None) -> Measured:
    """The same of a results file in the YouTube-VIS form."""
    annotated = load_annotations(data, class_map=class_map)
    evaluation = evaluate_results(annotated, load_results(results, annotated))
    return Measured(annotated, {"results": score(annotated, evaluation)})


def score(annotated: AnnotatedSet, evaluation: Evaluation) -> Scores:
    """The figures of the tracks that `evaluation` reports of `annotated`."""
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
