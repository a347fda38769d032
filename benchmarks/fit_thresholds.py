"""Bundle and labelled data -> the bundle with thresholds fitted on them: the network runs once, association often.

Labelled clips are taken as they are. Of a labelled set of images, pseudo-videos are made: what is cut out of one image
crosses another, objects cover each other and come back. All the images are used, so a bundle that was trained on them
is judged on what it knows; give images it has not seen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from visrt.benchmarks.evaluate import evaluate_session
from visrt.benchmarks.record import ReplayEngine, record
from visrt.benchmarks.returning_videos import crowded, moving_clips
from visrt.calibration.criterion import Counts, Criterion
from visrt.calibration.thresholds import FLOORS, Fit, Trial, fit, floors_of, write_fitted
from visrt.export.workplace import Existing, check_target, workplace
from visrt.runtime.backends import EngineOptions, open_engines
from visrt.runtime.bundle import Bundle, open_bundle
from visrt.runtime.errors import DataError
from visrt.runtime.session import Session
from visrt.training.annotations import AnnotatedSet, load_class_map
from visrt.training.clips import ClipSettings
from visrt.training.pseudo_videos import write_clips
from visrt.training.set_formats import SetPlaces, load_annotations, read_set, scored
from visrt.training.sources import SourceSettings, load_pool

__all__ = ["ThresholdFit", "fit_thresholds"]

Progress = Callable[[str], None]
SEED = 5


@dataclass(frozen=True)
class ThresholdFit:
    """What to fit, on what, by what, and where to.

    data: the folder of a set as `visrt data check` takes it; of COCO photos, pseudo-videos are made. class_map: json
    of its categories to the bundle's classes. fps: of the videos. videos, frames: of the pseudo-videos, where there are
    only images.
    """

    bundle: Path
    out: Path
    data: Path
    class_map: Path | None = None
    criterion: Criterion = field(default_factory=Criterion)
    fps: float = 24.0
    videos: int = 24
    frames: int = 16
    existing: Existing = Existing.KEEP


def fit_thresholds(
    wanted: ThresholdFit, progress: Progress = lambda _: None, on_trial: Callable[[Trial], None] = lambda _: None
) -> Fit:
    """Writes the bundle with the fitted thresholds; raises before the long work for what can be known.

    The network's outputs lie in the temporary folder of the machine while it runs, some MB a frame.
    """
    check_target(wanted.out, wanted.existing)
    bundle = open_bundle(wanted.bundle)
    start = floors_of(bundle)
    with tempfile.TemporaryDirectory() as kept, threadpool_limits(1):
        annotated, made = _labelled(wanted, bundle, Path(kept), progress)
        _require_objects(wanted.data, annotated)
        measure = _measure(wanted, bundle, annotated, Path(kept) / "recording", progress)
        fitted = fit(measure, start, FLOORS[bundle.manifest.family], wanted.criterion, on_trial)
    with workplace(wanted.out) as folder:
        write_fitted(folder, bundle, fitted, _described(wanted, annotated, made))
    return fitted


def _labelled(wanted: ThresholdFit, bundle: Bundle, kept: Path, progress: Progress) -> tuple[AnnotatedSet, bool]:
    """The labelled clips, or pseudo-videos of the labelled images, made in `kept`; and whether they were made."""
    mapped = load_class_map(wanted.class_map) if wanted.class_map else None
    classes = bundle.manifest.classes
    read = read_set(SetPlaces(wanted.data))
    annotated = scored(read, classes, mapped)
    if read.format != "coco" or any(len(video.pictures) > 1 for video in annotated.videos):
        return annotated, False
    progress("making pseudo-videos")
    shape = bundle.manifest.input.image_size
    settings = crowded(ClipSettings(classes=classes, part="all"), shape, wanted.frames)
    source = SourceSettings("coco", str(wanted.data), class_map=str(wanted.class_map) if wanted.class_map else None)
    pool = load_pool([source], settings)
    if not pool.cutouts:
        raise DataError(
            f"{wanted.data}: no labelled object is large and whole enough to be cut out; expected masks of objects of "
            f"{', '.join(classes)}"
        )
    write_clips(islice(moving_clips(pool, settings, SEED), wanted.videos), classes, kept / "videos", SEED)
    return load_annotations(kept / "videos", classes), True


def _require_objects(data: Path, annotated: AnnotatedSet) -> None:
    if not any(track for video in annotated.videos for track in video.tracks if not track.crowd and any(track.masks)):
        raise DataError(
            f"{data}: holds no labelled object of {', '.join(annotated.classes)}; thresholds are fitted on objects "
            "that should be found"
        )


def _measure(
    wanted: ThresholdFit, bundle: Bundle, annotated: AnnotatedSet, recording: Path, progress: Progress
) -> Callable[[Mapping[str, float]], Counts]:
    """What floors make of the videos; the network has seen them all by then."""
    engines = open_engines(bundle, options=EngineOptions())
    record(bundle.manifest, engines["frame"], annotated, recording, on_video=lambda name: progress(f"recorded {name}"))
    engines["frame"].close()
    engines["frame"] = ReplayEngine(recording, bundle.manifest)

    def measure(floors: Mapping[str, float]) -> Counts:
        return evaluate_session(Session(bundle.manifest, engines, association=floors), annotated, wanted.fps).counts

    return measure


def _described(wanted: ThresholdFit, annotated: AnnotatedSet, made: bool) -> dict[str, Any]:
    """The data of the fit, for thresholds.json."""
    pseudo_videos = {"pseudo_videos": {"frames": wanted.frames, "seed": SEED}} if made else {}
    return {
        "folder": wanted.data.resolve().name,
        "videos": len(annotated.videos),
        "frames": sum(len(video.pictures) for video in annotated.videos),
        "fps": wanted.fps,
        **pseudo_videos,
    }
