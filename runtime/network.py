"""The engines of a bundle: frames in, outputs of the frame graph out; further graphs and masks on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from math import prod

import numpy as np

from visrt.runtime.arrays import Array, Floats, Tensor, Tensors
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.engines.backends import OpenEngines, SizedEngines
from visrt.runtime.engines.engine import AsyncEngine, Engine
from visrt.runtime.errors import UsageError
from visrt.runtime.image import RESIZERS, Frame, Letterbox, best_size, letterbox_into
from visrt.runtime.methods.method import FrameOutputs, refuse_nonfinite
from visrt.runtime.times import Stopwatch

__all__ = ["Batch", "Carried", "ClipGraphs", "Network", "Networks"]

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
class Carried:
    """The state tensors of one stream that the network carries from call to call, by name.

    fit: of the last frame that was submitted; last: that call, where it runs in another thread.
    """

    values: dict[str, Array]
    fit: Letterbox | None = None
    last: Future[Mapping[str, Tensor]] | None = None


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
            name: np.zeros(spec.shape, spec.dtype) for name, spec in manifest.states.items()
        } | dict(states or {})
        self._image_size = self.input.image_size
        self._on_device = {name: manifest.device_roles(name) for name in manifest.graphs}
        self._carried = {name: manifest.carried(name) for name in manifest.graphs}
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
    def stateful_frames(self) -> bool:
        """Whether the frame graph takes state, so that its calls cannot be repeated or shared."""
        return bool(self._carried["frame"])

    @property
    def has_masks(self) -> bool:
        """Whether the bundle makes masks, and not boxes alone."""
        return "masks" in self._manifest.graphs

    def carried(self) -> Carried:
        """The carried state of a new stream."""
        return Carried({name: self.states[name] for states in self._carried.values() for name in states})

    def prepare(self, frames: Sequence[Frame], times_s: Sequence[float | None]) -> Batch:
        """`frames` [H, W, 3], uint8 RGB of any size, resized and padded for the frame graph. From any thread."""
        images = np.empty((len(frames), *self._image_size, 3), dtype=np.uint8)
        fits = [letterbox_into(out, frame, self.input, self._resize) for frame, out in zip(frames, images, strict=True)]
        return Batch(images, tuple(fits), tuple(times_s), self)

    def submit(self, parts: Sequence[tuple[Batch, Carried]]) -> Callable[[], list[FrameOutputs]]:
        """Hands the frames of one or several streams to the frame engine, which may go on while the host works.

        One call for all; where the frame graph takes state, a call per frame, as each needs the outputs of the last.
        The function that comes back waits for the engine and gives the outputs for each frame. Opens the engines if
        they are not open.
        """
        self.open()
        batch = Batch.joined([one for one, _ in parts])
        with self._watch.stage("copy_in" if self._async else "frame_engine"):
            if self.stateful_frames:
                calls = [
                    self._stateful_call(one[at : at + 1], carried) for one, carried in parts for at in range(len(one))
                ]
            else:
                calls = [self._call(_frame_feeds(batch))]
        return lambda: self._wait(batch, calls)

    def _wait(self, batch: Batch, calls: Sequence[Callable[[], Mapping[str, Tensor]]]) -> list[FrameOutputs]:
        frames: list[FrameOutputs] = []
        for call in calls:
            with self._watch.stage("frame_engine"):
                outputs = call()
                if self._async:
                    _wait_for(outputs, self._on_device["frame"])
            with self._watch.stage("copy_out"):
                host, device = self._split("frame", outputs)
                done, count = len(frames), len(batch) // len(calls)
                frames += [
                    FrameOutputs(
                        batch.fits[done + item],
                        {role: array[item] for role, array in host.items()},
                        {role: tensor.row(item) for role, tensor in device.items()},
                        batch.times_s[done + item],
                    )
                    for item in range(count)
                ]
        return frames

    def run_frames(self, frames: Sequence[Frame]) -> list[FrameOutputs]:
        """Outputs for each of `frames`, [H, W, 3] uint8 RGB of any size, as a stream of their own."""
        return self.submit([(self.prepare(frames, [None] * len(frames)), self.carried())])()

    def run(
        self, graph: str, feeds: Mapping[str, Floats | Tensor], carried: Carried
    ) -> tuple[Tensors, dict[str, Tensor]]:
        """One call of `graph`: its outputs on the host, and those that stay on the device, by role."""
        with self._watch.stage(f"{graph}_engine"):
            outputs = self._engines[graph]({**feeds, **self._carried_feeds(graph, carried)})
            self._renew(graph, outputs, carried)
            return self._split(graph, outputs)

    def run_masks(self, mask_embeddings: Floats, device: Mapping[str, Tensor]) -> Floats:
        """Mask logits [M, H / 4, W / 4] of `mask_embeddings` [M, D] in the frame whose tensors on the device these
        are."""
        feeds: dict[str, Array | Tensor] = {
            "mask_embeddings": mask_embeddings.astype(
                self._manifest.graphs["masks"].inputs["mask_embeddings"].dtype, copy=False
            ),
            **{role: device[role] for role in self.device_inputs("masks")},
        }
        with self._watch.stage("mask_engine"):
            logits = _floats(self._engines["masks"](feeds)["mask_logits"].numpy())
            refuse_nonfinite("mask_logits", logits)
            return logits

    def restart(self, carried: Carried) -> None:
        """Carried state as before the first frame; that of the frame graph was set when the frame was submitted."""
        for graph in self._carried.keys() - {"frame"}:
            self._reset(graph, carried)

    def device_inputs(self, graph: str) -> list[str]:
        """Inputs of `graph` that lie on the device."""
        return [role for role in self._manifest.graphs[graph].inputs if role in self._on_device[graph]]

    def by_frame(self, graph: str, role: str) -> bool:
        """Whether an output of `graph` has a row for each frame of its call."""
        spec = self._manifest.graphs[graph].outputs[role]
        return spec.shape != spec.row_shape

    def close(self) -> None:
        if self._workers is not None:
            self._workers.shutdown()
        for engine in self._engines.values():
            engine.close()

    def _call(self, feeds: Mapping[str, Array | Tensor]) -> Callable[[], Mapping[str, Tensor]]:
        if self._workers is not None:
            return self._workers.submit(self._engines["frame"], feeds).result
        outputs = self._engines["frame"](feeds)
        return lambda: outputs

    def _stateful_call(self, frame: Batch, carried: Carried) -> Callable[[], Mapping[str, Tensor]]:
        """A call of one frame, behind that of the stream's last frame. The first and one of another aspect start from
        the initial state."""
        fresh = carried.fit is None or not carried.fit.like(frame.fits[0])
        carried.fit, before = frame.fits[0], carried.last

        def call() -> Mapping[str, Tensor]:
            if before is not None:
                before.exception()  # waits; its error meets whoever waits for that call
            if fresh:
                self._reset("frame", carried)
            outputs = self._engines["frame"]({**_frame_feeds(frame), **self._carried_feeds("frame", carried)})
            self._renew("frame", outputs, carried)
            return outputs

        if self._workers is None:
            outputs = call()
            return lambda: outputs
        carried.last = self._workers.submit(call)
        return carried.last.result

    def _carried_feeds(self, graph: str, carried: Carried) -> dict[str, Array]:
        """The carried inputs of `graph` by role, with a batch axis of one where the graph has one."""
        inputs = self._manifest.graphs[graph].inputs
        return {
            state.input: carried.values[name].reshape(
                [1 if isinstance(axis, str) else axis for axis in inputs[state.input].shape]
            )
            for name, state in self._carried[graph].items()
        }

    def _renew(self, graph: str, outputs: Mapping[str, Tensor], carried: Carried) -> None:
        """Takes the next state from `outputs`; all stays as it was if any of it is NaN or infinite."""
        renewed = {
            name: outputs[state.output].numpy().reshape(state.shape) for name, state in self._carried[graph].items()
        }
        if all(np.isfinite(values).all() for values in renewed.values()):
            carried.values.update(renewed)

    def _reset(self, graph: str, carried: Carried) -> None:
        carried.values.update({name: self.states[name] for name in self._carried[graph]})

    def _split(self, graph: str, outputs: Mapping[str, Tensor]) -> tuple[Tensors, dict[str, Tensor]]:
        """Outputs that the host needs, in float32, and those that stay on the device."""
        stay = self._on_device[graph]
        host = {role: _floats(tensor.numpy()) for role, tensor in outputs.items() if role not in stay}
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


class ClipGraphs:
    """The graphs of a bundle for the frames of one clip; see `method.Graphs`."""

    def __init__(self, network: Network, frames: Sequence[FrameOutputs], carried: Carried) -> None:
        self._network, self._frames, self._carried = network, frames, carried

    def run(self, graph: str, feeds: Tensors) -> Tensors:
        last = self._frames[-1].device
        on_device = {role: last[role] for role in self._network.device_inputs(graph)}
        host, made = self._network.run(graph, {**feeds, **on_device}, self._carried)
        for role, tensor in made.items():
            for at, frame in enumerate(self._frames):
                frame.device[role] = tensor.row(at) if self._network.by_frame(graph, role) else tensor
        return host

    def masks(self, frame: FrameOutputs, mask_embeddings: Floats) -> Floats:
        assert frame.resize is not None, "the tracker sets the resize before it updates the method"
        return frame.resize.crop(self._network.run_masks(mask_embeddings, frame.device))


def _frame_feeds(batch: Batch) -> dict[str, Array]:
    return {"images": batch.images, "valid_sizes": np.array([fit.valid for fit in batch.fits], dtype=np.int32)}


def _wait_for(outputs: Mapping[str, Tensor], on_device: frozenset[str]) -> None:
    """Waits until a call has computed, by reading the smallest output that the host needs."""
    host = [tensor for role, tensor in outputs.items() if role not in on_device]
    if host:
        min(host, key=lambda tensor: prod(tensor.shape)).numpy()


def _floats(array: Array) -> Floats:
    return array.astype(np.float32, copy=False)
