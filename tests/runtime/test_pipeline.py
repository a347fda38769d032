"""Many streams through one set of engines: each as if it were alone, every frame accounted for."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import ROOT
from fake_sources import FakeSource, ListSink
from fakes import colour_session, patches
from fakes_genvis import genvis_session
from numpy.typing import NDArray

from visrt.runtime.arrays import Feed, Floats, Tensor
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.engines.backends import open_engines
from visrt.runtime.engines.engine import Engine, HostEngine
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.errors import EngineError, NumericalError, SourceError, UsageError
from visrt.runtime.mask_resize import MaskResize
from visrt.runtime.masks import encode_region
from visrt.runtime.pipeline import Job, Pipeline, PipelineSettings
from visrt.runtime.results import FrameResult
from visrt.runtime.session import Session, SessionSettings
from visrt.runtime.sinks.outcome import SourceOutcome
from visrt.runtime.sinks.output import Sink
from visrt.runtime.sources.source import Image, VideoFrame
from visrt.runtime.sources.video import open_source, read_video
from visrt.runtime.times import StageTimes

Frame = NDArray[np.uint8]

BUNDLE = ROOT / "bundles" / "default"
CLIP = ROOT / "clips" / "demo.mp4"


def moving(index: int, seed: int = 0) -> Frame:
    """Two patches that move; which colours and where from depends on the stream's `seed`."""
    return patches(
        (128, 192), (seed % 4, 8 + 4 * index, 16 + seed, 48, 40), ((seed + 1) % 4, 120 - 4 * index, 72, 40, 40)
    )


class Frames(FakeSource):
    """A file, or a camera, that shows `pictures`, each after `pause_s`."""

    def __init__(
        self, pictures: list[Frame], pause_s: float = 0, live: bool = False, then: Exception | None = None
    ) -> None:
        super().__init__(len(pictures), live, then)
        self._pictures, self._pause_s = pictures, pause_s

    def __iter__(self) -> Iterator[VideoFrame]:
        for frame in super().__iter__():
            time.sleep(self._pause_s)
            yield replace(frame, image=self._pictures[frame.index])


class Kept:
    """A sink that keeps results, and the frame it was given with each; `pause_s` slow."""

    def __init__(self, pause_s: float = 0) -> None:
        self.results: list[FrameResult] = []
        self.images: list[Image] = []
        self._pause_s = pause_s

    def write(self, result: FrameResult, image: Image) -> None:
        time.sleep(self._pause_s)
        self.results.append(result)
        self.images.append(image)

    def close(self) -> None: ...


@dataclass
class WatchedEngine(HostEngine):
    """Notes how many frames each call of `engine` has, is `pause_s` slow, and fails at call `fails_at`."""

    engine: Engine
    pause_s: float = 0
    fails_at: int | None = None
    batches: list[int] = field(default_factory=list)

    @property
    def provider(self) -> str:
        return self.engine.provider

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        self.batches.append(feeds["images"].shape[0])
        if self.fails_at is not None and len(self.batches) > self.fails_at:
            raise EngineError("the GPU is gone")
        time.sleep(self.pause_s)
        return self.engine(feeds)

    def close(self) -> None:
        self.engine.close()


def pipeline_of(session: Session, settings: PipelineSettings, frame: WatchedEngine | None = None) -> Pipeline:
    """A pipeline on the engines of a session."""
    network = session.network
    engines = {**network._engines, "frame": frame or network._engines["frame"]}
    return Pipeline(session.manifest, engines, settings, states=network.states)


def colour_pipeline(
    settings: PipelineSettings, pause_s: float = 0, fails_at: int | None = None
) -> tuple[Pipeline, WatchedEngine]:
    session = colour_session()
    frame = WatchedEngine(session.network._engines["frame"], pause_s, fails_at)
    return pipeline_of(session, settings, frame), frame


def tracked(
    pipeline: Pipeline, jobs: list[Job], stopped: Callable[[], bool] = lambda: False
) -> dict[int, SourceOutcome]:
    """How each job ended, by its place in `jobs`; keys are in the order of the ends."""
    outcomes: dict[int, SourceOutcome] = {}
    pipeline.track(jobs, lambda job, outcome: outcomes.update({jobs.index(job): outcome}), stopped)
    return outcomes


def alone(session: Session, pictures: list[Frame]) -> list[FrameResult]:
    session.reset()
    results = [result for at, picture in enumerate(pictures) for result in session.step(picture, at / 10)]
    return results + session.flush()


def videos() -> list[list[Frame]]:
    """Three videos of other lengths, pictures and sizes, one of which changes its size on the way."""
    changing = [moving(t, 2) for t in range(4)] + [patches((96, 192), (1, 20, 20, 40, 40))] * 5
    return [[moving(t) for t in range(11)], [moving(t, 1)[:, :160] for t in range(6)], changing]


@pytest.mark.parametrize("make_session", [colour_session, genvis_session], ids=["frame by frame", "in clips"])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_every_stream_gets_what_it_gets_alone(make_session: Callable[[], Session], in_flight: int) -> None:
    settings = PipelineSettings(streams=3, session=SessionSettings(in_flight=in_flight))
    sinks = [Kept() for _ in videos()]
    pipeline = pipeline_of(make_session(), settings)

    outcomes = tracked(pipeline, [Job(Frames(v), [sink]) for v, sink in zip(videos(), sinks, strict=True)])

    for at, (video, sink) in enumerate(zip(videos(), sinks, strict=True)):
        assert sink.results == alone(make_session(), video)
        assert all(np.array_equal(*pair) for pair in zip(sink.images, video, strict=True))
        assert (outcomes[at].end, outcomes[at].processed) == ("complete", len(video))
        assert outcomes[at].events.frames == len(video)


def test_masks_are_resized_and_encoded_in_no_thread_of_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    resize, encode = MaskResize.source_mask, encode_region

    def noted_resize(self: MaskResize, logits: Floats) -> Any:
        threads.add(threading.current_thread().name)
        return resize(self, logits)

    def noted_encode(*region: Any) -> Any:
        threads.add(threading.current_thread().name)
        return encode(*region)

    monkeypatch.setattr(MaskResize, "source_mask", noted_resize)
    monkeypatch.setattr("visrt.runtime.mask_resize.encode_region", noted_encode)
    sinks = [Kept() for _ in videos()]
    pipeline = pipeline_of(colour_session(), PipelineSettings(streams=3))
    outcomes = tracked(pipeline, [Job(Frames(v), [sink]) for v, sink in zip(videos(), sinks, strict=True)])

    assert threads == {"visrt-writer"}
    assert all(outcome.ms["masks"] > 0 for outcome in outcomes.values())
    assert all(result.objects for sink in sinks for result in sink.results)


def test_a_result_that_cannot_be_made_ends_its_source_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    resize = MaskResize.source_mask

    def failing(self: MaskResize, logits: Floats) -> Any:
        if self.fit.source == (100, 150):
            raise NumericalError("no mask can be made")
        return resize(self, logits)

    monkeypatch.setattr(MaskResize, "source_mask", failing)
    picture = patches((100, 150), (0, 8, 16, 48, 40))
    kept = Kept()
    pipeline = pipeline_of(colour_session(), PipelineSettings(streams=2))
    outcomes = tracked(pipeline, [Job(Frames([picture] * 9)), Job(Frames([moving(t) for t in range(9)]), [kept])])

    assert [outcomes[at].end for at in range(2)] == ["failed", "complete"]
    assert "no mask can be made" in outcomes[0].reason
    assert len(kept.results) == 9


def test_streams_share_calls_and_none_takes_two_places_before_another_has_one() -> None:
    pipeline, frame = colour_pipeline(PipelineSettings(streams=5, batch=2), pause_s=0.02)
    seen: list[int] = []
    jobs = [
        Job(Frames([moving(t)] * 8), [ListSink()], progress=lambda _, at=at: seen.append(at))  # type: ignore[misc]
        for at, t in enumerate(range(5))
    ]

    tracked(pipeline, jobs)

    assert max(frame.batches) == 2
    assert sum(frame.batches) == 40
    steady = seen[5:-10]
    for end in range(5, len(steady)):
        counts = [steady[:end].count(at) for at in range(5)]
        assert max(counts) - min(counts) <= 3, seen


def test_the_calls_of_many_streams_are_as_wide_as_there_are_streams() -> None:
    pipeline, frame = colour_pipeline(PipelineSettings(streams=4), pause_s=0.01)

    tracked(pipeline, [Job(Frames([moving(t) for t in range(6)])) for _ in range(4)])

    assert max(frame.batches) == 4
    assert len(frame.batches) < 24, frame.batches


def test_reading_network_and_writing_overlap() -> None:
    busy: list[str] = []
    together: set[frozenset[str]] = set()

    def at_work(name: str) -> None:
        busy.append(name)
        together.add(frozenset(busy))
        time.sleep(0.02)
        busy.remove(name)

    class Reading(Frames):
        def __iter__(self) -> Iterator[VideoFrame]:
            for frame in super().__iter__():
                at_work("read")
                yield frame

    class Writing(Kept):
        def write(self, result: FrameResult, image: Image) -> None:
            at_work("write")

    class Computing(WatchedEngine):
        def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
            at_work("compute")
            return super().__call__(feeds)

    session = colour_session()
    computing = Computing(session.network._engines["frame"])
    pipeline = pipeline_of(session, PipelineSettings(streams=1), computing)
    tracked(pipeline, [Job(Reading([moving(0)] * 20), [Writing()])])
    assert frozenset({"read", "compute", "write"}) in together


def test_a_source_that_fails_stops_no_other() -> None:
    sinks: list[Sink] = [Kept(), Kept(), ListSink(fails_at=3), Kept()]
    jobs = [
        Job(Frames([moving(t) for t in range(9)]), [sinks[0]]),
        Job(Frames([moving(t, 1) for t in range(5)], then=SourceError("the cable was pulled")), [sinks[1]]),
        Job(Frames([moving(t) for t in range(60)]), [sinks[2]]),
        Job(Frames([np.zeros((0, 5, 3), np.uint8)]), [sinks[3]]),
    ]
    pipeline, _ = colour_pipeline(PipelineSettings())

    outcomes = tracked(pipeline, jobs)

    assert [outcomes[at].end for at in range(4)] == ["complete", "failed", "failed", "failed"]
    assert [outcomes[at].exit_code for at in range(4)] == [0, 4, 4, 2]
    assert [outcomes[at].reason for at in (1, 2)] == ["the cable was pulled", "disk full"]
    assert isinstance(sinks[1], Kept)
    assert len(sinks[1].results) == 5, "what came before the end is written"
    assert outcomes[2].processed < 60, "the run went on although nothing was written any more"
    assert all(isinstance(job.source, Frames) and job.source.closed for job in jobs)


def test_a_stream_of_bad_numbers_ends_alone() -> None:
    session = colour_session()
    engine = session.network._engines["frame"]

    @dataclass
    class Poisoned(WatchedEngine):
        """NaN for pictures that are black."""

        def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
            outputs = super().__call__(feeds)
            images = feeds["images"]
            assert isinstance(images, np.ndarray)
            outputs["class_logits"].numpy()[~images.any(axis=(1, 2, 3))] = np.nan
            return outputs

    pipeline = pipeline_of(session, PipelineSettings(), Poisoned(engine))
    black = [np.zeros((64, 96, 3), np.uint8)] * 30

    outcomes = tracked(pipeline, [Job(Frames(black)), Job(Frames([moving(t) for t in range(30)]))])

    assert (outcomes[0].end, outcomes[0].exit_code) == ("failed", 5)
    assert "10 frames in a row" in outcomes[0].reason
    assert (outcomes[1].end, outcomes[1].processed) == ("complete", 30)


def test_slow_sinks_of_one_stream_lose_nothing_and_hold_up_no_other() -> None:
    other_done = threading.Event()

    class Stuck(Kept):
        """Writes nothing before the other stream has ended."""

        def write(self, result: FrameResult, image: Image) -> None:
            assert other_done.wait(60)
            super().write(result, image)

    stuck = Stuck()
    jobs = [Job(Frames([moving(0)] * 20), [stuck]), Job(Frames([moving(1)] * 20), [Kept()])]
    ends: list[Job] = []

    def done(job: Job, outcome: SourceOutcome) -> None:
        ends.append(job)
        other_done.set()

    pipeline, _ = colour_pipeline(PipelineSettings())
    pipeline.track(jobs, done)

    assert ends == [jobs[1], jobs[0]]
    assert len(stuck.results) == 20


def test_of_a_live_source_the_newest_frame_is_taken_and_every_other_is_counted() -> None:
    pictures = [np.full((64, 96, 3), at, np.uint8) for at in range(100)]
    camera, sink = Frames(pictures, pause_s=0.002, live=True), Kept()
    pipeline, _ = colour_pipeline(PipelineSettings(), pause_s=0.02)

    outcomes = tracked(pipeline, [Job(camera, [sink]), Job(Frames([moving(0)] * 5))])

    assert outcomes[0].dropped > 0
    assert outcomes[0].captured == 100
    shown = [int(image[0, 0, 0]) for image in sink.images]
    assert shown == sorted(shown)
    assert shown[-1] == 99
    assert outcomes[1].dropped == 0


def test_more_sources_than_places_wait_and_are_opened_one_by_one() -> None:
    open_now: list[int] = []
    most = 0

    def jobs() -> Iterator[Job]:
        nonlocal most
        for at in range(6):
            open_now.append(at)
            most = max(most, len(open_now))
            yield Job(Frames([moving(t) for t in range(4)]))

    pipeline, _ = colour_pipeline(PipelineSettings(streams=2))
    ends: list[str] = []

    def done(job: Job, outcome: SourceOutcome) -> None:
        ends.append(outcome.end)
        open_now.pop()

    pipeline.track(jobs(), done)
    assert ends == ["complete"] * 6
    assert most == 2


def test_an_engine_that_fails_ends_what_is_at_work_and_what_was_done_is_written() -> None:
    pipeline, _ = colour_pipeline(PipelineSettings(streams=2), fails_at=5)
    sinks = [Kept(), Kept()]

    outcomes = tracked(pipeline, [Job(Frames([moving(t) for t in range(30)]), [sink]) for sink in sinks])

    for at, sink in enumerate(sinks):
        assert (outcomes[at].end, outcomes[at].exit_code, outcomes[at].reason) == ("failed", 5, "the GPU is gone")
        assert 1 <= len(sink.results) <= 5


@pytest.mark.parametrize("in_flight", [1, 2])
def test_calls_that_are_too_wide_for_the_engine_are_made_stream_by_stream(in_flight: int) -> None:
    @dataclass
    class Narrow(WatchedEngine):
        """Has memory for one frame."""

        def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
            if feeds["images"].shape[0] > 1:
                raise EngineError("out of memory")
            return super().__call__(feeds)

    session = colour_session()
    narrow = Narrow(session.network._engines["frame"], pause_s=0.005)
    settings = PipelineSettings(streams=3, session=SessionSettings(in_flight=in_flight))
    sinks = [Kept() for _ in videos()]
    pipeline = pipeline_of(session, settings, narrow)

    tracked(pipeline, [Job(Frames(video), [sink]) for video, sink in zip(videos(), sinks, strict=True)])

    for video, sink in zip(videos(), sinks, strict=True):
        assert sink.results == alone(colour_session(), video)


def test_with_random_stalls_and_failures_every_frame_is_accounted_for() -> None:
    random = np.random.default_rng(3)
    jobs, lengths = [], []
    for at in range(12):
        length, live = int(random.integers(1, 25)), bool(at % 3 == 0)
        cable = SourceError("the cable was pulled") if at % 4 == 3 else None
        frames = Frames([moving(t % 9, at) for t in range(length)], random.uniform(0, 0.004), live, cable)
        fails_at = 5 if at % 5 == 4 else None
        jobs.append(Job(frames, [ListSink(fails_at, pause_s=random.uniform(0, 0.006))]))
        lengths.append(length)
    pipeline, _ = colour_pipeline(PipelineSettings(streams=5, batch=3), pause_s=0.002)

    outcomes = tracked(pipeline, jobs)

    assert len(outcomes) == 12
    for at, outcome in outcomes.items():
        [sink] = jobs[at].sinks
        assert isinstance(sink, ListSink)
        assert sink.closed
        assert outcome.captured <= lengths[at]
        if at % 5 != 4:
            assert outcome.captured == lengths[at]
            assert len(sink.got) == outcome.processed
            assert outcome.end == ("failed" if at % 4 == 3 else "complete")
        if at % 3:
            assert outcome.dropped == 0


def test_a_limit_and_a_stop_end_streams_cleanly() -> None:
    first, second = Kept(), Kept()
    pipeline, _ = colour_pipeline(PipelineSettings())
    jobs = [Job(Frames([moving(0)] * 50), [first], limit=7), Job(Frames([moving(0)] * 5000), [second])]

    outcomes = tracked(pipeline, jobs, stopped=lambda: len(second.results) > 30)

    assert (outcomes[0].end, len(first.results)) == ("complete", 7)
    assert (outcomes[1].end, outcomes[1].exit_code) == ("interrupted", 130)
    assert len(second.results) == outcomes[1].processed < 5000
    assert [result.index for result in second.results] == list(range(outcomes[1].processed))


def test_a_bug_leaves_no_thread_and_no_file_open() -> None:
    class Buggy(ListSink):
        def write(self, result: FrameResult, image: Image) -> None:
            raise ZeroDivisionError

    before = set(threading.enumerate())
    pipeline, _ = colour_pipeline(PipelineSettings())
    jobs = [Job(Frames([moving(0)] * 50), [sink]) for sink in (Buggy(), ListSink())]
    with pytest.raises(ZeroDivisionError):
        tracked(pipeline, jobs)
    pipeline.close()
    assert all(isinstance(job.source, Frames) and job.source.closed for job in jobs)
    assert not set(threading.enumerate()) - before


def test_threads_files_and_memory_stay_as_they_are_over_many_frames() -> None:
    """Two streams, one of which is a camera that is too fast. What waits in queues is a few small frames."""
    held: dict[int, tuple[int, int, int]] = {}
    outcomes: list[SourceOutcome] = []
    stop = threading.Event()

    def done(job: Job, outcome: SourceOutcome) -> None:
        outcomes.append(outcome)
        stop.set()

    def note(result: FrameResult) -> None:
        if result.index in (100, 599):
            gc.collect()
            open_files = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
            held[result.index] = threading.active_count(), open_files, tracemalloc.get_traced_memory()[0]

    picture = patches((64, 96), (0, 8, 16, 48, 40))
    camera = Frames([picture] * 100_000, pause_s=0.002, live=True)
    jobs = [Job(Frames([picture] * 600), progress=note), Job(camera)]
    pipeline, _ = colour_pipeline(PipelineSettings(streams=2))
    tracemalloc.start()
    try:
        pipeline.track(jobs, done, stop.is_set)
    finally:
        tracemalloc.stop()

    assert outcomes[0].processed == 600
    early, late = held[100], held[599]
    assert late[0] <= early[0]
    assert late[1] <= early[1]
    assert late[2] - early[2] < 400_000, "a frame is 18,432 bytes"


def test_stages_of_every_stream_are_measured() -> None:
    pipeline, _ = colour_pipeline(PipelineSettings(session=SessionSettings()), pause_s=0.01)

    outcomes = tracked(pipeline, [Job(Frames([moving(t) for t in range(6)], 0.005)) for _ in range(2)])

    for outcome in outcomes.values():
        assert set(outcome.ms) == {"decode", "write", *StageTimes().ms_per_frame()}
        assert outcome.ms["decode"] >= 5
        assert outcome.ms["frame_engine"] >= 5, "half a call of two frames that takes 10 ms"
        assert outcome.fps > 0


@pytest.mark.parametrize(("streams", "batch", "calls"), [(0, 1, 1), (1, 0, None), (1, None, 0)])
def test_settings_that_make_no_sense_are_refused(streams: int, batch: int | None, calls: int | None) -> None:
    with pytest.raises(UsageError, match="1 or more"):
        PipelineSettings(streams, batch, calls)


def test_a_cpu_gets_a_call_of_one_frame_for_each_core_and_a_gpu_one_wide_call() -> None:
    assert PipelineSettings(streams=4).on("cpu", cores=2) == (1, 2)
    assert PipelineSettings(streams=1).on("cpu", cores=8) == (1, 1)
    assert PipelineSettings(streams=4).on("tensorrt", cores=2) == (8, 1)
    assert PipelineSettings(streams=4, batch=3, calls=5).on("cpu", cores=2) == (3, 5)


def test_several_calls_at_a_time_change_no_result() -> None:
    at_work, most, lock = 0, 0, threading.Lock()

    class Counting(WatchedEngine):
        def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
            nonlocal at_work, most
            with lock:
                at_work += 1
                most = max(most, at_work)
            outputs = super().__call__(feeds)
            with lock:
                at_work -= 1
            return outputs

    session = colour_session()
    counting = Counting(session.network._engines["frame"], pause_s=0.01)
    sinks = [Kept() for _ in videos()]
    pipeline = pipeline_of(session, PipelineSettings(streams=3, batch=1, calls=2), counting)

    tracked(pipeline, [Job(Frames(video), [sink]) for video, sink in zip(videos(), sinks, strict=True)])

    assert most == 2
    assert set(counting.batches) == {1}
    for video, sink in zip(videos(), sinks, strict=True):
        assert sink.results == alone(colour_session(), video)


@pytest.fixture(scope="module")
def shipped() -> Iterator[dict[str, Engine]]:
    """The engines of the default bundle, opened once; one thread rounds always alike."""
    engines = open_engines(open_bundle(BUNDLE), options=EngineOptions(threads=1))
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.mark.parametrize(("batch", "iou_min"), [(1, 1.0), (2, 0.999)])
def test_the_shipped_bundle_sees_a_stream_beside_others_as_it_sees_it_alone(
    shipped: dict[str, Engine], batch: int, iou_min: float
) -> None:
    """Calls of two frames round otherwise than calls of one: ids and labels are equal, masks all but."""
    manifest = open_bundle(BUNDLE).manifest
    session, frames = Session(manifest, shipped), 6
    expected = [r for f in islice(read_video(CLIP), frames) for r in session.step(f.image, f.time_s)]
    sinks = [Kept(), Kept()]
    pipeline = Pipeline(manifest, shipped, PipelineSettings(streams=2, batch=batch))

    tracked(pipeline, [Job(open_source(CLIP), [sink], limit=frames) for sink in sinks])

    for sink in sinks:
        assert [told(result) for result in sink.results] == [told(result) for result in expected]
        for result, other in zip(sink.results, expected, strict=True):
            for one, two in zip(result.objects, other.objects, strict=True):
                a, b = one.mask(), two.mask()
                assert (a & b).sum() >= iou_min * (a | b).sum()


def told(result: FrameResult) -> list[tuple[int, int]]:
    return [(found.id, found.label) for found in result.objects]
