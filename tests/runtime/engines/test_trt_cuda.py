"""One GPU through each library that calls CUDA's driver, on a fake GPU: streams, memory, contexts and errors."""

from __future__ import annotations

import pytest
from fake_gpu import RUBBISH, CudaFault
from fake_gpu import Gpu as Card
from fake_pycuda import install_cuda

from visrt.runtime.engines.trt.cuda import Gpu, PinnedMemory


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
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
