"""Streams of InsPro and InsPro-lite that share calls, from exported graphs in ONNX Runtime: each is as if alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from inspro_bundles import SETTINGS, exported_inspro, wanted_inspro
from networks import HEIGHT, WIDTH

from visrt.export.bundle import export_bundle
from visrt.export.frames import synthetic_frames
from visrt.runtime.arrays import Array, Feed, HostTensor, Tensor
from visrt.runtime.bundles.bundle import Bundle, initial_states, open_bundle
from visrt.runtime.engines.backends import open_engines
from visrt.runtime.engines.engine import Engine, HostEngine
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.errors import NumericalError, VisrtError
from visrt.runtime.mask_resize import mask_resize
from visrt.runtime.methods.method import BoxTrack, FrameOutputs, FrameTracks, TrackingMethod
from visrt.runtime.methods.registry import method_of
from visrt.runtime.network import Network, drive, of_stream
from visrt.runtime.states import StreamStates
from visrt.runtime.times import Stopwatch

STREAMS, FRAMES, KEY_EVERY = 8, 7, 3
PICTURES = synthetic_frames(STREAMS * FRAMES, HEIGHT, WIDTH, seed=4).images.reshape(STREAMS, FRAMES, HEIGHT, WIDTH, 3)
KINDS = ("inspro", "inspro_lite", "boxes")
"""The last is InsPro-VID, without masks."""
NO_GRAPHS: Any = None


class Counting(HostEngine):
    """An engine that counts its calls, and the streams in them."""

    def __init__(self, engine: Engine, role: str) -> None:
        self._engine, self._role, self.streams = engine, role, list[int]()

    @property
    def provider(self) -> str:
        return self._engine.provider

    def __call__(self, feeds: Any) -> dict[str, Tensor]:
        first: Feed = feeds[self._role]
        self.streams.append(first.shape[0])
        return self._engine(feeds)

    def close(self) -> None:
        self._engine.close()


@dataclass
class Stream:
    """A video, how it is tracked and what was seen of it so far."""

    network: Network
    method: TrackingMethod[Any]
    states: StreamStates
    state: Any
    seen: list[FrameTracks]


@pytest.fixture(scope="module", params=KINDS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    if request.param != "boxes":
        return open_bundle(exported_inspro(tmp_path_factory, request.param).folder)
    settings = replace(SETTINGS, outputs="boxes", lite_stages=0)
    return open_bundle(
        export_bundle(wanted_inspro(tmp_path_factory.mktemp("boxes"), "inspro", settings=settings)).folder
    )


@pytest.fixture
def engines(bundle: Bundle) -> Iterator[dict[str, Engine]]:
    opened = open_engines(bundle, "cpu", EngineOptions(threads=1))
    yield {name: Counting(engine, next(iter(bundle.manifest.graphs[name].inputs))) for name, engine in opened.items()}
    for engine in opened.values():
        engine.close()


def streams_of(bundle: Bundle, engines: dict[str, Engine], count: int = STREAMS) -> list[Stream]:
    """Streams through one set of engines. Every slot is an object."""
    lite = {"key_every_frames": KEY_EVERY} if "head_lite" in engines else {}
    manifest = bundle.manifest.model_copy(update={"association": {**bundle.manifest.association, **lite}})
    method = method_of(manifest)
    network = Network(engines, manifest, Stopwatch(), states=initial_states(bundle))
    return [Stream(network, method, network.new_states(), method.start(network.states), []) for _ in range(count)]


def timed(frame: FrameOutputs, index: int) -> FrameOutputs:
    return replace(frame, time_s=index / 10, resize=mask_resize(frame.fit))


def see(streams: Sequence[Stream], pictures: Array) -> None:
    """The next frame of each of `streams`, all at a time."""
    network, steps = streams[0].network, []
    for stream, frame in zip(streams, network.run_frames(list(pictures)), strict=True):
        steps.append(
            of_stream(
                stream.method.update([timed(frame, len(stream.seen))], NO_GRAPHS, stream.state), network, stream.states
            )
        )
    for stream, result in zip(streams, drive(steps, Stopwatch()), strict=True):
        assert not isinstance(result, VisrtError), result
        [tracks], stream.state = result
        stream.seen.append(tracks)


def alone(bundle: Bundle, engines: dict[str, Engine], video: int, frames: Sequence[int]) -> list[FrameTracks]:
    """What is seen of those frames of a video by a stream of its own."""
    [stream] = streams_of(bundle, engines, 1)
    for t in frames:
        see([stream], PICTURES[video, t : t + 1])
    return stream.seen


def assert_same(given: Sequence[FrameTracks], expected: Sequence[FrameTracks]) -> None:
    """Ids and labels are equal; scores, masks and boxes but for the order of sums in a wider call."""
    assert len(given) == len(expected)
    for one, other in zip(given, expected, strict=True):
        assert [(track.id, track.label) for track in one.tracks] == [(track.id, track.label) for track in other.tracks]
        assert one.tracks
        assert one.dropped_slots == other.dropped_slots
        for track, its in zip(one.tracks, other.tracks, strict=True):
            assert track.score == pytest.approx(its.score, abs=1e-4)
            shapes = [each.corners if isinstance(each, BoxTrack) else each.mask_logits for each in (track, its)]
            np.testing.assert_allclose(shapes[0], shapes[1], rtol=1e-3, atol=1e-3)


def test_inspro_streams_in_one_call_are_as_each_alone(bundle: Bundle, engines: dict[str, Engine]) -> None:
    streams = streams_of(bundle, engines)
    for t in range(FRAMES):
        see(streams, PICTURES[:, t])
    shared = {name: list(counted.streams) for name, counted in engines.items() if isinstance(counted, Counting)}
    assert all(each == [STREAMS] * len(each) for each in shared.values()), "every call served all streams"
    assert sum(len(shared.get(name, ())) for name in ("head", "head_lite")) == FRAMES
    for video, stream in enumerate(streams):
        assert_same(stream.seen, alone(bundle, engines, video, range(FRAMES)))


def test_inspro_streams_that_begin_later_and_skip_calls_leave_the_others_as_they_are(
    bundle: Bundle, engines: dict[str, Engine]
) -> None:
    """With key frames every three, streams are at all phases of the cycle at a time."""
    streams = streams_of(bundle, engines)
    missed = np.random.default_rng(7).random((FRAMES, STREAMS)) < 0.4
    missed[:, 0] = False
    for t in range(FRAMES):
        now = [video for video in range(STREAMS) if not missed[t, video]]
        see([streams[video] for video in now], PICTURES[now, t])
    for video, stream in enumerate(streams):
        frames = [t for t in range(FRAMES) if not missed[t, video]]
        assert_same(stream.seen, alone(bundle, engines, video, frames))


def test_inspro_a_stream_that_is_not_finite_spreads_to_nobody(bundle: Bundle, engines: dict[str, Engine]) -> None:
    """Its frame is an error and leaves its state as it was; it goes on with the next."""
    streams, expected = streams_of(bundle, engines, 3), streams_of(bundle, engines, 3)
    network = streams[0].network
    for t in range(4):
        see(expected, PICTURES[:3, t])
        if t != 1:
            see(streams, PICTURES[:3, t])
            continue
        before = streams[1].states.save()
        frames = network.run_frames(list(PICTURES[:3, t]))
        frames[1].device["picture_sizes"] = HostTensor(np.full(2, np.nan, np.float32))
        steps = [
            of_stream(stream.method.update([timed(frame, t)], NO_GRAPHS, stream.state), network, stream.states)
            for stream, frame in zip(streams, frames, strict=True)
        ]
        results = drive(steps, Stopwatch())
        assert isinstance(results[1], NumericalError)
        for name, values in streams[1].states.save().items():
            np.testing.assert_array_equal(values, before[name])
        for at in (0, 2):
            result = results[at]
            assert not isinstance(result, VisrtError), result
            [tracks], streams[at].state = result
            streams[at].seen.append(tracks)
    for at in (0, 2):
        assert_same(streams[at].seen, expected[at].seen)
    assert_same(streams[1].seen, alone(bundle, engines, 1, [0, 2, 3]))
