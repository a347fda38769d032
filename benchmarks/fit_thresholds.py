"""Bundle and labelled data -> the bundle with thresholds fitted on them: the network runs once, association often.

Labelled clips are taken as they are. Of a labelled set of images, pseudo-videos are made: what is cut out of one image
crosses another, objects cover each other and come back. All the images are used, so a bundle that was trained on them
is judged on what it knows; give images it has not seen.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from visrt.benchmarks.accuracy.evaluate import evaluate_session
from visrt.benchmarks.accuracy.recorded_outputs import ReplayEngine, record_outputs
from visrt.benchmarks.datasets.returning_videos import crowded, moving_clips
from visrt.benchmarks.datasets.ytvis import ANNOTATIONS, AnnotatedSet, load_annotations, load_class_map
from visrt.calibration.criterion import Counts, Criterion
from visrt.calibration.thresholds import FLOORS, Fit, Trial, fit, floors_of, write_fitted
from visrt.export.workplace import Existing, check_target, workplace
from visrt.runtime.backends import EngineOptions, open_engines
from visrt.runtime.bundle import Bundle, open_bundle
from visrt.runtime.errors import DataError
from visrt.runtime.session import Session
from visrt.training.clips import ClipSettings
from visrt.training.pseudo_videos import write_clips
from visrt.training.sources import SourceSettings, load_pool

__all__ = ["ThresholdFit", "fit_thresholds", "is_image_set"]

Progress = Callable[[str], None]
SEED = 5


@dataclass(frozen=True)
class ThresholdFit:
    """What to fit, on what, by what, and where to.

    data: a folder with instances.json of YouTube-VIS and JPEGImages/, or of COCO and images/. class_map: json of its
    categories to the bundle's classes. fps: of the videos. videos, frames: of the pseudo-videos, where there are only
    images.
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
        annotated = _labelled(wanted, bundle, Path(kept), progress)
        _require_objects(wanted.data, annotated)
        measure = _measure(wanted, bundle, annotated, Path(kept) / "recording", progress)
        fitted = fit(measure, start, FLOORS[bundle.manifest.family], wanted.criterion, on_trial)
    with workplace(wanted.out) as folder:
        write_fitted(folder, bundle, fitted, _told(wanted, annotated))
    return fitted


def is_image_set(folder: Path) -> bool:
    """Whether the annotations in `folder` are of images, not of videos; what they hold is checked where it is read."""
    path = folder / ANNOTATIONS
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read as json ({error}); give a folder with {ANNOTATIONS} of YouTube-VIS and "
            "JPEGImages/, or of COCO and images/"
        ) from None
    return isinstance(values, dict) and "images" in values and "videos" not in values


def _labelled(wanted: ThresholdFit, bundle: Bundle, kept: Path, progress: Progress) -> AnnotatedSet:
    """The labelled clips, or pseudo-videos of the labelled images, made in `kept`."""
    mapped = load_class_map(wanted.class_map) if wanted.class_map else None
    classes = bundle.manifest.classes
    if not is_image_set(wanted.data):
        return load_annotations(wanted.data, classes, mapped)
    progress("making pseudo-videos")
    shape = bundle.manifest.input.image_size
    settings = crowded(ClipSettings(classes=classes, part="all"), shape, wanted.frames)
    source = SourceSettings("coco", str(wanted.data), class_map=_written_map(mapped, kept))
    pool = load_pool([source], settings)
    if not pool.cutouts:
        raise DataError(
            f"{wanted.data}: no labelled object is large and whole enough to be cut out; expected masks of objects of "
            f"{', '.join(classes)}"
        )
    write_clips(islice(moving_clips(pool, settings, SEED), wanted.videos), classes, kept / "videos", SEED)
    return load_annotations(kept / "videos", classes)


def _written_map(mapped: Mapping[str, str | None] | None, kept: Path) -> str | None:
    """The class map without what it leaves out, as training reads it; the path."""
    if mapped is None:
        return None
    path = kept / "classes.json"
    path.write_text(json.dumps({name: target for name, target in mapped.items() if target is not None}))
    return str(path)


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
    record_outputs(
        bundle.manifest, engines["frame"], annotated, recording, on_video=lambda name: progress(f"recorded {name}")
    )
    engines["frame"].close()
    engines["frame"] = ReplayEngine(recording, bundle.manifest)

    def measure(floors: Mapping[str, float]) -> Counts:
        return evaluate_session(Session(bundle.manifest, engines, association=floors), annotated, wanted.fps).counts

    return measure


def _told(wanted: ThresholdFit, annotated: AnnotatedSet) -> dict[str, Any]:
    made = {"pseudo_videos": {"frames": wanted.frames, "seed": SEED}} if is_image_set(wanted.data) else {}
    return {
        "folder": wanted.data.resolve().name,
        "videos": len(annotated.videos),
        "frames": sum(len(video.pictures) for video in annotated.videos),
        "fps": wanted.fps,
        **made,
    }
