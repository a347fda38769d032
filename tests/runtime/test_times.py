from __future__ import annotations

import pytest

from visrt.runtime import times
from visrt.runtime.times import StageTimes, Stopwatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, as the only item; tests move it on."""
    now = [100.0]
    monkeypatch.setattr(times, "perf_counter", lambda: now[0])
    return now


def test_an_inner_stage_is_taken_out_of_the_outer_one(clock: list[float]) -> None:
    watch = Stopwatch()
    with watch.stage("association"):
        clock[0] += 1
        with watch.stage("mask_engine"):
            clock[0] += 5
        clock[0] += 2
    clock[0] += 50

    assert watch.take(1).seconds == {"association": 3, "mask_engine": 5}


def test_what_fails_was_still_measured(clock: list[float]) -> None:
    watch = Stopwatch()

    def failing() -> None:
        with watch.stage("frame_engine"):
            clock[0] += 4
            raise KeyError

    with pytest.raises(KeyError):
        failing()

    assert watch.take(1).seconds["frame_engine"] == 4
    assert watch.take(1).by_stage()["frame_engine"] == 0


def test_times_add_up_and_are_told_in_ms_per_frame() -> None:
    one = StageTimes(1, {"masks": 0.002})
    two = StageTimes(3, {"masks": 0.006, "decoder_engine": 0.004})

    assert one.plus(two).frames == 4
    assert one.plus(two).ms_per_frame()["masks"] == pytest.approx(2)
    assert one.plus(two).ms_per_frame()["decoder_engine"] == pytest.approx(1)


def test_stages_come_in_the_order_of_a_frames_way_and_engines_of_further_graphs_by_their_names() -> None:
    always = ["preprocess", "frame_engine", "copy_out", "association", "mask_engine", "masks"]
    assert StageTimes().ms_per_frame() == dict.fromkeys(always, 0.0)
    times = StageTimes(1, {"masks": 1.0, "decoder_engine": 2.0, "copy_in": 0.0})
    assert list(times.by_stage()) == [*always[:3], "decoder_engine", *always[3:]]
