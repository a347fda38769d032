"""A bundle or a results file against an annotated set: whole tracks by the official rule, HOTA by trackeval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from visrt.benchmarks.accuracy.bundle_run import BundleRun, OnProgress, OpenedRun
from visrt.benchmarks.accuracy.evaluate import Evaluation, as_boxes, evaluate_reports, evaluate_results
from visrt.benchmarks.accuracy.hota import TrackingFigures, figures_of, tracking_counts
from visrt.benchmarks.accuracy.submission import without_category, write_results
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.errors import DataError
from visrt.runtime.json_file import read_json
from visrt.runtime.masks import Rle
from visrt.training.data.annotations import AnnotatedSet, ClassChoice, Track, require_annotations, with_classes
from visrt.training.data.formats.youtube_vis import masks_in
from visrt.training.data.json_faults import Faults, known_id, object_at, short, whole_number
from visrt.training.data.picture_folder import ReadRules
from visrt.training.data.segmentations import rle_of_box
from visrt.training.data.set_formats import SetPlaces, read_set

__all__ = [
    "BundleRun",
    "Measured",
    "Scores",
    "evaluate",
    "evaluate_results_file",
    "load_results",
    "score",
    "worst_videos",
]

DEFAULTS = BundleRun()
STRICT = ReadRules()


@dataclass(frozen=True)
class Scores:
    """by_class: by name; by_video: by the video's id."""

    evaluation: Evaluation
    tracking: TrackingFigures
    by_class: Mapping[str, TrackingFigures]
    by_video: Mapping[int, TrackingFigures]


@dataclass(frozen=True)
class Measured:
    """The scores by rule ("results" for a file), what they were measured on, and how it was made, for the report."""

    annotated: AnnotatedSet
    scores: dict[str, Scores]
    settings: dict[str, Any] = field(default_factory=dict)


def evaluate(
    bundle: Path,
    data: Path | SetPlaces,
    choice: ClassChoice | None = None,
    run: BundleRun = DEFAULTS,
    on_progress: OnProgress = lambda _: None,
    rules: ReadRules = STRICT,
) -> Measured:
    """AP, HOTA, IDF1 and identity counts of `bundle` on the annotated set at `data`.

    Of boxes, and AP of boxes in single frames besides, where the set or the bundle has boxes alone. With
    `run.write_results` the files for an evaluation server are written too, and a set may be without annotations: then
    there are no scores. rules: what becomes of videos that are not on disk, and of faulty annotations.

    `choice` maps categories of the set to classes of the bundle; what it does not name is left out and reported. For
    example `evaluate(Path("bundles/default"), Path("street")).scores["causal"].tracking.hota`. Raises VisrtError.
    """
    opened = open_bundle(bundle)
    places = data if isinstance(data, SetPlaces) else SetPlaces(data)
    read = read_set(places, missing=rules.missing, skip_faulty=rules.skip_faulty)
    annotated = with_classes(read.annotated, choice, read.path, opened.manifest.classes)
    if "masks" not in opened.manifest.graphs:
        annotated = as_boxes(annotated)
    opened_run = OpenedRun.of(opened, run, annotated)
    if run.write_results is None:
        require_annotations(annotated, read.path, "measuring")
        reported = {rule: opened_run.all_reports(rule, annotated.videos, on_progress) for rule in run.rules}
    else:
        reported = {run.rules[0]: write_results(run.write_results, opened_run, read, annotated, on_progress)}
        annotated = replace(annotated, remarks=(*annotated.remarks, *without_category(annotated)))
    scores = {rule: score(annotated, evaluate_reports(annotated, one)) for rule, one in reported.items() if one}
    return Measured(annotated, scores, opened_run.settings())


def evaluate_results_file(
    results: Path,
    data: Path | SetPlaces,
    choice: ClassChoice | None = None,
    rules: ReadRules = STRICT,
) -> Measured:
    """The same of a results file in the YouTube-VIS form, with masks or with boxes alone."""
    places = data if isinstance(data, SetPlaces) else SetPlaces(data)
    read = read_set(places, missing=rules.missing, skip_faulty=rules.skip_faulty)
    annotated = with_classes(read.annotated, choice, read.path)
    require_annotations(annotated, read.path, "measuring")
    predicted, boxes = load_results(results, annotated)
    if boxes:
        annotated = as_boxes(annotated)
    return Measured(annotated, {"results": score(annotated, evaluate_results(annotated, predicted))})


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


ANOTHER_SET = "the annotations'; these are results of another set, or of another version of it: "


def load_results(path: Path, annotated: AnnotatedSet) -> tuple[dict[int, list[Track]], bool]:
    """Predicted tracks of a results file by video id, and whether they are of boxes alone.

    [{video_id, category_id, score, segmentations}], or `bboxes` in place of `segmentations`, which become masks that
    fill them. Category ids are those of the annotations; tracks of categories that were left out are left out too.
    Raises DataError that names all faults by their json paths.
    """
    expected = "a list of tracks, each with video_id, category_id, score and segmentations"
    values = read_json(path, expected)
    if not isinstance(values, list):
        raise DataError(f"{path}: holds a {type(values).__name__}; expected {expected}")
    shapes = {video.id: (len(video.pictures), video.size) for video in annotated.videos}
    predicted: dict[int, list[Track]] = {video: [] for video in shapes}
    first: dict[int, int] = {}
    of_boxes = [i for i, value in enumerate(values) if isinstance(value, dict) and "segmentations" not in value]
    boxes = bool(of_boxes) and all("bboxes" in values[i] for i in of_boxes)
    if boxes and len(of_boxes) != len(values):
        raise DataError(f"{path}: [{of_boxes[0]}] has bboxes alone, others segmentations; expected one kind in a file")
    faults = Faults(path, remedy="write the results again")
    for i, value in enumerate(values):
        where = f"{path}: [{i}]"
        with faults.entry():
            entry = object_at(value, where)
            if "id" in entry and first.setdefault(number := whole_number(entry, "id", where), i) != i:
                raise DataError(f"{where}.id: {number} is the id of [{first[number]}] too; ids must differ")
            video = known_id(entry, "video_id", shapes, where, ANOTHER_SET)
            label = annotated.label_of[known_id(entry, "category_id", annotated.label_of, where, ANOTHER_SET)]
            masks = (_boxes_in if boxes else masks_in)(entry, where, *shapes[video])
            if label is not None:
                predicted[video].append(Track(label, masks, _score(entry, where)))
    faults.remarks()
    return predicted, boxes


def _boxes_in(entry: dict[str, Any], where: str, frames: int, size: tuple[int, int]) -> tuple[Rle | None, ...]:
    """The `bboxes` of a track of a video of so many frames of `size` (height, width), as masks that fill them."""
    boxes = entry["bboxes"]
    if not isinstance(boxes, list) or len(boxes) != frames:
        found = f"{len(boxes)} entries" if isinstance(boxes, list) else short(boxes)
        raise DataError(f"{where}.bboxes: expected one entry for each of {frames} frames; found {found}")
    return tuple(None if box is None else rle_of_box(box, f"{where}.bboxes[{t}]", size) for t, box in enumerate(boxes))


def _score(entry: dict[str, Any], where: str) -> float:
    score = entry.get("score")
    # A bound, not isfinite: that cannot take a whole number beyond the range of a float. NaN is below no bound.
    if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < 1e300:
        raise DataError(f"{where}.score: expected a finite number; found {short(score)}")
    return float(score)
