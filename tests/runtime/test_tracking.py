"""One source through a session into sinks: order kept, every frame accounted for, nothing written is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_sources import FakeSource, ListSink
from written_clips import red_square, write_clip

from visrt.runtime.errors import NumericalError, OutputError, SourceError
from visrt.runtime.results import FrameResult
from visrt.runtime.session import SessionEvents
from visrt.runtime.source import Image, VideoFrame
from visrt.runtime.threads import FrameReader, ResultWriter
from visrt.runtime.times import StageTimes
from visrt.runtime.tracking import SourceOutcome, track_source
from visrt.runtime.video import open_source


class FakeTracker:
    """Answers every frame with an empty result, `delay` frames late; fails at frame `fails_at`."""

    def __init__(self, delay: int = 0, fails_at: int | None = None) -> None:
        self.delay, self.fails_at = delay, fails_at
        self.reset()

    def reset(self) -> None:
        self.times = StageTimes()
        self.events = SessionEvents()
        self.waiting: list[FrameResult] = []

    def step(self, frame: Image, time_s: float | None = None) -> list[FrameResult]:
        index = self.events.frames
        if index == self.fails_at:
            raise NumericalError("NaN from the network")
        self.events = replace(self.events, frames=index + 1)
        assert time_s is not None
        self.waiting.append(FrameResult(index, time_s, (frame.shape[0], frame.shape[1]), ()))
        ready = len(self.waiting) - self.delay
        done, self.waiting = self.waiting[: max(0, ready)], self.waiting[max(0, ready) :]
        return done

    def flush(self) -> list[FrameResult]:
        rest, self.waiting = self.waiting, []
        return rest


def never() -> bool:
    return False


def track(source: FakeSource, tracker: FakeTracker, *sinks: ListSink, limit: int | None = None) -> SourceOutcome:
    return track_source(source, tracker, sinks, never, limit)


@pytest.mark.parametrize("delay", [0, 1, 5, 100])
def test_each_result_meets_its_own_frame_in_order_however_late_it_comes(delay: int) -> None:
    sink = ListSink()
    outcome = track(FakeSource(20), FakeTracker(delay), sink)
    assert sink.got == [(index, index) for index in range(20)]
    assert (outcome.end, outcome.processed, outcome.captured, outcome.exit_code) == ("complete", 20, 20, 0)


def test_a_slow_sink_loses_no_frame_of_a_file() -> None:
    sink = ListSink(pause_s=0.005)
    outcome = track(FakeSource(30), FakeTracker(), sink)
    assert len(sink.got) == 30
    assert outcome.dropped == 0


def test_a_failing_network_keeps_what_was_done() -> None:
    sink, source = ListSink(), FakeSource(20)
    outcome = track(source, FakeTracker(fails_at=7), sink)
    assert [index for index, _ in sink.got] == list(range(7))
    assert (outcome.end, outcome.reason, outcome.exit_code) == ("failed", "NaN from the network", 5)
    assert sink.closed
    assert source.closed


def test_a_failing_sink_stops_the_source_and_the_sinks_before_it_have_the_frame() -> None:
    journal, overlay = ListSink(), ListSink(fails_at=5)
    outcome = track(FakeSource(200), FakeTracker(), journal, overlay)
    assert (len(journal.got), len(overlay.got)) == (6, 5)
    assert (outcome.end, outcome.exit_code) == ("failed", 4)
    assert outcome.processed < 200, "the run went on although nothing was written any more"
    assert journal.closed
    assert overlay.closed


def test_a_source_that_fails_is_told_and_what_came_before_is_written() -> None:
    sink = ListSink()
    outcome = track(FakeSource(3, then=SourceError("the cable was pulled")), FakeTracker(), sink)
    assert len(sink.got) == 3
    assert (outcome.end, outcome.reason, outcome.exit_code) == ("failed", "the cable was pulled", 4)


def test_a_bug_in_a_sink_is_not_swallowed() -> None:
    class Buggy(ListSink):
        def write(self, result: FrameResult, image: Image) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        track(FakeSource(20), FakeTracker(), Buggy())


def test_a_bug_in_the_network_closes_the_files_and_keeps_its_traceback() -> None:
    class Buggy(FakeTracker):
        def step(self, frame: Image, time_s: float | None = None) -> list[FrameResult]:
            return super().step(frame, time_s) if self.events.frames < 4 else [][0]

    sink, source = ListSink(), FakeSource(20)
    with pytest.raises(IndexError):
        track(source, Buggy(), sink)
    assert (len(sink.got), sink.closed, source.closed) == (4, True, True)


def test_the_limit_ends_a_source_cleanly() -> None:
    sink = ListSink()
    outcome = track(FakeSource(50), FakeTracker(2), sink, limit=9)
    assert [index for index, _ in sink.got] == list(range(9))
    assert (outcome.end, outcome.processed, outcome.exit_code) == ("complete", 9, 0)


def test_a_stop_finishes_the_frame_and_writes_everything() -> None:
    sink = ListSink()
    outcome = track_source(FakeSource(500), FakeTracker(3), [sink], lambda: len(sink.got) >= 5)
    assert [index for index, _ in sink.got] == list(range(outcome.processed))
    assert outcome.processed < 500
    assert (outcome.end, outcome.exit_code) == ("interrupted", 130)


def test_every_frame_of_a_damaged_file_is_accounted_for(tmp_path: Path) -> None:
    whole = bytearray(write_clip(tmp_path / "a.mp4", 60, movflags="+faststart").read_bytes())
    middle = whole.index(b"mdat") + (len(whole) - whole.index(b"mdat")) // 2
    whole[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    (tmp_path / "bad.mp4").write_bytes(whole)
    sink = ListSink()
    outcome = track_source(open_source(tmp_path / "bad.mp4"), FakeTracker(), [sink], never)
    assert (outcome.end, outcome.exit_code) == ("partial", 3)
    assert outcome.captured == 60
    assert outcome.processed == len(sink.got)
    assert outcome.corrupt + outcome.damaged > 0


def test_frames_without_objects_for_bad_numbers_make_the_outcome_partial() -> None:
    class Bad(FakeTracker):
        def flush(self) -> list[FrameResult]:
            self.events = replace(self.events, bad_frames=2)
            return super().flush()

    outcome = track(FakeSource(5), Bad(), ListSink())
    assert (outcome.end, outcome.exit_code) == ("partial", 3)
    assert "NaN or infinity in 2 frames" in outcome.reason


def test_the_stages_and_the_speed_are_measured() -> None:
    outcome = track(FakeSource(10), FakeTracker(), ListSink(pause_s=0.01))
    assert outcome.ms["write"] >= 10
    assert set(outcome.ms) == {"decode", "write", *StageTimes().ms_a_frame()}
    assert 0 < outcome.fps < 100


def test_a_live_source_drops_its_oldest_frames_and_counts_them() -> None:
    reader = FrameReader(FakeSource(1000, live=True), never)
    taken = []
    for frame in reader:
        taken.append(frame.index)
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
    outcome = track_source(Silent(0, live=True), FakeTracker(), [], lambda: time.monotonic() > stop_at)
    assert time.monotonic() - stop_at < 10
    assert outcome.end == "interrupted"
    silence.set()


def test_no_thread_outlives_its_source() -> None:
    before = set(threading.enumerate())
    track(FakeSource(5), FakeTracker(), ListSink())
    assert not set(threading.enumerate()) - before


def test_the_writer_keeps_the_first_of_its_errors() -> None:
    class Failing(ListSink):
        def close(self) -> None:
            raise OutputError("a later error")

    writer = ResultWriter([Failing(fails_at=0)])
    writer.write(FrameResult(0, 0.0, (4, 4), ()), red_square(0))
    with pytest.raises(OutputError, match="disk full"):
        writer.close()
