"""Bundle and labelled data -> the bundle with thresholds fitted on them: the network runs once, tracking often.

Labelled clips are used as they are. Labelled images become pseudo-videos: objects cut out of one image cross another,
cover each other and come back. All images are used, so give images that the bundle was not trained on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from visrt.benchmarks.accuracy.bundle_run import FPS
from visrt.benchmarks.accuracy.evaluate import as_boxes, evaluate_reports, streamed_report
from visrt.benchmarks.accuracy.identity import IdentityCounts
from visrt.benchmarks.accuracy.recorded_outputs import recorded_sizes
from visrt.benchmarks.accuracy.thresholds import (
    Criterion,
    Fit,
    Measure,
    Trial,
    fit,
    floors_of,
    values_of,
    write_fitted,
)
from visrt.benchmarks.datasets.returning_videos import crowded, moving_clips
from visrt.export.workplace import Existing, check_target, workplace
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.engines.backends import engines_by_size
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.errors import DataError
from visrt.runtime.session import Session
from visrt.training.data.annotations import AnnotatedSet, load_class_map, require_annotations, with_classes
from visrt.training.data.clips import ClipSettings
from visrt.training.data.pseudo_videos import write_clips
from visrt.training.data.set_formats import SetPlaces, load_annotations, read_set
from visrt.training.data.sources import SourceSettings, load_pool

__all__ = ["ThresholdFit", "fit_thresholds"]

Progress = Callable[[str], None]
SEED = 5


@dataclass(frozen=True)
class ThresholdFit:
    """Which bundle to fit, where to write it, on which data and by which criterion.

    data: the folder of a set as `visrt data check` takes it; of COCO photos, pseudo-videos are made. class_map: json
    of its categories to the bundle's classes. fps: of the videos; None: those of the set, 24 where it does not say.
    videos, frames: of the pseudo-videos, where there are only images.
    """

    bundle: Path
    out: Path
    data: Path
    class_map: Path | None = None
    criterion: Criterion = field(default_factory=Criterion)
    fps: float | None = None
    videos: int = 24
    frames: int = 16
    existing: Existing = Existing.KEEP


def fit_thresholds(
    settings: ThresholdFit, progress: Progress = lambda _: None, on_trial: Callable[[Trial], None] = lambda _: None
) -> Fit:
    """Writes the bundle with the fitted thresholds. What can be checked is checked before the long work.

    The network's outputs are in the machine's temporary folder meanwhile, some MB per frame.
    """
    check_target(settings.out, settings.existing)
    bundle = open_bundle(settings.bundle)
    start = floors_of(bundle)
    with tempfile.TemporaryDirectory() as temporary, threadpool_limits(1):
        annotated, made = _labelled(settings, bundle, Path(temporary), progress)
        _require_objects(settings.data, annotated)
        measure = _measure(settings, bundle, annotated, Path(temporary) / "recording", progress)
        fitted = fit(measure, start, values_of(bundle), settings.criterion, on_trial)
    with workplace(settings.out) as folder:
        write_fitted(folder, bundle, fitted, _data_values(settings, annotated, made))
    return fitted


def _labelled(settings: ThresholdFit, bundle: Bundle, folder: Path, progress: Progress) -> tuple[AnnotatedSet, bool]:
    """The labelled clips, or pseudo-videos of the labelled images, made in `folder`; and whether they were made."""
    mapped = load_class_map(settings.class_map) if settings.class_map else None
    classes = bundle.manifest.classes
    read = read_set(SetPlaces(settings.data))
    require_annotations(read.annotated, read.path, "fitting thresholds")
    annotated = with_classes(read.annotated, mapped, read.path, classes)
    if read.format != "coco" or any(len(video.pictures) > 1 for video in annotated.videos):
        return annotated, False
    progress("making pseudo-videos")
    shape = bundle.manifest.input.image_size
    clips = crowded(ClipSettings(classes=classes, part="all"), shape, settings.frames)
    source = SourceSettings(
        "coco",
        str(settings.data),
        str(read.path.absolute()),
        None if read.images is None else str(read.images.absolute()),
        class_map=str(settings.class_map) if settings.class_map else None,
    )
    pool = load_pool([source], clips)
    if not pool.pasted_labels:
        raise DataError(
            f"{settings.data}: no labelled object is large and whole enough to be cut out; expected masks of "
            f"objects of {', '.join(classes)}"
        )
    write_clips(islice(moving_clips(pool, clips, SEED), settings.videos), classes, folder / "videos", SEED)
    return load_annotations(folder / "videos", classes), True


def _require_objects(data: Path, annotated: AnnotatedSet) -> None:
    if not any(track for video in annotated.videos for track in video.tracks if not track.crowd and any(track.masks)):
        raise DataError(
            f"{data}: holds no labelled object of {', '.join(annotated.classes)}; thresholds are fitted on objects "
            "that should be found"
        )


def _measure(
    settings: ThresholdFit, bundle: Bundle, annotated: AnnotatedSet, recording: Path, progress: Progress
) -> Measure:
    """The function that gives the counts for floors. The first call runs the network over all videos; later ones run it
    only where tracking lets it see something else."""
    main, *others = recorded_sizes(engines_by_size(bundle, "cpu", EngineOptions()), recording)
    if "masks" not in bundle.manifest.graphs:
        annotated = as_boxes(annotated)
    known: set[int] = set()

    def measure(floors: Mapping[str, Any]) -> IdentityCounts:
        session = Session(bundle.manifest, main.engines, association=floors, states=main.states, other_sizes=others)
        reported = {}
        for video in annotated.videos:
            reported[video.id] = streamed_report(session, video, _fps(settings, annotated))
            if video.id not in known:
                known.add(video.id)
                progress(f"recorded {video.name}")
        return evaluate_reports(annotated, reported).counts

    return measure


def _fps(settings: ThresholdFit, annotated: AnnotatedSet) -> float:
    return settings.fps or annotated.fps or FPS


def _data_values(settings: ThresholdFit, annotated: AnnotatedSet, made: bool) -> dict[str, Any]:
    """The data of the fit, for thresholds.json."""
    pseudo_videos = {"pseudo_videos": {"frames": settings.frames, "seed": SEED}} if made else {}
    return {
        "folder": settings.data.resolve().name,
        "videos": len(annotated.videos),
        "frames": sum(len(video.pictures) for video in annotated.videos),
        "fps": _fps(settings, annotated),
        **pseudo_videos,
    }
