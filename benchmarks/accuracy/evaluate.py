"""A bundle, or a results file, against annotated videos: whole tracks by the official rule, and identity by frame."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from types import MappingProxyType

import numpy as np

from visrt.benchmarks.accuracy.ap import AveragePrecision, average_precision, frame_ap50
from visrt.benchmarks.accuracy.identity import IdentityCounts, follow, total
from visrt.benchmarks.video_level.rules import official_result
from visrt.benchmarks.video_level.tracks import FrameBoxes
from visrt.runtime.errors import DataError
from visrt.runtime.masks import Rle, rectangle
from visrt.runtime.results import FrameResult, TrackedObject
from visrt.runtime.session import Session
from visrt.runtime.sources.image_folder import read_image
from visrt.runtime.sources.source import Image, VideoSettings
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track
from visrt.training.data.segmentations import box_px

__all__ = [
    "Evaluation",
    "Reported",
    "VideoEvaluation",
    "as_boxes",
    "evaluate_official",
    "evaluate_results",
    "evaluate_session",
    "filled",
    "picture_of",
    "pictures_of",
    "tracks_of",
]


@dataclass(frozen=True)
class VideoEvaluation:
    """One video: identity counts, and the seconds from its first picture read to its last result (0 for a file)."""

    name: str
    counts: IdentityCounts
    seconds: float


@dataclass(frozen=True)
class Reported:
    """The reports for one video: whole tracks, and the objects of each frame. boxes: the best of each frame by itself,
    where an official rule gives them."""

    tracks: Sequence[Track]
    frames: Sequence[Sequence[TrackedObject]]
    boxes: Sequence[FrameBoxes] | None = None


@dataclass(frozen=True)
class Evaluation:
    """All videos: AP and AR of whole tracks, identity counts, each video by itself, and by its id what was reported.

    frame_ap50: where boxes are measured, their AP in single frames, the mean over classes and by class; None for masks.
    """

    precision: AveragePrecision
    counts: IdentityCounts
    videos: tuple[VideoEvaluation, ...]
    reported: Mapping[int, Reported]
    frame_ap50: tuple[float, Mapping[str, float]] | None = None

    @property
    def fps(self) -> float:
        """Frames a second with reading and decoding the pictures included; 0 for a results file."""
        seconds = sum(video.seconds for video in self.videos)
        return self.counts.frames / seconds if seconds else 0.0


def evaluate_session(
    session: Session,
    annotated: AnnotatedSet,
    fps: float,
    on_video: Callable[[VideoEvaluation], None] = lambda _: None,
) -> Evaluation:
    """Run `session` over every video as a stream of `fps` frames a second; its output is causal.

    Of a set of boxes (`boxes_only`) it is the boxes that count.
    """
    reported: dict[int, Reported] = {}
    videos = []
    for video in annotated.videos:
        reported[video.id], seconds = _streamed(session, video, fps, annotated.boxes_only)
        videos.append(VideoEvaluation(video.name, follow(video, reported[video.id].frames), seconds))
        on_video(videos[-1])
    return _evaluation(annotated, reported, videos)


def evaluate_official(
    session: Session, annotated: AnnotatedSet, on_video: Callable[[str], None] = lambda _: None
) -> Evaluation:
    """The family's official video-level result, by which published AP is measured; it reads each video twice."""
    predicted, boxes = {}, {}
    for video in annotated.videos:
        result = official_result(session, partial(pictures_of, video))
        tracks = [Track(track.label, track.masks, track.score) for track in result.tracks]
        predicted[video.id] = [filled(track) for track in tracks] if annotated.boxes_only else tracks
        if result.boxes is not None:
            boxes[video.id] = result.boxes
        on_video(video.name)
    return evaluate_results(annotated, predicted, boxes)


def pictures_of(video: AnnotatedVideo) -> Iterator[Image]:
    """The pictures in order."""
    return (picture_of(video, t) for t in range(len(video.pictures)))


def picture_of(video: AnnotatedVideo, t: int) -> Image:
    """Picture `t`; masks of another size than the annotated ones would overlap with nothing."""
    path = video.pictures[t]
    picture = read_image(path, VideoSettings().max_pixels)
    if picture.shape[:2] != video.size:
        found, annotated = (f"{height} x {width}" for height, width in (picture.shape[:2], video.size))
        raise DataError(f"{path}: {found} pixels (height x width), its annotations say {annotated}; they must agree")
    return picture


def evaluate_results(
    annotated: AnnotatedSet,
    predicted: Mapping[int, Sequence[Track]],
    boxes: Mapping[int, Sequence[FrameBoxes]] = MappingProxyType({}),
) -> Evaluation:
    """Evaluate tracks from a file; ids are the tracks' places in it. boxes: of each frame by itself, by video."""
    reported = {}
    for video in annotated.videos:
        tracks = predicted.get(video.id, ())
        reported[video.id] = Reported(tracks, _frames_of(tracks, len(video.pictures)), boxes.get(video.id))
    videos = [VideoEvaluation(v.name, follow(v, reported[v.id].frames), 0.0) for v in annotated.videos]
    return _evaluation(annotated, reported, videos)


def tracks_of(results: Sequence[FrameResult], frames: int) -> list[Track]:
    """Whole tracks from the results of one video: the label with the largest sum of scores, the mean score."""
    seen: dict[int, dict[int, TrackedObject]] = defaultdict(dict)
    for result in results:
        for one in result.objects:
            seen[one.id][result.index] = one
    return [_track(objects, frames) for objects in seen.values()]


def _track(objects: Mapping[int, TrackedObject], frames: int) -> Track:
    weights: dict[int, float] = defaultdict(float)
    for one in objects.values():
        weights[one.label] += one.score
    masks = tuple(objects[t].rle if t in objects else None for t in range(frames))
    score = sum(one.score for one in objects.values()) / len(objects)
    return Track(max(weights, key=lambda label: weights[label]), masks, score)


def as_boxes(annotated: AnnotatedSet) -> AnnotatedSet:
    """The set with every mask filled up to its box, so that overlaps are those of boxes."""
    videos = [replace(video, tracks=tuple(map(filled, video.tracks))) for video in annotated.videos]
    return replace(annotated, videos=tuple(videos), boxes_only=True)


def filled(track: Track) -> Track:
    """The track with every mask filled up to its box; an empty one stays empty."""
    size = next(((mask["size"][0], mask["size"][1]) for mask in track.masks if mask is not None), (0, 0))
    boxes = [None if mask is None else box_px(mask) for mask in track.masks]
    return replace(track, masks=tuple(None if box is None else rectangle(box, size) for box in boxes))


def _streamed(session: Session, video: AnnotatedVideo, fps: float, boxes: bool) -> tuple[Reported, float]:
    """What the session reports, with masks filled up to `boxes`, and the seconds it takes with the pictures read."""
    session.reset()
    results: list[FrameResult] = []
    started = perf_counter()
    for t, picture in enumerate(pictures_of(video)):
        results += session.step(picture, t / fps)
    results += session.flush()
    seconds = perf_counter() - started
    results = [_filled_up(result) for result in results] if boxes else results
    objects = {result.index: result.objects for result in results}
    frames = len(video.pictures)
    return Reported(tracks_of(results, frames), [objects.get(t, ()) for t in range(frames)]), seconds


def _filled_up(result: FrameResult) -> FrameResult:
    objects = tuple(replace(one, rle=rectangle(one.box, result.size)) for one in result.objects)
    return replace(result, objects=objects)


def _frames_of(tracks: Sequence[Track], frames: int) -> list[list[TrackedObject]]:
    return [
        [
            TrackedObject(i, track.label, track.score, (0, 0, 0, 0), mask)
            for i, track in enumerate(tracks)
            if (mask := track.masks[t]) is not None
        ]
        for t in range(frames)
    ]


def _evaluation(
    annotated: AnnotatedSet, reported: Mapping[int, Reported], videos: Sequence[VideoEvaluation]
) -> Evaluation:
    truth = {video.id: video.tracks for video in annotated.videos}
    predicted = {number: one.tracks for number, one in reported.items()}
    precision = average_precision(truth, predicted, annotated.classes)
    counts = total([video.counts for video in videos])
    by_frame = frame_ap50(_frames(annotated, reported), annotated.classes) if annotated.boxes_only else None
    return Evaluation(precision, counts, tuple(videos), reported, by_frame)


def _frames(annotated: AnnotatedSet, reported: Mapping[int, Reported]) -> Iterator[tuple[FrameBoxes, FrameBoxes]]:
    """The annotated and the reported boxes of each frame of all videos."""
    for video in annotated.videos:
        one = reported[video.id]
        for t in range(len(video.pictures)):
            truth = [(track.label, 1.0, mask, track.crowd) for track in video.tracks if (mask := track.masks[t])]
            found = [(each.label, each.score, mask, False) for each in one.frames[t] if (mask := each.rle)]
            yield _frame_boxes(truth), _frame_boxes(found) if one.boxes is None else one.boxes[t]


def _frame_boxes(objects: Sequence[tuple[int, float, Rle, bool]]) -> FrameBoxes:
    """Boxes of (label, score, mask, crowd), without those of empty masks."""
    boxes = np.array([box_px(mask) for _, _, mask, _ in objects], dtype=np.float32).reshape(-1, 4)
    labels, scores, crowd = (np.array([one[i] for one in objects]) for i in (0, 1, 3))
    kept = boxes[:, 2:].all(axis=1)
    return FrameBoxes(
        labels.astype(np.int64)[kept], scores.astype(np.float32)[kept], boxes[kept], crowd.astype(bool)[kept]
    )
