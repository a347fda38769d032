"""The engines of a bundle behind two calls: frames to queries, mask embeddings to mask logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

import numpy as np

from visrt.runtime.engine import Array, AsyncEngine, Engine, Tensor
from visrt.runtime.errors import NumericalError, UsageError
from visrt.runtime.family import Floats, Queries
from visrt.runtime.image import RESIZERS, Frame, Letterbox, image_for
from visrt.runtime.manifest import InputSpec
from visrt.runtime.times import Stopwatch

__all__ = ["FrameInputs", "FrameOutputs", "Network", "StartedFrames"]

MASK_FEATURES = "mask_features"
KEPT = ("pyramid",)
"""Large outputs of the frame graph, beside the mask features, that other graphs take."""


@dataclass(frozen=True)
class FrameInputs:
    """Frames as the frame graph takes them: images uint8 RGB [B, H, W, 3], and how each lies in the network input."""

    images: Array
    fits: tuple[Letterbox, ...]

    def __len__(self) -> int:
        return len(self.fits)

    def __getitem__(self, part: slice) -> FrameInputs:
        return FrameInputs(self.images[part], self.fits[part])

    @staticmethod
    def joined(parts: Sequence[FrameInputs]) -> FrameInputs:
        """One after the other, one part at the least; a part alone is not copied."""
        full = [part for part in parts if part.fits] or parts[:1]
        if len(full) == 1:
            return full[0]
        return FrameInputs(np.concatenate([part.images for part in full]), sum((part.fits for part in full), ()))

    def followed_by(self, later: FrameInputs) -> FrameInputs:
        return FrameInputs.joined([self, later])


@dataclass(frozen=True)
class FrameOutputs:
    """What the frame graph says of one frame: `tensors`, small ones on the host in float32, by role, and mask_features
    [D, H / 4, W / 4], which stay on the engine's device, as do those `kept` for other graphs, by role."""

    fit: Letterbox
    tensors: Mapping[str, Floats]
    mask_features: Tensor
    kept: Mapping[str, Tensor]

    @property
    def queries(self) -> Queries:
        """The queries, where the graph gives them with class, embedding and mask."""
        roles = ("class_logits", "embeddings", "mask_embeddings")
        return Queries(*(self.tensors[role] for role in roles))

    def check_finite(self) -> None:
        """Raises NumericalError if the network gave NaN or infinity for a query."""
        for role, values in self.tensors.items():
            refuse_nonfinite(role, values)


@dataclass(frozen=True)
class StartedFrames:
    """Frames of one call of the frame engine; `outputs` waits until the engine has answered."""

    fits: Sequence[Letterbox]
    outputs: Callable[[], Mapping[str, Tensor]]

    def __len__(self) -> int:
        return len(self.fits)


class Network:
    """Runs the graphs of one bundle and measures them with `watch`.

    states: the bundle's initial state tensors by name, which streams start from. beside: a frame engine that would
    make its caller wait is called in so many threads of its own, 0 for the caller's.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        spec: InputSpec,
        watch: Stopwatch,
        resize: str | None = None,
        states: Mapping[str, Floats] | None = None,
        beside: int = 0,
    ) -> None:
        self._engines = engines
        self._later = isinstance(engines.get("frame"), AsyncEngine)
        if self._later and beside > 1:
            raise UsageError(f"{beside + 1} frames in flight were asked for; this engine takes 2 at the most")
        self._beside = ThreadPoolExecutor(beside, "visrt-frame-engine") if beside and not self._later else None
        self.states = states or {}
        if resize is not None and spec.source is not None:
            raise UsageError(f"resize {resize!r} was given, but this bundle resizes inside its graph; leave it out")
        self._spec = spec
        self._resize: Callable[[Frame, tuple[int, int]], Frame] = RESIZERS[resize or spec.resize]
        self._watch = watch

    def run_frames(self, frames: Sequence[Frame]) -> list[FrameOutputs]:
        """Outputs for each of `frames`, [H, W, 3] uint8 RGB of any size; one call of the frame engine."""
        return self.finish(self.start(self.prepare(frames)))

    def prepare(self, frames: Sequence[Frame]) -> FrameInputs:
        """`frames` resized and padded for the frame engine."""
        with self._watch.stage("preprocess"):
            return self.inputs(frames)

    def inputs(self, frames: Sequence[Frame]) -> FrameInputs:
        """As `prepare`, from any thread and not measured."""
        images = np.empty((len(frames), *self._spec.image_size, 3), dtype=np.uint8)
        fits = [image_for(frame, self._spec, self._resize, out) for frame, out in zip(frames, images, strict=True)]
        return FrameInputs(images, tuple(fits))

    def start(self, inputs: FrameInputs) -> StartedFrames:
        """Hands frames to the frame engine, which may go on while the host does something else."""
        with self._watch.stage("copy_in" if self._later else "frame_engine"):
            valid_sizes = np.array([fit.valid for fit in inputs.fits], dtype=np.int32)
            feeds = {"images": inputs.images, "valid_sizes": valid_sizes}
            if self._beside is not None:
                return StartedFrames(inputs.fits, self._beside.submit(self._engines["frame"], feeds).result)
            outputs = self._engines["frame"](feeds)
            return StartedFrames(inputs.fits, lambda: outputs)

    def finish(self, started: StartedFrames) -> list[FrameOutputs]:
        """Outputs for each of the frames that were started, once they are there."""
        with self._watch.stage("frame_engine"):
            outputs = started.outputs()
            if self._later:
                _smallest(outputs).numpy()  # waits for the whole call
        with self._watch.stage("copy_out"):
            return _split(outputs, started.fits)

    def run(self, graph: str, feeds: Mapping[str, Floats | Tensor]) -> dict[str, Floats]:
        """Outputs by role of one call of `graph`, on the host."""
        with self._watch.stage(f"{graph}_engine"):
            return {role: _floats(tensor.numpy()) for role, tensor in self._engines[graph](feeds).items()}

    def run_masks(self, mask_embeddings: Floats, outputs: FrameOutputs) -> Floats:
        """Mask logits [M, H / 4, W / 4] of `mask_embeddings` [M, D] in the frame of `outputs`."""
        with self._watch.stage("mask_engine"):
            features = outputs.mask_features
            embeddings = mask_embeddings.astype(features.dtype, copy=False)
            answer = self._engines["masks"]({"mask_embeddings": embeddings, "mask_features": features})
            logits = _floats(answer["mask_logits"].numpy())
            refuse_nonfinite("mask_logits", logits)
            return logits

    def close(self) -> None:
        if self._beside is not None:
            self._beside.shutdown()
        for engine in self._engines.values():
            engine.close()


def refuse_nonfinite(role: str, values: Array) -> None:
    """Raises NumericalError if `values` hold NaN or infinity."""
    if not np.isfinite(values).all():
        raise NumericalError(
            f"the network gave NaN or infinity in {role!r}; check the bundle with its reference frames, "
            "and an FP16 engine against FP32"
        )


def _smallest(outputs: Mapping[str, Tensor]) -> Tensor:
    """The smallest output that the host needs."""
    return min((outputs[role] for role in _needed(outputs)), key=lambda tensor: prod(tensor.shape))


def _needed(outputs: Mapping[str, Tensor]) -> list[str]:
    """The roles that the host needs; the others stay where they are."""
    return [role for role in outputs if role not in (MASK_FEATURES, *KEPT)]


def _split(outputs: Mapping[str, Tensor], fits: Sequence[Letterbox]) -> list[FrameOutputs]:
    """The batch, frame by frame: small tensors on the host, large ones where they are."""
    host = {role: _floats(outputs[role].numpy()) for role in _needed(outputs)}
    kept = {role: outputs[role] for role in KEPT if role in outputs}
    return [
        FrameOutputs(
            fit,
            {role: array[item] for role, array in host.items()},
            outputs[MASK_FEATURES].row(item),
            {role: tensor.row(item) for role, tensor in kept.items()},
        )
        for item, fit in enumerate(fits)
    ]


def _floats(array: Array) -> Floats:
    return array.astype(np.float32, copy=False)
