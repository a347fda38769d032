"""When things happen on a GPU, by the fake's clock: network and host at a time, masks of a frame before the next frame
ends, and no execution context made after the start."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import CHANNELS, SIZE, write_bundle
from fake_gpu import RUBBISH, Costs, Gpu, Operation
from fake_pycuda import install_cuda
from fake_sources import FakeSource
from fake_tensorrt import install_tensorrt
from fakes import patches

from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.engines.engine import Engine
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.engines.trt.trt import open_tensorrt
from visrt.runtime.methods.minvis import MinVis
from visrt.runtime.pipeline import SWITCH_S, Job, Pipeline
from visrt.runtime.results import FrameResult
from visrt.runtime.session import Session, SessionSettings

NETWORK_S, MASKS_S, CALL_S = 2e-3, 0.1e-3, 2e-6
FRAMES = 12
CALLS_S = 60 * CALL_S
"""More than the calls of the driver of one frame take."""


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    card = Gpu(memory_mb=512)
    monkeypatch.setenv("VISRT_CACHE", str(tmp_path / "cache"))
    install_cuda(monkeypatch, card)
    install_tensorrt(monkeypatch, card, "tensorrt", "10.13.3.9")
    return card


@pytest.fixture
def follow(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[FrameResult]]:
    """Follows a red patch over some frames. The host works for so many seconds a frame, a half before the masks."""
    bundle = write_bundle(tmp_path / "bundle")
    associate = MinVis.associate

    def run(host_s: float) -> list[FrameResult]:
        def slow(self: MinVis, queries: Any, masks_of: Any, *others: Any) -> Any:
            gpu.timeline.advance(host_s / 2)
            found = associate(self, queries, masks_of, *others)
            gpu.timeline.advance(host_s / 2)
            return found

        monkeypatch.setattr(MinVis, "associate", slow)
        gpu.costs = Costs(lambda shapes: NETWORK_S if "images" in shapes else MASKS_S, call_s=CALL_S)
        with Session.open(bundle, "tensorrt", settings=SessionSettings(in_flight=2)) as session:
            gpu.timeline.advance(1.0)
            gpu.timeline.catch_up()
            gpu.timeline.done.clear()
            results = [one for x in range(FRAMES) for one in session.step(patches(SIZE, (0, 4 * x, 16, 24, 20)))]
            return results + session.flush()

    return run


def ends_s(gpu: Gpu, what: str) -> list[float]:
    return [work.end_s for work in gpu.timeline.done if what in work.what and work.end_s is not None]


def test_masks_of_a_frame_end_before_the_next_frame_ends(
    gpu: Gpu, follow: Callable[[float], list[FrameResult]]
) -> None:
    results = follow(0.5e-3)

    frames, masks = ends_s(gpu, "images"), ends_s(gpu, "execute mask_embeddings")
    assert [len(result.objects) for result in results] == [1] * FRAMES
    assert len(frames) == len(masks) == FRAMES
    assert all(done < next_frame for done, next_frame in zip(masks, frames[1:], strict=False))


@pytest.mark.parametrize("host_s", [0.2e-3, 1.5e-3, 3e-3])
def test_network_and_host_work_at_a_time(gpu: Gpu, follow: Callable[[float], list[FrameResult]], host_s: float) -> None:
    """The network waits for the masks; without priority the masks get half of the GPU meanwhile."""
    follow(host_s)

    frames = ends_s(gpu, "images")
    cycle = (frames[-1] - frames[3]) / (len(frames) - 4)
    assert cycle <= max(NETWORK_S, host_s) + 2 * MASKS_S + CALLS_S
    assert cycle >= max(NETWORK_S, host_s)


def test_no_execution_context_is_made_after_the_start(gpu: Gpu, tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "bundle", queries=48))
    engines = open_tensorrt(bundle, "tensorrt", EngineOptions(batch=8))
    made, recorded, memory = gpu.counts["contexts"], gpu.counts["graphs"], gpu.free_bytes

    random = np.random.default_rng(0)
    for masks in range(41):
        streams = int(random.integers(1, 9))
        images = np.stack([patches(SIZE, (0, x, 16, 24, 20)) for x in range(streams)])
        made_of = engines["frame"]({"images": images, "valid_sizes": np.full((streams, 2), SIZE, np.int32)})
        for row in range(streams):
            embeddings = np.zeros(((masks + row) % 41, CHANNELS), np.float32)
            features = made_of["mask_features"].row(row)
            engines["masks"]({"mask_embeddings": embeddings, "mask_features": features})["mask_logits"].numpy()

    assert gpu.counts["contexts"] == made == len(gpu.contexts) == 2 * (8 + 7)
    assert gpu.counts["graphs"] == recorded == made
    assert gpu.free_bytes == memory
    close(engines)
    assert gpu.context_host_bytes == 0


def close(engines: dict[str, Engine]) -> None:
    for engine in engines.values():
        engine.close()


def test_threads_give_way_sooner_while_a_gpu_works_and_only_then(gpu: Gpu, tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "bundle"))
    usual, seen = sys.getswitchinterval(), []

    def jobs(broken: bool) -> Iterator[Job]:
        yield Job(FakeSource(3), progress=lambda _: seen.append(sys.getswitchinterval()))
        if broken:
            raise RuntimeError("a bug")

    for engine in ("cpu", "tensorrt"):
        with Pipeline.open(bundle, engine) as pipeline:
            pipeline.track(jobs(broken=False))
            assert sys.getswitchinterval() == usual
            with pytest.raises(RuntimeError, match="a bug"):
                pipeline.track(jobs(broken=True))
            assert sys.getswitchinterval() == usual

    assert seen[:3] == [usual] * 3
    assert seen[-3:] == [pytest.approx(SWITCH_S)] * 3


# The fake itself


def test_two_streams_that_compute_in_one_workspace_at_a_time_write_rubbish() -> None:
    gpu = Gpu()
    gpu.push(gpu.retain())
    memory = gpu.allocate(512)
    streams = [gpu.create_stream(1), gpu.create_stream(1, priority=-5)]

    def run(stream: int, start: int) -> Operation:
        """Writes 7 to a byte of its own."""
        place = gpu.view(memory + 500 + stream, 1)
        operation = Operation(
            "execute",
            lambda: place.fill(7),
            workspace=(memory + start, 100),
            spoil=lambda: place.fill(RUBBISH),
        )
        gpu.enqueue(streams[stream], operation)
        return operation

    def seen() -> list[int]:
        for stream in streams:
            gpu.wait(stream)
        return [int(byte) for byte in gpu.view(memory + 500, 2)]

    run(0, 0), run(1, 100)
    assert seen() == [7, 7]
    run(0, 0), run(1, 99)
    assert seen() == [RUBBISH, RUBBISH]
    run(0, 0)
    gpu.wait(streams[0])
    run(1, 0)
    assert seen() == [7, 7]


def test_streams_of_one_priority_share_the_kernels() -> None:
    gpu = Gpu()
    gpu.push(gpu.retain())
    one, other = gpu.create_stream(1), gpu.create_stream(1)
    gpu.enqueue(one, Operation("frame", lambda: None, cost_s=2.0))
    gpu.timeline.advance(0.5)
    gpu.enqueue(other, Operation("masks", lambda: None, cost_s=0.25))
    gpu.wait(other)
    assert gpu.timeline.now_s == 1.0
    gpu.wait(one)
    assert gpu.timeline.now_s == 2.25


def test_of_two_streams_the_one_of_higher_priority_runs_and_the_other_pauses() -> None:
    gpu = Gpu()
    gpu.push(gpu.retain())
    low, high = gpu.create_stream(1), gpu.create_stream(1, priority=-5)
    gpu.enqueue(low, Operation("frame", lambda: None, cost_s=2.0))
    gpu.enqueue(low, Operation("next frame", lambda: None, cost_s=2.0))
    gpu.timeline.advance(0.5)
    gpu.enqueue_copy(high, "up", lambda: None, 0, "up")
    gpu.enqueue(high, Operation("masks", lambda: None, cost_s=0.25))
    gpu.wait(high)
    assert gpu.timeline.now_s == 0.75
    gpu.wait(low, 1)
    assert gpu.timeline.now_s == 2.25
    gpu.let_wait(high, gpu.mark(low))
    gpu.enqueue(high, Operation("masks", lambda: None, cost_s=0.25))
    gpu.wait(high)
    assert gpu.timeline.now_s == 4.5
