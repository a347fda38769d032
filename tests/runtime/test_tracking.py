"""One source through a pipeline into sinks: order kept, every frame accounted for, nothing written is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from fake_sources import FakeSource, ListSink
from fakes import ScriptedFrame, colour_session, scripted_session
from written_clips import red_square, write_clip

from visrt.runtime.arrays import Feed, Tensor
from visrt.runtime.engines.engine import Engine, HostEngine
from visrt.runtime.errors import NumericalError, OutputError, SourceError
from visrt.runtime.methods.queries import Queries
from visrt.runtime.pipeline import Job, Pipeline, PipelineSettings
from visrt.runtime.results import FrameResult
from visrt.runtime.session import Session, SessionSettings
from visrt.runtime.sinks.outcome import SourceOutcome
from visrt.runtime.sinks.output import Sink
from visrt.runtime.sources.source import Image, Source, VideoFrame
from visrt.runtime.sources.video import open_source
from visrt.runtime.threads import FrameReader, ResultWriter
from visrt.runtime.times import StageTimes


def never() -> bool:
    return False


def track(
    source: Source,
    *sinks: Sink,
    limit: int | None = None,
    in_flight: int = 1,
    stopped: Callable[[], bool] = never,
    session: Session | None = None,
) -> SourceOutcome:
    """How `source` went, tracked alone; by default on a network that sees nothing in its frames."""
    session = session or colour_session()
    settings = PipelineSettings(1, calls=in_flight - 1 or None, session=SessionSettings(in_flight=min(in_flight, 2)))
    outcomes: list[SourceOutcome] = []
    with Pipeline(session.manifest, session.network._engines, settings) as pipeline:
        pipeline.track([Job(source, sinks, limit)], lambda job, outcome: outcomes.append(outcome), stopped)
    [outcome] = outcomes
    return outcome


@dataclass
class FailingEngine(HostEngine):
    """Raises `error` at its call number `fails_at`."""

    engine: Engine
    error: Exception
    fails_at: int
    calls: int = 0
    provider: str = "fake"

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls > self.fails_at:
            raise self.error
        return self.engine(feeds)

    def close(self) -> None: ...


def failing_session(error: Exception, fails_at: int) -> Session:
    session = colour_session()
    frame = FailingEngine(session.network._engines["frame"], error, fails_at)
    return Session(session.manifest, {**session.network._engines, "frame": frame})


@pytest.mark.parametrize("in_flight", [1, 2, 6])
def test_each_result_meets_its_own_frame_in_order_however_late_it_comes(in_flight: int) -> None:
    sink = ListSink()
    outcome = track(FakeSource(20), sink, in_flight=in_flight)
    assert sink.got == [(index, index) for index in range(20)]
    assert (outcome.end, outcome.processed, outcome.captured, outcome.exit_code) == ("complete", 20, 20, 0)


def test_a_slow_sink_loses_no_frame_of_a_file() -> None:
    sink = ListSink(pause_s=0.005)
    outcome = track(FakeSource(30), sink)
    assert len(sink.got) == 30
    assert outcome.dropped == 0


def test_a_failing_network_keeps_what_was_done() -> None:
    sink, source = ListSink(), FakeSource(20)
    outcome = track(source, sink, session=failing_session(NumericalError("NaN from the network"), 7))
    assert [index for index, _ in sink.got] == list(range(7))
    assert (outcome.end, outcome.reason, outcome.exit_code) == ("failed", "NaN from the network", 5)
    assert sink.closed
    assert source.closed


def test_a_failing_sink_stops_the_source_and_the_sinks_before_it_have_the_frame() -> None:
    journal, overlay = ListSink(), ListSink(fails_at=5)
    outcome = track(FakeSource(200), journal, overlay)
    assert (len(journal.got), len(overlay.got)) == (6, 5)
    assert (outcome.end, outcome.exit_code) == ("failed", 4)
    assert outcome.processed < 200, "the run went on although nothing was written any more"
    assert journal.closed
    assert overlay.closed


def test_a_source_that_fails_is_told_and_what_came_before_is_written() -> None:
    sink = ListSink()
    outcome = track(FakeSource(3, then=SourceError("the cable was pulled")), sink)
    assert len(sink.got) == 3
    assert (outcome.end, outcome.reason, outcome.exit_code) == ("failed", "the cable was pulled", 4)


def test_a_bug_in_a_sink_is_not_swallowed() -> None:
    class Buggy(ListSink):
        def write(self, result: FrameResult, image: Image) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        track(FakeSource(20), Buggy())


def test_a_bug_in_the_network_closes_the_files_and_keeps_its_traceback() -> None:
    sink, source = ListSink(), FakeSource(20)
    with pytest.raises(IndexError):
        track(source, sink, session=failing_session(IndexError(), 4))
    assert (len(sink.got), sink.closed, source.closed) == (4, True, True)


def test_the_limit_ends_a_source_cleanly() -> None:
    sink = ListSink()
    outcome = track(FakeSource(50), sink, limit=9, in_flight=3)
    assert [index for index, _ in sink.got] == list(range(9))
    assert (outcome.end, outcome.processed, outcome.exit_code) == ("complete", 9, 0)


def test_a_stop_finishes_the_frame_and_writes_everything() -> None:
    sink = ListSink()
    outcome = track(FakeSource(500), sink, in_flight=4, stopped=lambda: len(sink.got) >= 5)
    assert [index for index, _ in sink.got] == list(range(outcome.processed))
    assert outcome.processed < 500
    assert (outcome.end, outcome.exit_code) == ("interrupted", 130)


def test_every_frame_of_a_damaged_file_is_accounted_for(tmp_path: Path) -> None:
    whole = bytearray(write_clip(tmp_path / "a.mp4", 60, movflags="+faststart").read_bytes())
    middle = whole.index(b"mdat") + (len(whole) - whole.index(b"mdat")) // 2
    whole[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    (tmp_path / "bad.mp4").write_bytes(whole)
    sink = ListSink()
    outcome = track(open_source(tmp_path / "bad.mp4"), sink)
    assert (outcome.end, outcome.exit_code) == ("partial", 3)
    assert outcome.captured == 60
    assert outcome.processed == len(sink.got)
    assert outcome.corrupt + outcome.damaged > 0


def test_frames_without_objects_for_bad_numbers_make_the_outcome_partial() -> None:
    calm = [ScriptedFrame(Queries(*np.zeros((3, 1, 4), np.float32)), np.zeros((4, 16, 24), np.float32))] * 5
    bad = replace(calm[0], queries=replace(calm[0].queries, class_logits=np.full((1, 4), np.nan, np.float32)))
    outcome = track(FakeSource(5), ListSink(), session=scripted_session([calm[0], bad, bad, calm[0], calm[0]]))
    assert (outcome.end, outcome.exit_code) == ("partial", 3)
    assert "NaN or infinity in 2 frames" in outcome.reason


def test_the_stages_and_the_speed_are_measured() -> None:
    outcome = track(FakeSource(10), ListSink(pause_s=0.01))
    assert outcome.ms["write"] >= 10
    assert set(outcome.ms) == {"decode", "write", *StageTimes().ms_per_frame()}
    assert 0 < outcome.fps < 100


def test_a_live_source_drops_its_oldest_frames_and_counts_them() -> None:
    reader = FrameReader(FakeSource(1000, live=True), lambda frame: frame.index)
    taken = []
    while not reader.ended:
        if (item := reader.take()) is not None:
            assert item[0].index == item[1]
            taken.append(item[1])
        time.sleep(0.02)
    reader.close()
    assert reader.dropped > 500
    assert len(taken) + reader.dropped == 1000
    assert taken == sorted(taken)
    assert taken[-1] == 999, "the newest frame is the one to keep"


def test_a_silent_source_can_be_stopped() -> None:
    silence = threading.Event()

    class Silent(FakeSource):
        def __iter__(self) -> Iterator[VideoFrame]:
            silence.wait(30)
            return iter(())

    stop_at = time.monotonic() + 0.2
    outcome = track(Silent(0, live=True), stopped=lambda: time.monotonic() > stop_at)
    assert time.monotonic() - stop_at < 10
    assert outcome.end == "interrupted"
    silence.set()


def test_no_thread_outlives_its_source() -> None:
    before = set(threading.enumerate())
    track(FakeSource(5), ListSink())
    assert not set(threading.enumerate()) - before


def test_the_writer_keeps_the_first_of_its_errors() -> None:
    class Failing(ListSink):
        def close(self) -> None:
            raise OutputError("a later error")

    writer = ResultWriter([Failing(fails_at=0)])
    writer.write(lambda: FrameResult(0, 0.0, (4, 4), ()), red_square(0))
    with pytest.raises(OutputError, match="disk full"):
        writer.close()
