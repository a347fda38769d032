"""A bundle of two sizes: a stream is seen at the size that suits its frames, and at the other when they turn."""

from __future__ import annotations

import gc
import logging
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import SIZE, write_bundle
from fake_sources import FakeSource
from fakes import colour_session, patches
from fakes_genvis import genvis_session
from fakes_inspro import STATES, head_of, inspro_session
from numpy.typing import NDArray

from visrt.benchmarks.video_level.rules import official_result
from visrt.runtime.arrays import Feed, Tensor
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.engines.backends import BACKENDS, Backend, SizedEngines
from visrt.runtime.engines.engine import Engine, HostEngine
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.errors import BundleError, EngineError
from visrt.runtime.pipeline import Job, Pipeline, PipelineSettings
from visrt.runtime.results import FrameResult
from visrt.runtime.session import Session, SessionEvents, SessionSettings
from visrt.runtime.sinks.outcome import SourceOutcome
from visrt.runtime.sources.source import Image, VideoFrame

Frame = NDArray[np.uint8]
Make = Callable[..., Session]

WIDE, TALL = SIZE, SIZE[::-1]
DEFAULTS = SessionSettings()


def clips_of_three(settings: SessionSettings = DEFAULTS, size: tuple[int, int] = WIDE) -> Session:
    return genvis_session(settings, size, clip_frames=3, clip_lengths=[1, 2, 3])


FAMILIES = pytest.mark.parametrize("make", [colour_session, clips_of_three, inspro_session])


def of_sizes(make: Make, settings: SessionSettings = DEFAULTS) -> Session:
    """A session on the engines of a wide and of a tall one."""
    wide, tall = make(size=WIDE), make(size=TALL)
    other = SizedEngines(tall.manifest, tall.network._engines, tall.network.states)
    return Session(wide.manifest, wide.network._engines, settings, states=wide.network.states, other_sizes=[other])


def wide(index: int) -> Frame:
    """A red patch that goes right and a green one that goes left, 192 wide and 128 high."""
    return patches((128, 192), (0, 8 + 4 * index, 16, 48, 40), (1, 120 - 4 * index, 72, 40, 40))


def tall(index: int) -> Frame:
    """The same held upright."""
    return np.ascontiguousarray(np.rot90(wide(index)))


def run(session: Session, frames: Sequence[Frame], batch: int = 1) -> list[FrameResult]:
    results = []
    for at in range(0, len(frames), batch):
        results += session.step_batch(frames[at : at + batch])
    return results + session.flush()


def joined(parts: Sequence[Sequence[FrameResult]]) -> list[FrameResult]:
    """Streams of 30 frames a second, one after the other as one stream whose ids go on."""
    results: list[FrameResult] = []
    for part in parts:
        first = len(results)
        next_id = 1 + max((one.id for result in results for one in result.objects), default=-1)
        for result in part:
            objects = tuple(replace(one, id=one.id + next_id) for one in result.objects)
            results.append(FrameResult(first + result.index, (first + result.index) / 30, result.size, objects))
    return results


@FAMILIES
@pytest.mark.parametrize(("picture", "size"), [(wide, WIDE), (tall, TALL)], ids=["wide", "tall"])
def test_a_stream_is_seen_at_the_size_that_suits_it(
    make: Make, picture: Callable[[int], Frame], size: tuple[int, int]
) -> None:
    frames = [picture(t) for t in range(5)]

    results = run(of_sizes(make), frames)

    assert results == run(make(size=size), frames)
    assert all(len(result.objects) == 2 and result.size == frames[0].shape[:2] for result in results)


@FAMILIES
@pytest.mark.parametrize("in_flight", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 3, 12])
def test_a_camera_that_is_turned_goes_on_at_the_other_size(make: Make, in_flight: int, batch: int) -> None:
    parts = [[wide(t) for t in range(4)], [tall(t) for t in range(5)], [wide(t) for t in range(3)]]
    session = of_sizes(make, SessionSettings(in_flight=in_flight))

    results = run(session, [*chain(*parts)], batch)

    alone = [run(make(size=size), part) for size, part in zip((WIDE, TALL, WIDE), parts, strict=True)]
    assert results == joined(alone)
    assert session.events == SessionEvents(frames=12, size_changes=2, restarts=2)
    assert session.times.frames == 12
    session.reset()
    assert run(session, parts[1]) == alone[1], "a new stream begins with id 0, whatever size was the last"


def test_every_turn_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "visrt.stream"):
        run(of_sizes(colour_session), [wide(0), tall(0), tall(1), wide(1)])

    assert [record.getMessage()[:65] for record in caplog.records] == [
        "after 1 frames pictures are 192x128 in place of 128x192 (height x",
        "after 3 frames pictures are 128x192 in place of 192x128 (height x",
    ]


def test_each_size_starts_from_initial_states_of_its_own() -> None:
    sizes = [inspro_session(size=size) for size in (WIDE, TALL)]
    other = SizedEngines(sizes[1].manifest, sizes[1].network._engines, {**STATES, "queries": -STATES["queries"]})
    session = Session(sizes[0].manifest, sizes[0].network._engines, states=STATES, other_sizes=[other])

    run(session, [wide(0), wide(1), tall(0), tall(1), wide(2)])

    starts = [head_of(sizes[0]).fed[0], head_of(sizes[1]).fed[0], head_of(sizes[0]).fed[2]]
    signs = [1, -1, 1]
    for fed, sign in zip(starts, signs, strict=True):
        np.testing.assert_array_equal(fed["queries"][0], sign * STATES["queries"])
    assert [len(head_of(one).fed) for one in sizes] == [3, 2]


@FAMILIES
def test_the_official_rule_sees_a_video_at_its_size(make: Make) -> None:
    for picture, size in ((wide, WIDE), (tall, TALL)):
        read = partial(map, picture, range(5))

        assert official_result(of_sizes(make), read) == official_result(make(size=size), read)


def test_the_official_rule_finds_nothing_in_an_empty_video() -> None:
    assert official_result(of_sizes(colour_session), list).tracks == ()


# --- A bundle on disk, its engines opened on first use ---------------------------------------------------------------


@dataclass
class Openings:
    """Stands in for the CPU's backend: notes the size (height, width) whose engines are opened; refuses `broken`."""

    of: list[tuple[int, int]] = field(default_factory=list)
    closed: int = 0
    broken: tuple[tuple[int, int], ...] = ()

    def __call__(self, bundle: Bundle, options: EngineOptions) -> dict[str, Engine]:
        size = bundle.manifest.input.height, bundle.manifest.input.width
        self.of.append(size)
        if size in self.broken:
            raise EngineError("not enough memory")
        return {name: Watched(engine, self) for name, engine in CPU.open(bundle, options).items()}


CPU = BACKENDS["cpu"]


@dataclass
class Watched(HostEngine):
    engine: Engine
    openings: Openings

    @property
    def provider(self) -> str:
        return self.engine.provider

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        return self.engine(feeds)

    def close(self) -> None:
        self.openings.closed += 1
        self.engine.close()


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> Openings:
    found = Openings()
    monkeypatch.setitem(BACKENDS, "cpu", Backend(found, CPU.absence, on_gpu=False))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "sizes", other_sizes=[TALL])


@pytest.fixture(scope="module")
def one_size(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], list[FrameResult]]:
    """What bundles of the one or the other size alone give for ten frames of its aspect."""
    both = open_bundle(write_bundle(tmp_path_factory.mktemp("bundles") / "sizes", other_sizes=[TALL]))
    results = {}
    for bundle, picture in zip(both.sizes, (wide, tall), strict=True):
        with Session.open(bundle, threads=1) as session:
            size = bundle.manifest.input.height, bundle.manifest.input.width
            results[size] = [r for t in range(10) for r in session.step(picture(t), t / 10)]
    return results


def test_engines_are_opened_when_a_frame_needs_them_once_for_each_size(folder: Path, openings: Openings) -> None:
    with Session.open(folder, threads=1) as session:
        assert openings.of == []
        session.step(tall(0))
        assert openings.of == [TALL]
        for _ in range(5):
            session.step_batch([wide(0), tall(0)])
        assert openings.of == [TALL, WIDE]
        assert session.events.restarts == 10
    assert openings.closed == 4


def test_the_engines_of_an_only_size_are_opened_at_once(tmp_path: Path, openings: Openings) -> None:
    with Session.open(write_bundle(tmp_path / "bundle"), threads=1):
        assert openings.of == [WIDE]


def test_memory_stays_flat_while_a_camera_turns_and_turns(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "visrt.stream")  # pytest keeps what is logged
    pictures = [wide(0), tall(0)]
    with Session.open(folder, threads=1) as session:

        def bytes_held_after(count: int) -> int:
            for t in range(count):
                session.step(pictures[t % 2])
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            early = bytes_held_after(40)
            assert bytes_held_after(200) - early < 100_000, "a frame is 18,432 bytes"
        finally:
            tracemalloc.stop()


def test_a_size_that_cannot_be_opened_is_one_clear_line_and_the_stream_goes_on(
    folder: Path, openings: Openings
) -> None:
    openings.broken = (TALL,)
    with Session.open(folder, threads=1, settings=SessionSettings(in_flight=2)) as session:
        assert session.step(wide(0)) == []
        with pytest.raises(EngineError, match=r"^network input of 96x64 \(height x width\): not enough memory$"):
            session.step_batch([wide(1), tall(0)])
        assert [result.index for result in session.step(wide(1)) + session.flush()] == [0, 1]
        assert session.events == SessionEvents(frames=2)


def test_a_further_size_with_graphs_that_do_not_fit_is_refused_when_the_bundle_is_opened(folder: Path) -> None:
    bundle = open_bundle(folder)
    [other] = bundle.manifest.other_sizes
    wrong = other.model_copy(update={"graphs": bundle.manifest.graphs})
    manifest = bundle.manifest.model_copy(update={"other_sizes": (wrong,)})

    with pytest.raises(BundleError, match=r"frame.inputs.images: expected uint8 \[B=batch I=96 J=64 3\]"):
        Session.open(replace(bundle, manifest=manifest))


# --- Pipelines -------------------------------------------------------------------------------------------------------


class Frames(FakeSource):
    """A file that shows `pictures`."""

    def __init__(self, pictures: Sequence[Frame]) -> None:
        super().__init__(len(pictures))
        self._pictures = pictures

    def __iter__(self) -> Iterator[VideoFrame]:
        for frame in super().__iter__():
            yield replace(frame, image=self._pictures[frame.index])


@dataclass
class Kept:
    results: list[FrameResult] = field(default_factory=list)

    def write(self, result: FrameResult, image: Image) -> None:
        assert result.size == image.shape[:2]
        self.results.append(result)

    def close(self) -> None: ...


def tracked(pipeline: Pipeline, videos: Sequence[Sequence[Frame]]) -> tuple[list[list[FrameResult]], list[Any]]:
    """Results and outcome of each video, in a pipeline that is then closed."""
    sinks = [Kept() for _ in videos]
    jobs = [Job(Frames(video), [sink]) for video, sink in zip(videos, sinks, strict=True)]
    outcomes: dict[int, SourceOutcome] = {}
    with pipeline:
        pipeline.track(jobs, lambda job, outcome: outcomes.update({jobs.index(job): outcome}))
    return [sink.results for sink in sinks], [outcomes[at] for at in range(len(videos))]


SETTINGS = [
    PipelineSettings(streams=3),
    PipelineSettings(streams=3, batch=3, calls=1),
    PipelineSettings(streams=3, batch=2, calls=2, session=SessionSettings(in_flight=3)),
    PipelineSettings(streams=3, session=SessionSettings(in_flight=1)),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_streams_of_two_aspects_share_the_engines_and_get_what_each_gets_alone(
    folder: Path, openings: Openings, one_size: dict[tuple[int, int], list[FrameResult]], settings: PipelineSettings
) -> None:
    videos = [[picture(t) for t in range(10)] for picture in (wide, tall, tall)]

    results, outcomes = tracked(Pipeline.open(folder, threads=1, settings=settings), videos)

    assert results == [one_size[WIDE], one_size[TALL], one_size[TALL]]
    assert sorted(openings.of[-2:]) == [WIDE, TALL]
    assert openings.closed == 4
    assert [outcome.inputs for outcome in outcomes] == [(WIDE,), (TALL,), (TALL,)]


@FAMILIES
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_stream_that_turns_among_others_gets_what_it_gets_alone(make: Make, settings: PipelineSettings) -> None:
    turning = [wide(t) for t in range(4)] + [tall(t) for t in range(5)] + [wide(t) for t in range(4)]
    videos = [turning, turning[::-1], [tall(t) for t in range(7)]]
    session = of_sizes(make)
    sizes = [SizedEngines(n._manifest, n._engines, n.states) for n in session.networks._all]
    pipeline = Pipeline(session.manifest, sizes[0].engines, settings, states=sizes[0].states, other_sizes=sizes[1:])

    results, outcomes = tracked(pipeline, videos)

    for video, found in zip(videos, results, strict=True):
        fresh = of_sizes(make)
        alone = [result for t, frame in enumerate(video) for result in fresh.step(frame, t / 10)]
        assert found == alone + fresh.flush()
    assert [(one.end, one.inputs) for one in outcomes] == [
        ("complete", (WIDE, TALL)),
        ("complete", (WIDE, TALL)),
        ("complete", (TALL,)),
    ]


def test_a_size_that_cannot_be_opened_ends_the_streams_that_need_it_and_no_other(
    folder: Path, openings: Openings, one_size: dict[tuple[int, int], list[FrameResult]]
) -> None:
    openings.broken = (TALL,)
    videos = [[wide(t) for t in range(10)], [wide(0), wide(1), wide(2), tall(0), tall(1)], [tall(t) for t in range(5)]]

    results, outcomes = tracked(Pipeline.open(folder, threads=1, settings=PipelineSettings(streams=3)), videos)

    assert results == [one_size[WIDE], one_size[WIDE][:3], []]
    assert [(one.end, one.exit_code) for one in outcomes] == [("complete", 0), ("failed", 5), ("failed", 5)]
    for outcome in outcomes[1:]:
        assert outcome.reason == "network input of 96x64 (height x width): not enough memory"
