"""The model of a GPU: what it is given decides where it must, and the runtime under it is the real one."""

from __future__ import annotations

import pytest
from written_clips import write_clip

from visrt.benchmarks.speed.gpu_model import NETWORK_MS, ModelFigures, gpu_model, network_ms_of
from visrt.benchmarks.speed.simulated_gpu import GpuSpeed
from visrt.runtime.errors import UsageError

MASKS_MS = 0.5


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> list[ModelFigures]:
    """A GPU that is much slower than the host."""
    clip = tmp_path_factory.mktemp("model") / "street.mp4"
    write_clip(clip, 30)
    return gpu_model(clip, GpuSpeed({1: 60.0, 8: 200.0}, MASKS_MS), rounds=1, frames=10)


def test_a_slow_network_is_what_holds_one_file_and_eight_streams(slow: list[ModelFigures]) -> None:
    one, eight = slow

    assert (one.streams, one.limit, eight.streams, eight.limit) == (1, "the network", 8, "the network")
    assert one.call_ms == pytest.approx(60 + MASKS_MS, abs=2)
    assert eight.call_ms == pytest.approx(200 + 8 * MASKS_MS, abs=6)
    assert one.fps == pytest.approx(1e3 / one.call_ms)
    assert eight.fps == pytest.approx(8e3 / eight.call_ms)


def test_host_work_is_measured_beside_it(slow: list[ModelFigures]) -> None:
    for found in slow:
        assert 0 < found.engines_ms < found.call_ms
        assert found.reader_ms > 0
        assert found.writer_ms > 0
        assert found.cores > 0
        assert found.locked_fps <= found.fps


def test_network_times_are_read_from_a_text_and_run_on_a_line() -> None:
    speed = GpuSpeed(network_ms_of(NETWORK_MS))

    assert [round(1e3 * speed.network_s(frames), 3) for frames in (1, 8)] == [2.0, 6.4]
    assert 2.0 < 1e3 * speed.network_s(3) < 6.4 < 1e3 * speed.network_s(16)
    assert GpuSpeed({4: 8.0}).network_s(2) == pytest.approx(4e-3)


@pytest.mark.parametrize("text", ["", "8", "a:1", "1:2:3"])
def test_other_texts_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected frames:milliseconds such as 1:2\.0,8:6\.4"):
        network_ms_of(text)


def test_times_of_nothing_are_refused() -> None:
    for times in ({}, {0: 1.0}, {1: 0.0}):
        with pytest.raises(UsageError, match="expected milliseconds above 0 for calls of 1 or more frames"):
            GpuSpeed(times)
