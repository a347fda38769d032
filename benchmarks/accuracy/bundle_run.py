"""A bundle over the videos of a set, several at a time: each worker has a session of its own.

A video whose pictures are bad is reported and the others go on; any other error ends the run.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from threadpoolctl import ThreadpoolController

from visrt.benchmarks.accuracy.evaluate import ReadPictures, Reported, official_report, pictures_of, streamed_report
from visrt.benchmarks.video_level.rules import official_rule
from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.engines.backends import backend_named, threads_of_each
from visrt.runtime.engines.options import usable_cores
from visrt.runtime.errors import DataError, NumericalError, SourceError, UsageError, VisrtError
from visrt.runtime.methods.method import TrackingMethod
from visrt.runtime.methods.registry import method_of
from visrt.runtime.session import Session
from visrt.runtime.sinks.output import Existing
from visrt.runtime.sources.source import Image
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo

__all__ = ["BundleRun", "OnProgress", "OpenedRun", "Progress"]

FPS = 24.0
"""Frames a second of videos of which nobody says."""

JOBS_MOST = 4
"""Videos at a time where nobody says how many: each holds the network once more."""


@dataclass(frozen=True)
class BundleRun:
    """The options for running a bundle over the videos.

    association: settings in place of the bundle's or the `preset`'s. fps: frames a second of the videos, for ages;
    None: those at which the set is annotated, 24 where it does not say. rules: "causal" is what a stream gives;
    "official" the family's published video-level result, which sees the future. top_k: pairs of track and label in an
    official result; None: the number published for the family and the set. jobs: videos at a time, which share
    `threads`; None: one, so that frames a second are measured, but with `write_results` on a CPU up to four.
    write_results: the folder for results.json and results.zip. existing: whether results there are replaced. device:
    number of the GPU.
    """

    engine: str = "cpu"
    threads: int | None = None
    association: Mapping[str, Any] | None = None
    preset: str | None = None
    fps: float | None = None
    rules: tuple[str, ...] = ("causal",)
    top_k: int | None = None
    jobs: int | None = None
    write_results: Path | None = None
    existing: Existing = "refuse"
    device: int = 0

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"jobs is {self.jobs}; expected 1 or more")
        if self.top_k is not None and "official" not in self.rules:
            raise UsageError("--top-k is the number of tracks of an official result; give it with --rule official")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k is {self.top_k}; expected 1 or more")
        if self.write_results is not None and len(self.rules) > 1:
            raise UsageError(
                "--write-results takes the results of one rule; give --rule official for those by which AP is "
                "published, or --rule causal for those of a stream"
            )

    @property
    def videos_at_a_time(self) -> int:
        if self.jobs is not None:
            return self.jobs
        if self.write_results is None or backend_named(self.engine).on_gpu:
            return 1
        return min(self.threads or usable_cores(), JOBS_MOST)

    def on(self, annotated: AnnotatedSet, method: TrackingMethod[Any]) -> BundleRun:
        """With the numbers for this set and method where they were left open."""
        top_k = self.top_k
        if top_k is None and "official" in self.rules:
            top_k = official_rule(method).top_k.get(annotated.official or "")
        return replace(self, fps=self.fps or annotated.fps or FPS, top_k=top_k)


@dataclass(frozen=True)
class Progress:
    """At the start and after every video: how many of all are `done`, those of an earlier run included, and the frames
    of this run. fault: why the last video gave no result."""

    rule: str
    done: int
    of: int
    frames_done: int
    frames: int
    fault: str = ""


OnProgress = Callable[[Progress], None]
Outcome = tuple[AnnotatedVideo, Reported | VisrtError]
Outcomes = Generator[Outcome, None, None]
MakeReport = Callable[[Session, AnnotatedVideo, ReadPictures], Reported]


@dataclass(frozen=True)
class OpenedRun:
    """A bundle with the options to run it on a set; method: how it tracks with them."""

    bundle: Bundle
    method: TrackingMethod[Any]
    options: BundleRun

    @classmethod
    def of(cls, bundle: Bundle, run: BundleRun, annotated: AnnotatedSet) -> OpenedRun:
        """Raises UsageError for options that the family or its official rule does not take."""
        method = method_of(bundle.manifest, run.association, run.preset)
        if "official" in run.rules:
            _refuse_unused(run.association or {}, official_rule(method).settings)
        return cls(bundle, method, run.on(annotated, method))

    def reports(self, rule: str, videos: Sequence[AnnotatedVideo], on_progress: OnProgress, kept: int = 0) -> Outcomes:
        """Each of `videos` with its report, or with what is wrong with its pictures, as it is done, in any order.

        kept: videos of the set that were done before, for the progress. Close it to end the run.
        """
        jobs = min(self.options.videos_at_a_time, len(videos))
        lengths, frames_done = [len(video.pictures) for video in videos], 0
        of, frames, longest = kept + len(videos), sum(lengths), max(lengths, default=0)
        on_progress(Progress(rule, kept, of, 0, frames))
        outcomes = _Workers(partial(self._session, rule, jobs, longest), self._make(rule)).run(videos, jobs)
        with closing(outcomes):
            for done, (video, report) in enumerate(outcomes, start=kept + 1):
                frames_done += len(video.pictures)
                yield video, _untimed(report) if jobs > 1 else report
                fault = f"{video.name}: {report}" if isinstance(report, VisrtError) else ""
                on_progress(Progress(rule, done, of, frames_done, frames, fault))

    def all_reports(self, rule: str, videos: Sequence[AnnotatedVideo], on_progress: OnProgress) -> dict[int, Reported]:
        """By video; the first video that fails ends it, as the figures would be of another set."""
        reported = {}
        with closing(self.reports(rule, videos, on_progress)) as outcomes:
            for video, report in outcomes:
                if isinstance(report, VisrtError):
                    raise report
                reported[video.id] = report
        return reported

    def settings(self) -> dict[str, Any]:
        """The options, the identity of the bundle, and the settings that were in force, for a report."""
        run, manifest = self.options, self.bundle.manifest
        return {
            "engine": run.engine,
            "threads": run.threads,
            "jobs": run.videos_at_a_time,
            "rule": run.rules[0] if len(run.rules) == 1 else "both",
            "top_k": run.top_k,
            "fps_of_videos": run.fps,
            "bundle_name": manifest.name,
            "frame_sha256": manifest.graphs["frame"].sha256,
            "preset": run.preset,
            "association_settings": asdict(self.method.settings),
        }

    def _session(self, rule: str, jobs: int, longest: int) -> Session:
        """For videos of at most `longest` frames, which an official rule remembers whole."""
        run, association = self.options, dict(self.options.association or {})
        if rule == "official":
            association |= official_rule(self.method).room_for(self.method.settings, longest)
        threads = threads_of_each(run.threads, jobs)
        return Session.open(
            self.bundle,
            run.engine,
            threads=threads,
            device=run.device,
            association=association,
            preset=run.preset,
        )

    def _make(self, rule: str) -> MakeReport:
        fps, top_k = self.options.fps or FPS, self.options.top_k
        if rule == "official":
            return lambda session, video, read: official_report(session, video, top_k, read)
        return lambda session, video, read: streamed_report(session, video, fps, read)


def _refuse_unused(association: Mapping[str, Any], used: tuple[str, ...] | None) -> None:
    """Raises UsageError for settings other than those `used`; None is all."""
    unused = [] if used is None else [name for name in association if name not in used]
    if unused:
        raise UsageError(
            f"--association sets {', '.join(unused)}, but this family's official rule follows every query through the "
            f"video and takes {', '.join(used or ())} only; leave the others out"
        )


def _untimed(report: Reported | VisrtError) -> Reported | VisrtError:
    """Without its seconds, as those of videos side by side are not those of a stream."""
    if isinstance(report, VisrtError) or report.seconds is None:
        return report
    return replace(report, seconds=0.0)


class _StoppedError(Exception):
    """The run ends before its videos do."""


@dataclass
class _Workers:
    """Make reports, each with a session of its own: a thread opens, uses and closes its engine, as GPUs require.

    stop: set when the run ends early; workers end at their next picture.
    """

    open_session: Callable[[], Session]
    make: MakeReport
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, videos: Sequence[AnnotatedVideo], jobs: int) -> Outcomes:
        """Outcomes as they come, from the caller's thread where there is one job, so that Ctrl-C meets the engine."""
        # Set once for all: sessions that set and restore it at the same time would restore each other's.
        with ThreadpoolController().limit(limits=1, user_api="blas"):
            if jobs > 1:
                yield from self._side_by_side(videos, jobs)
            elif videos:
                with self.open_session() as session:
                    for video in videos:
                        yield video, self._report(session, video)

    def _side_by_side(self, videos: Sequence[AnnotatedVideo], jobs: int) -> Outcomes:
        waiting: queue.SimpleQueue[AnnotatedVideo] = queue.SimpleQueue()
        for video in videos:
            waiting.put(video)
        done: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        threads = [
            threading.Thread(target=self._work, args=(waiting, done), name=f"visrt-eval-{i}", daemon=True)
            for i in range(jobs)
        ]
        try:
            for thread in threads:
                thread.start()
            for _ in videos:
                outcome = done.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()

    def _work(
        self, waiting: queue.SimpleQueue[AnnotatedVideo], done: queue.SimpleQueue[Outcome | BaseException]
    ) -> None:
        try:
            with self.open_session() as session:
                while not self.stop.is_set():
                    video = waiting.get_nowait()
                    done.put((video, self._report(session, video)))
        except (queue.Empty, _StoppedError):
            pass
        except BaseException as error:
            done.put(error)

    def _report(self, session: Session, video: AnnotatedVideo) -> Reported | VisrtError:
        try:
            return self.make(session, video, lambda: self._pictures(video))
        except (SourceError, DataError, NumericalError) as error:
            return error

    def _pictures(self, video: AnnotatedVideo) -> Iterator[Image]:
        for picture in pictures_of(video):
            if self.stop.is_set():
                raise _StoppedError
            yield picture
