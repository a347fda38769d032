"""State on a fake GPU: it stays there between calls, streams share them, and the stream's order keeps it whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from fake_gpu import Gpu
from fake_tensorrt import FLAVOURS
from stateful_graphs import QUERIES, decoded, stateful_manifest, stateful_models, summed
from trt_rig import Rig, rig_of

from visrt.runtime.arrays import Array, Buffer, Floats, HostTensor, Joined, Tensor
from visrt.runtime.engines.trt.library import Flavour
from visrt.runtime.errors import EngineError

pytestmark = pytest.mark.usefixtures("layer")

VERSIONS = [(flavour, version) for flavour, versions in FLAVOURS.items() for version in versions]
STREAMS = 3
FLOAT = np.dtype(np.float32)


def stateful_rig(
    monkeypatch: pytest.MonkeyPatch,
    gpu: Gpu | None = None,
    channels: int = 64,
    flavour: Flavour = "tensorrt",
    version: str = "10.13.3.9",
) -> Rig:
    manifest = stateful_manifest(channels)
    return rig_of(
        monkeypatch, gpu, flavour, version, batch=STREAMS, manifest=manifest, models=stateful_models(manifest)
    )


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return stateful_rig(monkeypatch)


def values(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pictures(frame: int, streams: Sequence[int], channels: int = 64) -> Floats:
    return np.stack([values(100 * frame + stream, QUERIES, channels) for stream in streams])


def state_of(rig: Rig, *shape: int, engine: str = "decoder") -> Buffer:
    return rig.engines[engine].buffer(shape, FLOAT)


def decode(rig: Rig, tokens: Sequence[Tensor], states: Sequence[Buffer]) -> dict[str, Tensor]:
    queries = Joined(tuple(state.tensor for state in states), (len(states),))
    return rig.engines["decoder"]({"tokens": Joined(tuple(tokens), (len(tokens),)), "queries": queries})


def advance(rig: Rig, frame: int, streams: Sequence[int], states: Sequence[Buffer]) -> Tensor:
    """One frame of `streams` in one call of each graph; their states are renewed. The class logits."""
    channels = states[0].tensor.shape[1]
    tokens = rig.frame({"images": pictures(frame, streams, channels)})["tokens"]
    rows = [tokens.row(at) for at in range(len(streams))]
    answer = decode(rig, rows, [states[stream] for stream in streams])
    for at, stream in enumerate(streams):
        states[stream].write(answer["next_queries"].row(at))
    return answer["class_logits"]


# State goes round on the device


@pytest.mark.parametrize(("flavour", "version"), VERSIONS)
@pytest.mark.parametrize("channels", [64, 65])
def test_state_goes_round_for_any_subset_of_the_streams(
    monkeypatch: pytest.MonkeyPatch, flavour: Flavour, version: str, channels: int
) -> None:
    """With 65 channels no row but the first is aligned as TensorRT needs it."""
    rig = stateful_rig(monkeypatch, None, channels, flavour, version)
    states = [state_of(rig, QUERIES, channels) for _ in range(STREAMS)]
    expected = [values(stream, QUERIES, channels) for stream in range(STREAMS)]
    for state, first in zip(states, expected, strict=True):
        state.write(first)

    for frame, streams in enumerate([(0, 1, 2), (1,), (2, 0), (0, 1, 2), (1, 2), (0,), (2, 0), (0, 1, 2)] * 2):
        logits = advance(rig, frame, streams, states).numpy()
        for at, stream in enumerate(streams):
            expected[stream] = decoded(pictures(frame, streams, channels)[at], expected[stream])
            np.testing.assert_array_equal(logits[at], expected[stream][:, :3])

    for state, last in zip(states, expected, strict=True):
        np.testing.assert_array_equal(state.numpy(), last)


def test_nothing_but_pictures_and_class_logits_crosses(rig: Rig) -> None:
    states = [state_of(rig, QUERIES, 64) for _ in range(STREAMS)]
    advance(rig, 0, (0, 1, 2), states).numpy()
    before = dict(rig.gpu.counts)

    for frame in range(1, 6):
        advance(rig, frame, (0, 1, 2), states).numpy()

    assert rig.gpu.counts["htod_bytes"] - before["htod_bytes"] == 5 * STREAMS * QUERIES * 64 * 4
    assert rig.gpu.counts["dtoh_bytes"] - before["dtoh_bytes"] == 5 * STREAMS * QUERIES * 3 * 4
    assert rig.gpu.counts["pageable"] == 0


def test_streams_together_are_bit_equal_to_each_alone(rig: Rig) -> None:
    together = [state_of(rig, QUERIES, 64) for _ in range(STREAMS)]
    alone = [state_of(rig, QUERIES, 64) for _ in range(STREAMS)]
    for frame in range(4):
        joint = advance(rig, frame, (0, 1, 2), together).numpy()
        for stream in range(STREAMS):
            single = advance(rig, frame, (stream,), alone).numpy()
            np.testing.assert_array_equal(joint[stream], single[0])


def test_state_is_written_behind_the_calls_that_read_it_and_before_those_after(rig: Rig) -> None:
    state, tokens = state_of(rig, QUERIES, 64), [HostTensor(values(9, QUERIES, 64))]
    first, second = values(1, QUERIES, 64), values(2, QUERIES, 64)

    state.write(first)
    before = decode(rig, tokens, [state])["class_logits"]
    state.write(second)
    after = decode(rig, tokens, [state])["class_logits"]

    assert rig.gpu.counts["executions"] == 0
    np.testing.assert_array_equal(before.numpy()[0], decoded(values(9, QUERIES, 64), first)[:, :3])
    np.testing.assert_array_equal(after.numpy()[0], decoded(values(9, QUERIES, 64), second)[:, :3])


def test_state_passes_between_the_streams_of_the_graphs_both_ways(rig: Rig) -> None:
    """The frame graph has a stream of its own; what it would read is written by a graph of the other."""
    here, there = state_of(rig, QUERIES, 64), state_of(rig, QUERIES, 64, engine="frame")
    for seed in range(3):
        tokens, first = HostTensor(values(seed, QUERIES, 64)), values(seed + 9, QUERIES, 64)
        here.write(first)
        there.write(decode(rig, [tokens], [here])["next_queries"].row(0))
        here.write(there.tensor)
        there.write(first)

        np.testing.assert_array_equal(there.numpy(), first)
        np.testing.assert_array_equal(here.numpy(), decoded(tokens.numpy(), first))


def test_state_from_the_host_and_from_the_device_may_be_mixed(rig: Rig) -> None:
    state, host = state_of(rig, QUERIES, 64), values(3, QUERIES, 64)
    state.write(values(4, QUERIES, 64))
    tokens = [HostTensor(values(stream, QUERIES, 64)) for stream in range(2)]
    queries = Joined((HostTensor(host), state.tensor), (2,))

    answer = rig.engines["decoder"]({"tokens": Joined(tuple(tokens), (2,)), "queries": queries})["class_logits"].numpy()

    np.testing.assert_array_equal(answer[0], decoded(tokens[0].numpy(), host)[:, :3])
    np.testing.assert_array_equal(answer[1], decoded(tokens[1].numpy(), values(4, QUERIES, 64))[:, :3])


# How inputs lie


def test_rows_that_follow_each_other_are_copied_as_one(rig: Rig) -> None:
    state = state_of(rig, QUERIES, 64)
    tokens = rig.frame({"images": pictures(0, (0, 1, 2))})["tokens"]
    states, copies = [state, state], []
    for order in [(0, 1), (1, 2), (1, 0)]:
        before = rig.gpu.counts["dtod"]
        logits = decode(rig, [tokens.row(at) for at in order], states)["class_logits"].numpy()
        copies.append(rig.gpu.counts["dtod"] - before - len(states))
        np.testing.assert_array_equal(logits, pictures(0, (0, 1, 2))[list(order)][..., :3])

    assert copies == [1, 1, 2]


def test_small_states_cost_no_contexts_however_many_streams_there_are(rig: Rig) -> None:
    tokens = [HostTensor(values(0, QUERIES, 64))]
    states = [state_of(rig, QUERIES, 64) for _ in range(20)]
    for state in states[:2]:
        decode(rig, tokens, [state])
    contexts = rig.gpu.counts["contexts"]

    for state in states:
        decode(rig, tokens, [state])

    assert rig.gpu.counts["contexts"] == contexts


def test_masks_that_pad_lie_between_streams_and_are_left_out(rig: Rig) -> None:
    """Three masks run as four; those of the second stream do not follow those of the first in memory."""
    states = [state_of(rig, QUERIES, 64) for _ in range(2)]
    tokens = [HostTensor(values(stream, QUERIES, 64)) for stream in range(2)]
    for slots in ([[0, 3, 1], [2, 2, 0]], [[3], [1]], [[1, 2, 3], [0, 1, 3]], [[3, 2, 1, 0], [0, 1, 2, 3]]) * 3:
        embeddings = decode(rig, tokens, states)["mask_embeddings"]
        chosen = np.array(slots, np.int32)
        before = rig.gpu.counts["dtoh_bytes"]
        kept = rig.masks({"slots": chosen, "mask_embeddings": embeddings})["kept_embeddings"]

        assert rig.gpu.counts["dtoh_bytes"] - before == chosen.size * 64 * 4
        assert kept.shape == (*chosen.shape, 64)
        for stream in range(2):
            expected = -tokens[stream].numpy()[chosen[stream]]
            np.testing.assert_array_equal(kept.numpy()[stream], expected)
            np.testing.assert_array_equal(kept.row(stream).numpy(), expected)
            np.testing.assert_array_equal(kept.row(stream).row(0).numpy(), expected[0])
    assert "execute mask_embeddings [2, 4, 64], slots [2, 4]" in rig.gpu.record
    assert not any("slots [2, 3]" in done for done in rig.gpu.record)


def test_room_for_clips_is_never_padded(rig: Rig) -> None:
    """What lies in the padding would count as remembered."""
    memory = rig.engines["memory"]
    with pytest.raises(EngineError, match=r"clips is 3, the engine runs 1, 2, 4, 8"):
        memory({"keys": values(0, QUERIES, 3, 64), "clips": np.zeros(3, np.int32)})
    with pytest.raises(
        EngineError, match=r"clips is 16, the engine was opened for 1 to 8; open it with memory_clips of 16 or more"
    ):
        memory({"keys": values(0, QUERIES, 16, 64), "clips": np.zeros(16, np.int32)})


def test_more_streams_than_the_engine_was_opened_for_are_refused(rig: Rig) -> None:
    states = [state_of(rig, QUERIES, 64) for _ in range(4)]
    tokens = [HostTensor(values(0, QUERIES, 64))] * 4
    with pytest.raises(EngineError, match=r"streams is 4, the engine was opened for 1 to 3; .*--batch"):
        decode(rig, tokens, states)


def test_what_a_graph_of_one_stream_leaves_is_there_until_all_streams_were_called(rig: Rig) -> None:
    """Two calls are in flight; the third stream's call would else take the buffer of the first."""
    memory, clips = rig.engines["memory"], np.arange(2, dtype=np.int32)
    for turn in range(3):
        keys = [values(10 * turn + stream, QUERIES, 2, 64) for stream in range(STREAMS)]
        summaries = [memory({"keys": one, "clips": clips})["summary"] for one in keys]
        logits = decode(rig, summaries, [state_of(rig, QUERIES, 64)] * STREAMS)["class_logits"].numpy()

        for stream in range(STREAMS):
            np.testing.assert_allclose(logits[stream], summed(keys[stream], clips)[:, :3], atol=1e-5)
            np.testing.assert_allclose(summaries[stream].numpy(), summed(keys[stream], clips), atol=1e-5)
    memory({"keys": keys[0], "clips": clips})
    with pytest.raises(EngineError, match="'summary' is outdated"):
        summaries[0].numpy()


# Rings


@pytest.mark.parametrize("on_device", [False, True])
def test_entries_go_to_their_place_and_leave_the_others(rig: Rig, on_device: bool) -> None:
    ring, expected = state_of(rig, QUERIES, 4, 64), np.zeros((QUERIES, 4, 64), np.float32)
    source = state_of(rig, QUERIES, 64), state_of(rig, QUERIES, 2, 64)
    for seed, at in enumerate([3, 0, 2, 3]):
        one, two = values(seed, QUERIES, 64), values(seed + 9, QUERIES, 2, 64)
        source[0].write(one)
        source[1].write(two)
        ring.write_entries(at, source[0].tensor if on_device else one)
        expected[:, at] = one
        ring.write_entries(at // 2, source[1].tensor if on_device else HostTensor(two))
        expected[:, at // 2 : at // 2 + 2] = two

    np.testing.assert_array_equal(ring.numpy(), expected)
    np.testing.assert_array_equal(ring.tensor.row(1).numpy(), expected[1])


def test_a_ring_that_grows_takes_its_entries_along_on_the_device(rig: Rig) -> None:
    small, large = state_of(rig, QUERIES, 2, 64), state_of(rig, QUERIES, 4, 64)
    small.write(values(0, QUERIES, 2, 64))
    before = rig.gpu.counts["dtoh_bytes"]
    large.write_entries(0, small.tensor)
    small.close()

    assert rig.gpu.counts["dtoh_bytes"] == before
    np.testing.assert_array_equal(large.numpy()[:, :2], values(0, QUERIES, 2, 64))
    assert not large.numpy()[:, 2:].any()


def test_entries_beyond_the_ring_are_refused(rig: Rig) -> None:
    ring = state_of(rig, QUERIES, 4, 64)
    for at, shape in [(4, (QUERIES, 64)), (-1, (QUERIES, 64)), (3, (QUERIES, 2, 64))]:
        with pytest.raises(IndexError, match="of a ring of 4"):
            ring.write_entries(at, np.zeros(shape, np.float32))


# Buffers


def test_a_buffer_holds_zeros_until_it_is_written(rig: Rig) -> None:
    state = state_of(rig, QUERIES, 64)
    assert (state.bytes, state.tensor.shape, state.tensor.device) == (QUERIES * 64 * 4, (QUERIES, 64), "cuda:0")
    assert not state.numpy().any()


def test_what_was_written_stays_when_the_caller_changes_his_array(rig: Rig) -> None:
    given = [values(seed, 3, 500_000) for seed in range(3)]
    states = [state_of(rig, 3, 500_000) for _ in given]
    for state, array in zip(states, given, strict=True):
        state.write(array)
        array[:] = 0

    for seed, state in enumerate(states):
        np.testing.assert_array_equal(state.numpy(), values(seed, 3, 500_000))
    assert rig.gpu.counts["pageable"] == 0
    assert rig.gpu.counts["pin"] == 1 + stateful_pins(rig)


def stateful_pins(rig: Rig) -> int:
    """Page-locked memory of the two slots of each graph: of all inputs from the host, and of all outputs to it."""
    places = [
        bool(side.keys() - rig.manifest.device_roles(name))
        for name, graph in rig.manifest.graphs.items()
        for side in (graph.inputs, graph.outputs)
    ]
    return 2 * sum(places)


USES: dict[str, Callable[[Buffer], object]] = {
    "tensor": lambda state: state.tensor,
    "write": lambda state: state.write(np.zeros((QUERIES, 64), np.float32)),
    "write_entries": lambda state: state.write_entries(0, np.zeros(QUERIES, np.float32)),
    "numpy": lambda state: state.numpy(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("closed", ["buffer", "engine"])
def test_a_closed_buffer_refuses_every_use(rig: Rig, use: str, closed: str) -> None:
    state = state_of(rig, QUERIES, 64)
    tensor = state.tensor
    (state if closed == "buffer" else rig.engines["decoder"]).close()
    state.close()

    told = "belongs to a stream that was closed; open a new session"
    with pytest.raises(EngineError, match=told):
        USES[use](state)
    with pytest.raises(EngineError, match=told):
        tensor.numpy()


def test_buffers_are_freed_one_by_one_and_with_their_engine(rig: Rig) -> None:
    before = rig.gpu.allocated
    states = [state_of(rig, QUERIES, 64) for _ in range(3)]
    states[0].write(values(0, QUERIES, 64))
    states[0].close()
    assert rig.gpu.allocated == before + 2
    rig.close()
    assert not rig.gpu.left


def test_values_that_do_not_fit_are_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = stateful_rig(monkeypatch, Gpu())
    state, other = state_of(rig, QUERIES, 64), state_of(elsewhere, QUERIES, 64)
    faults: list[tuple[Array | Tensor, str]] = [
        (np.zeros((QUERIES, 65), np.float32), r"given float32 \[4, 65\], expected float32 \[4, 64\]"),
        (np.zeros((QUERIES, 64)), r"given float64 \[4, 64\], expected float32 \[4, 64\]"),
        (other.tensor, r"another bundle's engine; give it as \.numpy\(\)"),
    ]
    for given, told in faults:
        with pytest.raises(EngineError, match=told):
            state.write(given)


def test_a_closed_engine_makes_no_buffers(rig: Rig) -> None:
    rig.close()
    with pytest.raises(EngineError, match="the engine is closed; open the bundle again"):
        state_of(rig, QUERIES, 64)


def test_only_the_thread_of_the_engines_writes_and_reads_state(rig: Rig) -> None:
    state, faults = state_of(rig, QUERIES, 64), []

    def attempt() -> None:
        for use in ("write", "numpy"):
            try:
                USES[use](state)
            except EngineError as error:
                faults.append(str(error))

    thread = threading.Thread(target=attempt, name="stranger")
    thread.start()
    thread.join()
    assert len(faults) == 2
    assert all("thread 'stranger' uses an engine of thread 'MainThread'" in fault for fault in faults)


def test_state_that_finds_no_memory_is_an_error_in_megabytes_and_the_engine_lives_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = stateful_rig(monkeypatch, Gpu(memory_mb=8))
    with pytest.raises(EngineError, match=r"state \[4, 1000000\] needs 15\.3 MB of GPU memory, .* of 8\.0 MB are free"):
        state_of(rig, 4, 1_000_000)
    assert not state_of(rig, QUERIES, 64).numpy().any()
