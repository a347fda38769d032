"""A bundle, or a results file, against annotated videos: whole tracks by the official rule, and identity by frame."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from visrt.benchmarks.accuracy.ap import AveragePrecision, average_precision
from visrt.benchmarks.accuracy.identity import IdentityCounts, follow, total
from visrt.benchmarks.video_level.rules import official_result
from visrt.runtime.errors import DataError
from visrt.runtime.results import FrameResult, TrackedObject
from visrt.runtime.session import Session
from visrt.runtime.sources.image_folder import read_image
from visrt.runtime.sources.source import Image, VideoSettings
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track

__all__ = [
    "Evaluation",
    "Reported",
    "VideoEvaluation",
    "evaluate_official",
    "evaluate_results",
    "evaluate_session",
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
    """The reports for one video: whole tracks, and the objects of each frame."""

    tracks: Sequence[Track]
    frames: Sequence[Sequence[TrackedObject]]


@dataclass(frozen=True)
class Evaluation:
    """All videos: AP and AR of whole tracks, identity counts, each video by itself, and by its id what was reported."""

    precision: AveragePrecision
    counts: IdentityCounts
    videos: tuple[VideoEvaluation, ...]
    reported: Mapping[int, Reported]

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
    """Run `session` over every video as a stream of `fps` frames a second; its output is causal."""
    reported: dict[int, Reported] = {}
    videos = []
    for video in annotated.videos:
        reported[video.id], seconds = _streamed(session, video, fps)
        videos.append(VideoEvaluation(video.name, follow(video, reported[video.id].frames), seconds))
        on_video(videos[-1])
    return _evaluation(annotated, reported, videos)


def evaluate_official(
    session: Session, annotated: AnnotatedSet, on_video: Callable[[str], None] = lambda _: None
) -> Evaluation:
    """The family's official video-level result, by which published AP is measured; it reads each video twice."""
    predicted = {}
    for video in annotated.videos:
        result = official_result(session, partial(pictures_of, video))
        predicted[video.id] = [Track(track.label, track.masks, track.score) for track in result.tracks]
        on_video(video.name)
    return evaluate_results(annotated, predicted)


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
    reported = {}
    for video in annotated.videos:
        tracks = predicted.get(video.id, ())
        reported[video.id] = Reported(tracks, _frames_of(tracks, len(video.pictures)))
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


def _streamed(session: Session, video: AnnotatedVideo, fps: float) -> tuple[Reported, float]:
    """What the session reports, and the seconds it takes with the pictures read."""
    session.reset()
    results: list[FrameResult] = []
    started = perf_counter()
    for t, picture in enumerate(pictures_of(video)):
        results += session.step(picture, t / fps)
    results += session.flush()
    seconds = perf_counter() - started
    objects = {result.index: result.objects for result in results}
    frames = len(video.pictures)
    return Reported(tracks_of(results, frames), [objects.get(t, ()) for t in range(frames)]), seconds


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
    return Evaluation(precision, total([video.counts for video in videos]), tuple(videos), reported)
