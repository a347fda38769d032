"""A bundle, or a results file, against annotated videos: whole tracks by the official rule, and identity by frame."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

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
    "ReadPictures",
    "Reported",
    "VideoEvaluation",
    "as_boxes",
    "evaluate_official",
    "evaluate_reports",
    "evaluate_results",
    "evaluate_session",
    "filled",
    "official_report",
    "picture_of",
    "pictures_of",
    "report_of_tracks",
    "streamed_report",
    "tracks_in",
]

ReadPictures = Callable[[], Iterator[Image]]
"""Reads the pictures of a video from its start, each time it is called."""


@dataclass(frozen=True)
class VideoEvaluation:
    """One video: identity counts, and the seconds from its first picture read to its last result (0 for no stream)."""

    name: str
    counts: IdentityCounts
    seconds: float


@dataclass(frozen=True)
class Reported:
    """The reports for one video: whole tracks, and the objects of each frame. boxes: the best of each frame by itself,
    where an official rule gives them. seconds: of a stream, from the first picture read to the last result; 0 where it
    was not alone."""

    tracks: Sequence[Track]
    frames: Sequence[Sequence[TrackedObject]]
    boxes: Sequence[FrameBoxes] | None = None
    seconds: float | None = None


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
        """Frames a second of a stream with reading and decoding the pictures included; 0 where none was timed."""
        seconds = sum(video.seconds for video in self.videos)
        return self.counts.frames / seconds if seconds else 0.0


def evaluate_session(session: Session, annotated: AnnotatedSet, fps: float) -> Evaluation:
    """Run `session` over every video as a stream of `fps` frames a second; its output is causal.

    Of a set of boxes (`boxes_only`) it is the boxes that count.
    """
    reported = {video.id: streamed_report(session, video, fps) for video in annotated.videos}
    return evaluate_reports(annotated, reported)


def evaluate_official(session: Session, annotated: AnnotatedSet) -> Evaluation:
    """The family's official video-level result, by which published AP is measured; it reads each video twice."""
    return evaluate_reports(annotated, {video.id: official_report(session, video) for video in annotated.videos})


def streamed_report(session: Session, video: AnnotatedVideo, fps: float, read: ReadPictures | None = None) -> Reported:
    """What `session` gives for `video` as a stream of `fps` frames a second; boxes without a mask as their rectangles.

    read: in place of `pictures_of(video)`.
    """
    session.reset()
    results: list[FrameResult] = []
    started = perf_counter()
    for t, picture in enumerate(read() if read else pictures_of(video)):
        results += session.step(picture, t / fps)
    results += session.flush()
    seconds = perf_counter() - started
    objects = {result.index: tuple(_with_mask(one, video.size) for one in result.objects) for result in results}
    frames = [objects.get(t, ()) for t in range(len(video.pictures))]
    return Reported(tracks_in(frames), frames, seconds=seconds)


def official_report(
    session: Session, video: AnnotatedVideo, top_k: int | None = None, read: ReadPictures | None = None
) -> Reported:
    """The official result for `video` of the session's family; `top_k` as for `official_result`."""
    result = official_result(session, read or partial(pictures_of, video), top_k)
    tracks = [Track(track.label, track.masks, track.score) for track in result.tracks]
    return report_of_tracks(tracks, len(video.pictures), result.boxes)


def report_of_tracks(tracks: Sequence[Track], frames: int, boxes: Sequence[FrameBoxes] | None = None) -> Reported:
    """Whole tracks of a video of so many frames; their ids in each frame are their places."""
    return Reported(tracks, _frames_of(tracks, frames), boxes)


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


def evaluate_results(annotated: AnnotatedSet, predicted: Mapping[int, Sequence[Track]]) -> Evaluation:
    """Evaluate tracks from a file; ids are the tracks' places in it."""
    reported = {
        video.id: report_of_tracks(predicted.get(video.id, ()), len(video.pictures)) for video in annotated.videos
    }
    return evaluate_reports(annotated, reported)


def evaluate_reports(annotated: AnnotatedSet, reported: Mapping[int, Reported]) -> Evaluation:
    """Evaluate the reports for each video by its id; of a set of boxes (`boxes_only`) by their boxes."""
    if annotated.boxes_only:
        reported = {number: _boxes_of(one) for number, one in reported.items()}
    videos = [
        VideoEvaluation(video.name, follow(video, reported[video.id].frames), reported[video.id].seconds or 0.0)
        for video in annotated.videos
    ]
    truth = {video.id: video.tracks for video in annotated.videos}
    predicted = {number: one.tracks for number, one in reported.items()}
    precision = average_precision(truth, predicted, annotated.classes)
    by_frame = frame_ap50(_frames(annotated, reported), annotated.classes) if annotated.boxes_only else None
    return Evaluation(precision, total([video.counts for video in videos]), tuple(videos), reported, by_frame)


def tracks_in(frames: Sequence[Sequence[TrackedObject]]) -> list[Track]:
    """Whole tracks from the objects of each frame: the label with the largest sum of scores, the mean score."""
    seen: dict[int, dict[int, TrackedObject]] = defaultdict(dict)
    for t, objects in enumerate(frames):
        for one in objects:
            seen[one.id][t] = one
    return [_track(of_id, len(frames)) for of_id in seen.values()]


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
    return replace(track, masks=tuple(None if mask is None else _rectangle_of(mask) for mask in track.masks))


def _with_mask(one: TrackedObject, size: tuple[int, int]) -> TrackedObject:
    """`one` in a frame of `size` (height, width), its box as its mask if it has none."""
    return one if one.rle is not None else replace(one, rle=rectangle(one.box, size))


def _boxes_of(reported: Reported) -> Reported:
    """The same with every mask filled up to its box."""
    frames = [
        [replace(one, rle=None if one.rle is None else _rectangle_of(one.rle)) for one in objects]
        for objects in reported.frames
    ]
    return replace(reported, tracks=[filled(track) for track in reported.tracks], frames=frames)


def _rectangle_of(mask: Rle) -> Rle:
    height, width = mask["size"]
    return rectangle(box_px(mask), (height, width))


def _frames_of(tracks: Sequence[Track], frames: int) -> list[list[TrackedObject]]:
    return [
        [
            TrackedObject(i, track.label, track.score, (0, 0, 0, 0), mask)
            for i, track in enumerate(tracks)
            if (mask := track.masks[t]) is not None
        ]
        for t in range(frames)
    ]


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
