"""One GPU through each library that calls CUDA's driver, on a fake GPU: streams, memory, contexts and errors."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_gpu import GREATEST_PRIORITY, RUBBISH, CudaFault
from fake_gpu import Gpu as Card
from fake_pycuda import Layer, install_cuda

from visrt.runtime.engines.trt.cuda import Gpu, GpuMemoryError, PinnedMemory, cuda_layer
from visrt.runtime.engines.trt.cuda_graph import Capture, CaptureRefusedError, open_capture
from visrt.runtime.errors import EngineError

pytestmark = pytest.mark.usefixtures("layer")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, layer: Layer) -> Card:
    card = Card()
    install_cuda(monkeypatch, card)
    return card


def pinned(gpu: Gpu, *values: int) -> PinnedMemory:
    memory = gpu.pin(len(values), "a test")
    memory.array[:] = values
    return memory


def test_a_stream_waits_for_what_an_event_marks_on_the_other(card: Card) -> None:
    """The copy back on the side stream finds what the first stream had uploaded, and nothing without the wait."""
    gpu = Gpu()
    with gpu.current("testing"):
        source, target = pinned(gpu, 1, 2, 3), gpu.pin(3, "a test")
        memory, uploaded = gpu.allocate(3, "a test"), gpu.event()
        gpu.upload(memory.address, source.array)
        gpu.download(target.array, memory.address, gpu.side)
        gpu.side.synchronize()
        assert target.array.tolist() == [RUBBISH] * 3

        uploaded.record(gpu.stream)
        gpu.side.wait(uploaded)
        gpu.download(target.array, memory.address, gpu.side)
        gpu.side.synchronize()
        assert target.array.tolist() == [1, 2, 3]


def test_a_layer_can_be_chosen_by_name(card: Card, layer: Layer) -> None:
    """Both are there where pycuda is installed; without it, that is said."""
    assert cuda_layer().name == layer
    assert cuda_layer("cuda-bindings").name == "cuda-bindings"
    if layer == "pycuda":
        assert cuda_layer("pycuda").name == "pycuda"
    else:
        with pytest.raises(EngineError, match=r"^pycuda is not installed; pip install '\.\[trt-pycuda\]'"):
            cuda_layer("pycuda")
    card.faults.missing_functions = {"libcuda"}
    with pytest.raises(EngineError, match=r"^cuda-bindings was requested, but cuDriverGetVersion cannot be called"):
        cuda_layer("cuda-bindings")


def test_an_event_that_was_never_recorded_holds_nothing_up(card: Card) -> None:
    gpu = Gpu()
    with gpu.current("testing"):
        memory, never = gpu.allocate(4, "a test"), gpu.event()
        gpu.side.wait(never)
        gpu.clear(memory.address, 4, gpu.side)
        gpu.side.synchronize()
        never.synchronize()
        assert card.view(memory.address, 4).tolist() == [0] * 4


@pytest.mark.parametrize("name", ["stream", "side"])
def test_what_is_freed_is_freed_when_either_stream_has_done_with_it(card: Card, name: str) -> None:
    gpu = Gpu()
    with gpu.current("testing"):
        source, memory = pinned(gpu, 7, 7), gpu.allocate(2, "a test")
        gpu.upload(memory.address, source.array, getattr(gpu, name))

    gpu.release([source.free, memory.free])

    assert card.record == ["htod"]
    assert (card.lost, card.allocated, len(card.pinned)) == (None, 0, 0)


def test_both_streams_go_when_the_gpu_is_closed(card: Card) -> None:
    gpu = Gpu()
    handles = {gpu.stream.handle, gpu.side.handle}
    assert len(handles) == 2
    gpu.close()
    for handle in handles:
        with pytest.raises(CudaFault, match="INVALID_HANDLE"):
            card.stream(handle)


# Which library makes the calls


def test_pycuda_makes_the_calls_where_it_is_installed_else_cuda_bindings(card: Card, layer: Layer) -> None:
    assert cuda_layer().name == layer


def test_with_neither_library_both_are_named_and_what_to_install(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pycuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)

    told = r"pycuda is not installed, and cuda-bindings cannot be imported .*pip install '\.\[trt\]'.*--engine cpu"
    with pytest.raises(EngineError, match=told):
        Gpu()


def test_cuda_bindings_that_find_no_driver_are_an_error_in_one_line(card: Card, layer: Layer) -> None:
    """They import without libcuda and raise when they are called."""
    card.faults.missing_functions = {"libcuda"}

    if layer == "pycuda":
        assert len(Gpu().notices) == 1
        return
    with pytest.raises(EngineError, match=r"cuDriverGetVersion cannot be called: .* can only be found; pip install"):
        Gpu()


@pytest.mark.parametrize("missing", ["libcuda", "cuDriverGetVersion"])
def test_a_driver_that_cannot_be_called_means_no_capture_and_a_reason(card: Card, missing: str) -> None:
    card.faults.missing_functions = {missing}

    with pytest.raises(CaptureRefusedError, match=r"cuDriverGetVersion cannot be called: .*found; pip install"):
        open_capture(1)


@pytest.mark.parametrize("missing", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_a_function_that_the_driver_does_not_have_refuses_a_recording(card: Card, missing: str) -> None:
    gpu, capture = opened()
    card.faults.missing_functions = {missing}

    with gpu.current("testing"), pytest.raises(CaptureRefusedError, match=f'^{missing} .*: Function "{missing}" not'):
        capture.record(lambda: True)


def opened() -> tuple[Gpu, Capture]:
    gpu = Gpu()
    return gpu, open_capture(gpu.stream.handle)


def test_a_graph_that_an_old_driver_cannot_launch_is_not_launched(card: Card) -> None:
    gpu, capture = opened()
    with gpu.current("testing"):
        graph = capture.record(lambda: True)
        card.faults.missing_functions = {"cuGraphLaunch"}
        assert not graph.launch(gpu.stream.handle)
        graph.destroy()


# Streams and events


def test_the_side_stream_goes_first(card: Card) -> None:
    gpu = Gpu()

    priorities = [card.stream(stream.handle).priority for stream in (gpu.stream, gpu.side)]
    assert priorities == [0, GREATEST_PRIORITY]
    assert [card.stream(stream.handle).flags for stream in (gpu.stream, gpu.side)] == [1, 1]
    assert gpu.notices == []


@pytest.mark.parametrize(
    "missing", ["cuCtxGetStreamPriorityRange", "cuStreamSetAttribute", "cuStreamCreateWithPriority"]
)
def test_a_side_stream_without_priority_is_noticed(card: Card, missing: str) -> None:
    card.faults.missing_functions = {missing}
    gpu = Gpu()

    plain = card.stream(gpu.side.handle).priority == 0
    assert [missing in text for text in gpu.notices] == [True] * plain
    gpu.close()
    assert not card.left


def test_without_cuda_bindings_pycuda_runs_plainly_and_says_so(
    card: Card, layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    if layer == "cuda-bindings":
        with pytest.raises(EngineError, match="cuda-bindings cannot be imported"):
            Gpu()
        return
    gpu = Gpu()

    assert gpu.notices == [
        "masks wait for kernels of the next frame, which costs some speed: cuda-bindings cannot be imported (import of "
        "cuda.bindings halted; None in sys.modules)"
    ]
    with pytest.raises(CaptureRefusedError, match=r"cuda-bindings cannot be imported .*pip install '\.\[trt\]'"):
        open_capture(gpu.stream.handle)


@pytest.mark.parametrize(("cores", "flags"), [(1, 3), (4, 3), (5, 2), (16, 2)])
def test_who_waits_for_an_event_sleeps_where_cores_are_few(
    card: Card, monkeypatch: pytest.MonkeyPatch, cores: int, flags: int
) -> None:
    """1 is CU_EVENT_BLOCKING_SYNC, 2 is CU_EVENT_DISABLE_TIMING."""
    monkeypatch.setattr("visrt.runtime.engines.trt.cuda.usable_cores", lambda: cores)
    gpu = Gpu()
    with gpu.current("testing"):
        gpu.event()

    assert card.event_flags == [flags]


# Copies


def test_arrays_that_cannot_be_copied_as_they_lie_are_refused(card: Card) -> None:
    gpu = Gpu()
    with gpu.current("testing"):
        memory, pinned = gpu.allocate(16, "a test"), gpu.pin(16, "a test").array
        fixed = pinned[:]
        fixed.flags.writeable = False
        attempts: list[Callable[[], None]] = [
            lambda: gpu.upload(memory.address, pinned[::2]),
            lambda: gpu.download(pinned[::2], memory.address),
            lambda: gpu.download(fixed, memory.address),
        ]
        for attempt in attempts:
            with pytest.raises(ValueError, match=r"one piece|read-only|not contiguous"):
                attempt()
    gpu.settle()
    assert card.record == []


def test_addresses_are_pythons_own_integers(card: Card, layer: Layer) -> None:
    """pycuda's bindings take no numpy.int64; cuda-bindings take whatever is a whole number, and no float."""
    gpu = Gpu()
    wrong: Any = np.int64 if layer == "pycuda" else float
    with gpu.current("testing"):
        memory, pinned = gpu.allocate(16, "a test"), gpu.pin(8, "a test").array
        assert type(memory.address) is int
        attempts: list[Callable[[], None]] = [
            lambda: gpu.upload(wrong(memory.address), pinned),
            lambda: gpu.download(pinned, wrong(memory.address)),
            lambda: gpu.copy(wrong(memory.address), memory.address, 8),
            lambda: gpu.copy_rows(memory.address, 8, wrong(memory.address), 8, 8, 1),
            lambda: gpu.clear(wrong(memory.address), 8),
        ]
        for attempt in attempts:
            with pytest.raises(TypeError):
                attempt()


# Memory and contexts


def test_memory_that_is_short_is_told_in_megabytes(card: Card) -> None:
    gpu = Gpu()
    with gpu.current("testing"), pytest.raises(GpuMemoryError, match=r"a test needs 100\.0 MB of GPU memory, 64\.0 MB"):
        gpu.allocate(100 * 2**20, "a test")


def test_freed_memory_is_gone(card: Card) -> None:
    gpu = Gpu()
    with gpu.current("testing"):
        memory, pinned = gpu.allocate(16, "a test"), gpu.pin(16, "a test")
        gpu.release([memory.free, pinned.free])
        assert not card.holds(memory.address, 16)
    gpu.close()
    assert not card.left


def test_the_primary_context_is_kept_when_a_gpu_is_closed_and_opened_again(card: Card) -> None:
    """What another library has in it, as TensorRT in static memory, would be destroyed with it."""
    for _ in range(3):
        gpu = Gpu()
        with gpu.current("testing"):
            gpu.allocate(16, "a test").free()
        gpu.close()

    assert (card.retained, card.epoch) == (1, 0)
    assert not card.left


def test_what_lay_in_a_context_that_was_given_up_is_destroyed(card: Card) -> None:
    """The fake is as strict as the driver: the test above could not fail otherwise."""
    gpu = Gpu()
    card.release()

    with pytest.raises(EngineError, match="CONTEXT_IS_DESTROYED"), gpu.current("testing"):
        pass
    with pytest.raises(CudaFault, match="CONTEXT_IS_DESTROYED"):
        card.stream(gpu.stream.handle)


def test_threads_one_after_the_other_use_the_same_context(card: Card) -> None:
    faults: list[Exception] = []

    def use() -> None:
        try:
            gpu = Gpu()
            with gpu.current("testing"):
                gpu.allocate(16, "a test").free()
            gpu.close()
        except EngineError as error:
            faults.append(error)

    for _ in range(2):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    use()

    assert not faults
    assert card.retained == 1
    assert not card.left


# Recording


class Cycle:
    """Garbage that only the collector finds, and that frees memory of the GPU."""

    def __init__(self, free: Callable[[], None]) -> None:
        self.itself, self.free = self, free

    def __del__(self) -> None:
        self.free()


def test_the_garbage_collector_frees_nothing_of_the_gpu_while_work_is_recorded(card: Card) -> None:
    gpu, capture = opened()
    threshold = gc.get_threshold()
    with gpu.current("testing"):
        memory = gpu.allocate(16, "a test")
        Cycle(memory.free)
        allocated = []

        def enqueue() -> bool:
            gc.set_threshold(1)
            kept: list[list[int]] = [[] for _ in range(1000)]
            allocated.append(card.allocated)
            return bool(kept)

        try:
            graph = capture.record(enqueue)
        finally:
            gc.set_threshold(*threshold)
        assert allocated == [1]
        assert gc.isenabled()
        gc.collect()
        assert card.allocated == 0
        graph.destroy()


def test_memory_freed_while_work_is_recorded_breaks_the_recording(card: Card) -> None:
    gpu, capture = opened()
    with gpu.current("testing"):
        memory = gpu.allocate(16, "a test")

        def enqueue() -> bool:
            gpu.release([memory.free])
            return True

        with pytest.raises(CaptureRefusedError, match=r"cuStreamEndCapture failed: .*INVALIDATED"):
            capture.record(enqueue)
        gpu.stream.synchronize()


def test_another_thread_allocates_while_work_is_recorded(card: Card) -> None:
    gpu, capture = opened()

    def allocate() -> None:
        other = Gpu()
        with other.current("testing"):
            other.allocate(16, "a test")

    def enqueue() -> bool:
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()
        return True

    with gpu.current("testing"):
        capture.record(enqueue).destroy()
    assert card.allocated == 1


def test_a_recording_ends_in_the_thread_that_began_it(card: Card) -> None:
    gpu, _ = opened()
    with gpu.current("testing"):
        card.begin_capture(card.stream(gpu.stream.handle))
    faults: list[str] = []

    def end() -> None:
        card.push(card.epoch)
        try:
            card.end_capture(card.stream(gpu.stream.handle))
        except CudaFault as fault:
            faults.append(str(fault))

    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    assert faults == ["CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"]


def test_an_error_while_recording_ends_the_recording_and_is_what_the_caller_sees(card: Card) -> None:
    gpu, capture = opened()

    def enqueue() -> bool:
        raise KeyboardInterrupt

    with gpu.current("testing"):
        with pytest.raises(KeyboardInterrupt):
            capture.record(enqueue)
        assert card.stream(gpu.stream.handle).capture is None
    assert gc.isenabled()
