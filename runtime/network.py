"""The engines of a bundle: frames in, outputs of the frame graph out; further graphs and masks on request."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from itertools import groupby
from math import prod
from typing import NamedTuple, TypeVar

import numpy as np

from visrt.runtime.arrays import Array, Feed, Floats, HostTensor, Joined, Tensor, Tensors, in_float32
from visrt.runtime.bundles.dynamic_axes import FRAMES, MASKS, STREAMS
from visrt.runtime.bundles.manifest import GraphSpec, Manifest, StateSpec, TensorSpec
from visrt.runtime.engines.backends import OpenEngines, SizedEngines
from visrt.runtime.engines.engine import AsyncEngine, Engine
from visrt.runtime.errors import EngineError, UsageError, VisrtError
from visrt.runtime.image import RESIZERS, Frame, Letterbox, best_size, letterbox_into
from visrt.runtime.methods.method import Answer, Call, FrameOutputs, Steps, refuse_nonfinite
from visrt.runtime.states import StreamStates
from visrt.runtime.times import Stopwatch

__all__ = [
    "Batch",
    "FrameStates",
    "Network",
    "Networks",
    "StreamCall",
    "StreamGraphs",
    "StreamSteps",
    "drive",
    "of_stream",
]

SOURCES = 64
"""Frame sizes whose network is remembered; one more costs a look at the sizes of the bundle."""


@dataclass(frozen=True)
class Batch:
    """Successive frames of one stream, ready for the frame graph of `network`.

    images: uint8 RGB [B, H, W, 3]. fits: how each lies in the network input. times_s: when each is shown, in seconds,
    or None where the caller did not say.
    """

    images: Array
    fits: tuple[Letterbox, ...]
    times_s: tuple[float | None, ...]
    network: Network

    def __len__(self) -> int:
        return len(self.fits)

    def __getitem__(self, part: slice) -> Batch:
        return Batch(self.images[part], self.fits[part], self.times_s[part], self.network)

    @staticmethod
    def joined(parts: Sequence[Batch]) -> Batch:
        """One after the other; at least one part, all for one network. A part alone is not copied."""
        full = [part for part in parts if len(part)] or parts[:1]
        if len(full) == 1:
            return full[0]
        fits, times = ((part.fits for part in full), (part.times_s for part in full))
        return Batch(np.concatenate([part.images for part in full]), sum(fits, ()), sum(times, ()), full[0].network)


@dataclass
class FrameStates:
    """What a stream carries where the frame graph takes state.

    fit: of the last frame that was submitted; last: that call, where it runs in another thread.
    """

    states: StreamStates
    fit: Letterbox | None = None
    last: Future[Mapping[str, Tensor]] | None = None


class StreamCall(NamedTuple):
    """A call for one stream."""

    network: Network
    states: StreamStates
    call: Call


T = TypeVar("T")
StreamSteps = Generator[StreamCall, Answer, T]
"""As `method.Steps`, of a stream that is known."""


class Network:
    """Runs the graphs of one bundle at one size of its input and measures them with `watch`.

    engines: by graph, or what opens them when the first frame is to be seen. input: in pixels. states: the bundle's
    initial state tensors by name. worker_threads: threads that run a frame engine which would make its caller wait; 0
    runs it in the caller's thread.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine] | OpenEngines,
        manifest: Manifest,
        watch: Stopwatch,
        resize: str | None = None,
        states: Tensors | None = None,
        worker_threads: int = 0,
    ) -> None:
        self._manifest, self.input, self._watch = manifest, manifest.input, watch
        if resize is not None and self.input.source is not None:
            raise UsageError(f"resize {resize!r} was given, but this bundle resizes inside its graph; leave it out")
        self._resize: Callable[[Frame, tuple[int, int]], Frame] = RESIZERS[resize or self.input.resize]
        self.states: Tensors = {
            name: np.zeros(manifest.initial_shape(name), spec.dtype) for name, spec in manifest.states.items()
        } | dict(states or {})
        self._image_size = self.input.image_size
        self._on_device = {name: manifest.device_roles(name) for name in manifest.graphs}
        self._reads = {name: manifest.read_by(name) for name in manifest.graphs}
        self._shared = {
            name
            for name, graph in manifest.graphs.items()
            if any(spec.shape[:1] == (STREAMS,) for spec in graph.inputs.values())
        }
        self._worker_threads = worker_threads
        self._engines: Mapping[str, Engine] = {}
        self._workers: ThreadPoolExecutor | None = None
        self._open_engines: OpenEngines | None = None
        if isinstance(engines, Mapping):
            self._take(engines)
        else:
            self._open_engines = engines

    def open(self) -> None:
        """Opens the engines that were left for the first frame."""
        if self._open_engines is not None:
            self._take(self._open_engines())
            self._open_engines = None

    def _take(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines
        self._async = isinstance(engines.get("frame"), AsyncEngine)
        if self._async and self._worker_threads > 1:
            raise UsageError(f"in_flight is {self._worker_threads + 1}; this engine takes 2 at the most")
        if self._worker_threads and not self._async:
            self._workers = ThreadPoolExecutor(self._worker_threads, "visrt-frame-engine")

    @property
    def identity(self) -> str:
        """The network by its input size and a hash of its graphs, "384x640 5d41402abc4b": what its states belong to."""
        graphs = " ".join(f"{name} {spec.sha256}" for name, spec in sorted(self._manifest.graphs.items()))
        return f"{self.input.text} {sha256(graphs.encode()).hexdigest()[:12]}"

    @property
    def stateful_frames(self) -> bool:
        """Whether the frame graph takes state, so that its calls cannot be repeated or shared."""
        return bool(self._reads["frame"])

    @property
    def stateful(self) -> bool:
        """Whether streams carry state in the engines' memory."""
        return any(self._reads.values())

    @property
    def has_masks(self) -> bool:
        """Whether the bundle makes masks, and not boxes alone."""
        return "masks" in self._manifest.graphs

    def new_states(self) -> StreamStates:
        """The carried state of a new stream."""
        return StreamStates(self._manifest, self.states, lambda graph: self._engines[graph].buffer)

    def prepare(self, frames: Sequence[Frame], times_s: Sequence[float | None]) -> Batch:
        """`frames` [H, W, 3], uint8 RGB of any size, resized and padded for the frame graph. From any thread."""
        images = np.empty((len(frames), *self._image_size, 3), dtype=np.uint8)
        fits = [letterbox_into(out, frame, self.input, self._resize) for frame, out in zip(frames, images, strict=True)]
        return Batch(images, tuple(fits), tuple(times_s), self)

    def submit(self, parts: Sequence[tuple[Batch, FrameStates]]) -> Callable[[], list[FrameOutputs]]:
        """Hands the frames of one or several streams to the frame engine, which may go on while the host works.

        One call for all; where the frame graph takes state, a call per frame, as each needs the outputs of the last.
        The function that comes back waits for the engine and gives the outputs for each frame. Opens the engines if
        they are not open.
        """
        self.open()
        images: Feed
        images, fits, times = parts[0][0].images, parts[0][0].fits, parts[0][0].times_s
        for one, _ in parts[1:]:
            fits, times = fits + one.fits, times + one.times_s
        with self._watch.stage("copy_in" if self._async else "frame_engine"):
            if self.stateful_frames:
                calls = [self._stateful_call(one[at : at + 1], state) for one, state in parts for at in range(len(one))]
            else:
                if self._async and len(parts) > 1:
                    # It copies them to page-locked memory, from where they lie.
                    images = Joined(tuple(HostTensor(image) for one, _ in parts for image in one.images), (len(fits),))
                elif len(parts) > 1:
                    images = Batch.joined([one for one, _ in parts]).images
                calls = [self._call(_frame_feeds(images, fits))]
        return lambda: self._wait(fits, times, calls)

    def _wait(
        self,
        fits: Sequence[Letterbox],
        times_s: Sequence[float | None],
        calls: Sequence[Callable[[], Mapping[str, Tensor]]],
    ) -> list[FrameOutputs]:
        frames: list[FrameOutputs] = []
        for call in calls:
            with self._watch.stage("frame_engine"):
                outputs = call()
                if self._async:
                    _wait_for(outputs, self._on_device["frame"])
            with self._watch.stage("copy_out"):
                host, device = self._split("frame", outputs)
                done, count = len(frames), len(fits) // len(calls)
                frames += [
                    FrameOutputs(
                        fits[done + item],
                        {role: array[item] for role, array in host.items()},
                        {role: tensor.row(item) for role, tensor in device.items()},
                        times_s[done + item],
                    )
                    for item in range(count)
                ]
        return frames

    def run_frames(self, frames: Sequence[Frame]) -> list[FrameOutputs]:
        """Outputs for each of `frames`, [H, W, 3] uint8 RGB of any size, as a stream of their own."""
        return self.submit([(self.prepare(frames, [None] * len(frames)), FrameStates(self.new_states()))])()

    def run(self, graph: str, calls: Sequence[StreamCall]) -> list[Answer]:
        """One call of `graph` for streams, each of which comes once; for one alone where it has no stream axis."""
        spec = self._manifest.graphs[graph]
        with self._watch.stage("mask_engine" if graph == MASKS else f"{graph}_engine"):
            outputs = self._engines[graph]({role: self._feed(graph, role, calls) for role in spec.inputs})
            host, device = self._split(graph, outputs)
            return [self._answer(graph, call, at, host, device) for at, call in enumerate(calls)]

    def alone(self, steps: Steps[T], states: StreamStates) -> T:
        """Does the work of one stream. Raises its errors."""
        [result] = drive([of_stream(steps, self, states)], self._watch)
        if isinstance(result, VisrtError):
            raise result
        return result

    def shares_calls(self, graph: str) -> bool:
        """Whether a call of `graph` serves several streams."""
        return graph in self._shared

    def _feed(self, graph: str, role: str, calls: Sequence[StreamCall]) -> Feed:
        """The input `role` of all `calls`, with a stream axis where the graph has one."""
        spec, first = self._manifest.graphs[graph].inputs[role], calls[0].call
        lead = (len(calls),) if spec.shape[:1] == (STREAMS,) else ()
        if role in first.feeds:
            arrays = [np.asarray(call.call.feeds[role], dtype=spec.dtype) for call in calls]
            return _stacked(arrays) if lead else arrays[0]
        rows = [row for call in calls for row in self._rows(graph, role, spec, call)]
        if spec.shape[1:2] == (FRAMES,):
            lead = (*lead, len(first.frames))
        return Joined(tuple(rows), lead) if lead else rows[0]

    def _rows(self, graph: str, role: str, spec: TensorSpec, call: StreamCall) -> list[Tensor]:
        """The tensors on the device that are one stream's part of an input: its state, or of its frames."""
        for name, state in self._reads[graph].items():
            if state.input == role:
                return [call.states.tensor(name, _entries(self._manifest.graphs[graph], state, call.call.feeds))]
        frames = call.call.frames if FRAMES in spec.shape else call.call.frames[-1:]
        return [frame.device[role] for frame in frames]

    def _answer(self, graph: str, call: StreamCall, at: int, host: Tensors, device: Mapping[str, Tensor]) -> Answer:
        """The outputs of stream number `at` of a call."""
        shared, outputs = self.shares_calls(graph), self._manifest.graphs[graph].outputs
        masks = len(call.call.feeds.get("slots", ()))
        own = {role: array[at] if shared else array for role, array in host.items()}
        own = {role: array[:masks] if MASKS in outputs[role].shape else array for role, array in own.items()}
        stays = {role: tensor.row(at) if shared else tensor for role, tensor in device.items()}
        for frame in call.call.frames:
            frame.device.update(stays)
        return Answer(own, stays, partial(call.states.renew, {**own, **stays}))

    def run_masks(self, mask_embeddings: Floats, device: Mapping[str, Tensor]) -> Floats:
        """Mask logits [M, H / 4, W / 4] of `mask_embeddings` [M, D] in the frame whose tensors on the device these
        are. Of networks whose slots are objects, M is at most the number of slots."""
        return in_float32(self.mask_logits(mask_embeddings, device))

    def mask_logits(self, mask_embeddings: Floats, device: Mapping[str, Tensor]) -> Array:
        """As `run_masks`, in the bundle's own dtype, float32 or float16."""
        spec = self._manifest.graphs[MASKS].inputs
        given = mask_embeddings.astype(spec["mask_embeddings"].dtype, copy=False)
        feeds: dict[str, Feed] = {"mask_embeddings": given, "mask_features": device["mask_features"]}
        if "slots" in spec:
            slots_of_frame = spec["mask_embeddings"].shape[1]
            assert isinstance(slots_of_frame, int)
            table = np.zeros((1, slots_of_frame, given.shape[1]), given.dtype)
            table[0, : len(given)] = given
            slots = np.arange(len(given), dtype=np.int32)[None]
            feeds = {
                "slots": slots,
                "mask_embeddings": table,
                "mask_features": Joined((device["mask_features"],), (1,)),
            }
        with self._watch.stage("mask_engine"):
            logits = self._engines[MASKS](feeds)["mask_logits"].numpy()
            refuse_nonfinite("mask_logits", logits)
            return logits[0] if "slots" in spec else logits

    def close(self) -> None:
        if self._workers is not None:
            self._workers.shutdown()
        for engine in self._engines.values():
            engine.close()

    def _call(self, feeds: Mapping[str, Feed]) -> Callable[[], Mapping[str, Tensor]]:
        if self._workers is not None:
            return self._workers.submit(self._engines["frame"], feeds).result
        outputs = self._engines["frame"](feeds)
        return lambda: outputs

    def _stateful_call(self, frame: Batch, state: FrameStates) -> Callable[[], Mapping[str, Tensor]]:
        """A call of one frame, behind that of the stream's last frame. The first and one of another aspect start from
        the initial state; NaN or infinity leaves the state as it was."""
        fresh = state.fit is None or not state.fit.like(frame.fits[0])
        state.fit, before = frame.fits[0], state.last

        def call() -> Mapping[str, Tensor]:
            if before is not None:
                before.exception()  # waits; its error meets whoever waits for that call
            if fresh:
                state.states.reset(["frame"])
            reads = self._reads["frame"].items()
            fed = {spec.input: Joined((state.states.tensor(name),), (1,)) for name, spec in reads}
            outputs = self._engines["frame"]({**_frame_feeds(frame.images, frame.fits), **fed})
            renewed = {spec.output: outputs[spec.output].row(0) for _, spec in reads}
            if all(np.isfinite(tensor.numpy()).all() for tensor in renewed.values()):
                state.states.renew(renewed)
            return outputs

        if self._workers is None:
            outputs = call()
            return lambda: outputs
        state.last = self._workers.submit(call)
        return state.last.result

    def _split(self, graph: str, outputs: Mapping[str, Tensor]) -> tuple[Tensors, dict[str, Tensor]]:
        """Outputs that the host needs, in float32, and those that stay on the device."""
        stay = self._on_device[graph]
        host = {role: in_float32(tensor.numpy()) for role, tensor in outputs.items() if role not in stay}
        return host, {role: tensor for role, tensor in outputs.items() if role in stay}


class Networks:
    """The network of a bundle at each size of its input. A frame goes to the one in which it is seen best.

    of: that network, for frames of a size (height, width). main: the network at the bundle's main size.
    """

    def __init__(
        self, sizes: Sequence[SizedEngines], watch: Stopwatch, resize: str | None = None, worker_threads: int = 0
    ) -> None:
        """Of each size; the other parameters as of a `Network`."""
        networks = [
            Network(engines, manifest, watch, resize, states, worker_threads) for manifest, engines, states in sizes
        ]
        specs = [network.input for network in networks]
        self.main, self._all = networks[0], tuple(networks)
        self.of: Callable[[tuple[int, int]], Network] = lru_cache(SOURCES)(
            lambda source: networks[best_size(source, specs)]
        )

    def __len__(self) -> int:
        return len(self._all)

    def open(self, identity: str) -> None:
        """Opens the engines of the network with this `identity`, if it is one of these."""
        for network in self._all:
            if network.identity == identity:
                network.open()

    def __iter__(self) -> Iterator[Network]:
        return iter(self._all)

    def prepare(self, frames: Sequence[Frame], times_s: Sequence[float | None]) -> list[Batch]:
        """Successive `frames` [H, W, 3], uint8 RGB of any size, each for its network: a batch for each run of frames
        that go to the same. From any thread."""
        batches: list[Batch] = []
        done = 0
        for network, same in groupby(frames, key=lambda frame: self.of(frame.shape[:2])):
            run = list(same)
            batches.append(network.prepare(run, times_s[done : done + len(run)]))
            done += len(run)
        return batches

    def close(self) -> None:
        for network in self._all:
            network.close()


class StreamGraphs:
    """The graphs of a bundle for one stream; see `method.Graphs`."""

    def __init__(self, network: Network, states: StreamStates) -> None:
        self._network, self._states = network, states

    def masks(self, frame: FrameOutputs, mask_embeddings: Floats) -> Array:
        assert frame.resize is not None, "the tracker sets the resize before it updates the method"
        return frame.resize.crop(self._network.mask_logits(mask_embeddings, frame.device))

    def state(self, name: str) -> Array:
        return self._states.tensor(name).numpy()


def of_stream(steps: Steps[T], network: Network, states: StreamStates) -> StreamSteps[T]:
    """`steps` whose calls are those of a stream in `network`."""
    answer: Answer | None = None
    while True:
        try:
            call = steps.send(answer)  # type: ignore[arg-type]
        except StopIteration as end:
            result: T = end.value
            return result
        answer = yield StreamCall(network, states, call)


def drive(works: Sequence[StreamSteps[T]], watch: Stopwatch) -> list[T | VisrtError]:
    """Does the `works` of streams together: calls of one graph that wait at a time become one. Each gives its result
    or its error, and an error is nobody else's. Where the engine refuses a call of several, they go on one by one."""
    results: dict[int, T | VisrtError] = {}
    waiting: dict[int, StreamCall] = {}

    def go_on(at: int, answer: Answer | None) -> None:
        try:
            with watch.stage("association"):
                waiting[at] = works[at].send(answer)  # type: ignore[arg-type]
        except StopIteration as end:
            results[at] = end.value
        except VisrtError as error:
            results[at] = error

    def call(together: Sequence[int]) -> bool:
        """Whether it was done: the engine may refuse a call of several."""
        calls, answers = [waiting[at] for at in together], list[Answer]()
        try:
            answers = calls[0].network.run(calls[0].call.graph, calls)
        except EngineError as error:
            if len(calls) > 1:
                return False
            results[together[0]] = error
        for at in together:
            del waiting[at]
        for at, answer in zip(together, answers, strict=False):
            go_on(at, answer)
        return True

    for at in range(len(works)):
        go_on(at, None)
    while waiting:
        together = _next_together(waiting)
        if not call(together):
            for at in together:
                # To the end, as an engine's outputs do not outlast its calls for many others.
                while at in waiting:
                    call([at])
    return [results[at] for at in range(len(works))]


def _next_together(waiting: Mapping[int, StreamCall]) -> list[int]:
    """The works whose calls are made next, as one: all of the same graph and clip length as the first."""
    at, first = next(iter(waiting.items()))
    if not first.network.shares_calls(first.call.graph):
        return [at]

    def like_first(other: StreamCall) -> bool:
        same = other.network is first.network and other.call.graph == first.call.graph
        return same and len(other.call.frames) == len(first.call.frames)

    return [at for at, call in waiting.items() if like_first(call)]


def _entries(graph: GraphSpec, state: StateSpec, feeds: Mapping[str, Array]) -> int | None:
    """Of a ring whose size is dynamic: as many as other inputs of the call say."""
    axes = graph.inputs[state.input].shape
    symbol = axes[-2] if state.ring else None
    return next((len(feeds[role]) for role, spec in graph.inputs.items() if spec.shape == (symbol,)), None)


def _stacked(arrays: Sequence[Array]) -> Array:
    """With a new first axis; shorter ones are filled up with zeros."""
    longest = max(array.shape[:1] for array in arrays)
    if all(array.shape[:1] == longest for array in arrays):
        return np.stack(arrays)
    filled = np.zeros((len(arrays), *longest, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(filled, arrays, strict=True):
        row[: len(array)] = array
    return filled


def _frame_feeds(images: Feed, fits: Sequence[Letterbox]) -> dict[str, Feed]:
    return {"images": images, "valid_sizes": np.array([fit.valid for fit in fits], dtype=np.int32)}


def _wait_for(outputs: Mapping[str, Tensor], on_device: frozenset[str]) -> None:
    """Waits until a call has computed, by reading the smallest output that the host needs."""
    host = [tensor for role, tensor in outputs.items() if role not in on_device]
    if host:
        min(host, key=lambda tensor: prod(tensor.shape)).numpy()
