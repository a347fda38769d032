"""State in ONNX Runtime: in host memory, and bound in device memory as on CUDA, here on a machine without it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from stateful_graphs import QUERIES, decoded, stateful_manifest, stateful_models, summed

from visrt.runtime.arrays import Array, Buffer, Floats, HostTensor, Joined
from visrt.runtime.engines.gpu_copies import RowsCopy
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.engines.ort import CpuEngine, CudaEngine
from visrt.runtime.engines.ort_device import Copies
from visrt.runtime.errors import EngineError

FLOAT = np.dtype(np.float32)
STATE = (QUERIES, 64)


class HostCopies:
    """Copies in host memory, and counts them."""

    made = 0

    def run(self, copies: Iterable[RowsCopy]) -> None:
        for one in copies:
            HostCopies.made += 1
            for row in range(one.rows):
                ctypes.memmove(one.target + row * one.pitch, one.source + row * one.source_pitch, one.width)

    def close(self) -> None: ...


class BoundInHostMemory(CudaEngine):
    """The CUDA engine's bindings, addresses and copies, on a machine without CUDA."""

    provider = "CPUExecutionProvider"
    memory = "cpu"

    def _open_copies(self) -> Copies:
        return HostCopies()


Kind = type[CpuEngine] | type[BoundInHostMemory]


def engine(kind: Kind, name: str) -> CpuEngine | CudaEngine:
    manifest = stateful_manifest()
    return kind(manifest.graphs[name], stateful_models(manifest)[name].SerializeToString(), EngineOptions(threads=1))


@pytest.fixture(params=[CpuEngine, BoundInHostMemory])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


def values(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_state_goes_round_for_any_subset_of_the_streams(kind: Kind) -> None:
    frame, decoder = engine(kind, "frame"), engine(kind, "decoder")
    states, expected = [decoder.buffer(STATE, FLOAT) for _ in range(3)], [values(stream, *STATE) for stream in range(3)]
    for state, first in zip(states, expected, strict=True):
        state.write(first)

    for number, streams in enumerate([(0, 1, 2), (1,), (2, 0), (1, 2), (0, 1, 2)]):
        pictures = values(number, len(streams), *STATE)
        tokens = frame({"images": pictures})["tokens"]
        rows = Joined(tuple(tokens.row(at) for at in range(len(streams))), (len(streams),))
        queries = Joined(tuple(states[stream].tensor for stream in streams), (len(streams),))
        answer = decoder({"tokens": rows, "queries": queries})
        for at, stream in enumerate(streams):
            states[stream].write(answer["next_queries"].row(at))
            expected[stream] = decoded(pictures[at], expected[stream])
            np.testing.assert_array_equal(answer["class_logits"].numpy()[at], expected[stream][:, :3])

    for state, last in zip(states, expected, strict=True):
        np.testing.assert_array_equal(state.numpy(), last)


def test_rows_that_follow_each_other_and_a_stream_alone_are_not_copied() -> None:
    frame, decoder = engine(BoundInHostMemory, "frame"), engine(BoundInHostMemory, "decoder")
    tokens = frame({"images": values(0, 3, *STATE)})["tokens"]
    state = decoder.buffer(STATE, FLOAT)
    copied = []
    for order in [(0,), (2,), (0, 1), (1, 0)]:
        before = HostCopies.made
        rows = Joined(tuple(tokens.row(at) for at in order), (len(order),))
        decoder({"tokens": rows, "queries": Joined((state.tensor,) * len(order), (len(order),))})
        copied.append(HostCopies.made - before - (len(order) if len(order) > 1 else 0))

    assert copied == [0, 0, 0, 2]


def test_rows_from_the_host_and_from_the_device_may_be_mixed(kind: Kind) -> None:
    decoder, host = engine(kind, "decoder"), values(3, *STATE)
    state = decoder.buffer(STATE, FLOAT)
    state.write(values(4, *STATE))

    queries = Joined((HostTensor(host), state.tensor), (2,))
    answer = decoder({"tokens": np.zeros((2, *STATE), np.float32), "queries": queries})["next_queries"].numpy()

    np.testing.assert_array_equal(answer, np.stack([host, values(4, *STATE)]) * np.float32(0.5))


@pytest.mark.parametrize("on_device", [False, True])
def test_entries_go_to_their_place_and_a_ring_that_grows_takes_them_along(kind: Kind, on_device: bool) -> None:
    memory = engine(kind, "memory")
    ring, one, two = (memory.buffer((QUERIES, *rest, 64), FLOAT) for rest in ((4,), (), (2,)))
    expected = np.zeros((QUERIES, 8, 64), np.float32)
    for seed, at in enumerate([3, 0, 2]):
        one.write(values(seed, QUERIES, 64))
        two.write(values(seed + 9, QUERIES, 2, 64))
        ring.write_entries(at, one.tensor if on_device else one.numpy())
        expected[:, at] = one.numpy()
        ring.write_entries(at // 2, two.tensor if on_device else two.numpy())
        expected[:, at // 2 : at // 2 + 2] = two.numpy()
    grown = memory.buffer((QUERIES, 8, 64), FLOAT)
    grown.write_entries(0, ring.tensor)
    ring.close()

    np.testing.assert_array_equal(grown.numpy(), expected)
    clips = np.array([0, 1, -1, 2, -1, -1, -1, -1], np.int32)
    summary = memory({"keys": grown.tensor, "clips": clips})["summary"].numpy()
    np.testing.assert_allclose(summary, summed(expected, clips), atol=1e-5)


USES: dict[str, Callable[[Buffer], object]] = {
    "tensor": lambda state: state.tensor,
    "write": lambda state: state.write(np.zeros(STATE, np.float32)),
    "write_entries": lambda state: state.write_entries(0, np.zeros(QUERIES, np.float32)),
    "numpy": lambda state: state.numpy(),
}


@pytest.mark.parametrize("use", USES)
def test_a_closed_buffer_refuses_every_use(kind: Kind, use: str) -> None:
    state = engine(kind, "decoder").buffer(STATE, FLOAT)
    state.close()
    with pytest.raises(EngineError, match="belongs to a stream that was closed"):
        USES[use](state)


def test_buffers_go_with_their_engine_in_device_memory() -> None:
    decoder = engine(BoundInHostMemory, "decoder")
    state = decoder.buffer(STATE, FLOAT)
    decoder.close()
    with pytest.raises(EngineError, match="belongs to a stream that was closed"):
        state.numpy()


@pytest.mark.parametrize("given", [np.zeros((QUERIES, 65), np.float32), np.zeros(STATE)])
def test_values_that_do_not_fit_are_refused_in_device_memory(given: Array) -> None:
    with pytest.raises(EngineError, match=r"given float\d\d \[4, 6\d\], expected float32 \[4, 64\]"):
        engine(BoundInHostMemory, "decoder").buffer(STATE, FLOAT).write(given)


def test_copies_on_the_gpu_are_told_to_the_driver_in_its_own_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    """With cuda-bindings' own struct and names; what the driver would do is done here, in host memory."""
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    context: list[str] = []
    done = (driver.CUresult.CUDA_SUCCESS,)

    def pushed(ctx: str) -> tuple[Any, ...]:
        context.append(ctx)
        return done

    def copied(copy: Any) -> tuple[Any, ...]:
        assert context == ["primary of 0"]
        assert copy.srcMemoryType == copy.dstMemoryType == driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        (target, pitch), (source, source_pitch) = (copy.dstDevice, copy.dstPitch), (copy.srcDevice, copy.srcPitch)
        one = RowsCopy(int(target), pitch, int(source), source_pitch, copy.WidthInBytes, copy.Height)
        HostCopies().run([one])
        return done

    fakes = {
        "cuDriverGetVersion": lambda: (*done, 13000),
        "cuInit": lambda flags: done,
        "cuDevicePrimaryCtxRetain": lambda dev: (*done, f"primary of {dev}"),
        "cuDevicePrimaryCtxRelease": lambda dev: done,
        "cuCtxPushCurrent": pushed,
        "cuCtxPopCurrent": lambda: (*done, context.pop()),
        "cuMemcpy2DUnaligned": copied,
        "cuStreamSynchronize": lambda stream: done,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(driver, name, fake)
    monkeypatch.setattr(BoundInHostMemory, "_open_copies", CudaEngine._open_copies)
    ring, one = (engine(BoundInHostMemory, "memory").buffer(shape, FLOAT) for shape in ((QUERIES, 4, 64), STATE))
    one.write(values(0, *STATE))
    ring.write_entries(2, one.tensor)

    np.testing.assert_array_equal(ring.numpy()[:, 2], values(0, *STATE))
    assert not ring.numpy()[:, [0, 1, 3]].any()
    assert not context
    monkeypatch.setattr(driver, "cuMemcpy2DUnaligned", lambda copy: (driver.CUresult.CUDA_ERROR_INVALID_VALUE,))
    with pytest.raises(EngineError, match=r"GPU 0: <lambda> failed: CUDA_ERROR_INVALID_VALUE"):
        one.write(one.tensor)
    assert not context


def test_state_on_cuda_without_cuda_bindings_is_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundInHostMemory, "_open_copies", CudaEngine._open_copies)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    state = engine(BoundInHostMemory, "decoder").buffer(STATE, FLOAT)
    with pytest.raises(EngineError, match=r"cuda-bindings cannot be imported .*pip install '\.\[gpu\]'.*--engine cpu"):
        state.write(state.tensor)


def test_state_on_cuda_without_a_driver_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda-bindings imports without libcuda, and raises when it is called."""
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")

    def missing() -> None:
        raise RuntimeError('"cuda" is an NVIDIA driver library and can only be found via system search')

    monkeypatch.setattr(driver, "cuDriverGetVersion", missing)
    monkeypatch.setattr(BoundInHostMemory, "_open_copies", CudaEngine._open_copies)
    state = engine(BoundInHostMemory, "decoder").buffer(STATE, FLOAT)
    with pytest.raises(EngineError, match=r"cannot be called: .*keeps state on the GPU; pip install '\.\[gpu\]'"):
        state.write(state.tensor)
