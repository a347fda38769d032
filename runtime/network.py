"""The engines of a bundle behind two calls: frames to queries, mask embeddings to mask logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from visrt.runtime.engine import Array, Engine, Tensor
from visrt.runtime.errors import NumericalError, UsageError
from visrt.runtime.family import Floats, Queries
from visrt.runtime.image import RESIZERS, Frame, Letterbox, image_for
from visrt.runtime.manifest import InputSpec
from visrt.runtime.times import Stopwatch

__all__ = ["FrameOutputs", "Network", "StartedFrames"]


@dataclass(frozen=True)
class FrameOutputs:
    """What the frame graph says of one frame. mask_features [D, H / 4, W / 4] stay on the engine's device."""

    fit: Letterbox
    queries: Queries
    mask_features: Tensor

    def check_finite(self) -> None:
        """Raises NumericalError if the network gave NaN or infinity for a query."""
        for role in ("class_logits", "embeddings", "mask_embeddings"):
            refuse_nonfinite(role, getattr(self.queries, role))


@dataclass(frozen=True)
class StartedFrames:
    """Frames of one call of the frame engine, whose outputs may not be there yet."""

    fits: Sequence[Letterbox]
    outputs: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.fits)


class Network:
    """Runs the graphs of one bundle and measures them with `watch`."""

    def __init__(
        self, engines: Mapping[str, Engine], spec: InputSpec, watch: Stopwatch, resize: str | None = None
    ) -> None:
        self._engines = engines
        if resize is not None and spec.source is not None:
            raise UsageError(f"resize {resize!r} was given, but this bundle resizes inside its graph; leave it out")
        self._spec = spec
        self._resize: Callable[[Frame, tuple[int, int]], Frame] = RESIZERS[resize or spec.resize]
        self._watch = watch

    def run_frames(self, frames: Sequence[Frame]) -> list[FrameOutputs]:
        """Outputs for each of `frames`, [H, W, 3] uint8 RGB of any size; one call of the frame engine."""
        return self.finish(self.start(frames))

    def start(self, frames: Sequence[Frame]) -> StartedFrames:
        """Hands `frames` to the frame engine; one that runs on a GPU goes on while the host does something else."""
        with self._watch.stage("preprocess"):
            images = np.empty((len(frames), *self._spec.image_size, 3), dtype=np.uint8)
            fits = [image_for(frame, self._spec, self._resize, out) for frame, out in zip(frames, images, strict=True)]
            valid_sizes = np.array([fit.valid for fit in fits], dtype=np.int32)
        with self._watch.stage("frame_engine"):
            return StartedFrames(fits, self._engines["frame"]({"images": images, "valid_sizes": valid_sizes}))

    def finish(self, started: StartedFrames) -> list[FrameOutputs]:
        """Outputs for each of the frames that were started, once they are there."""
        with self._watch.stage("frame_engine"):
            return _split(started.outputs, started.fits)

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
        for engine in self._engines.values():
            engine.close()


def refuse_nonfinite(role: str, values: Array) -> None:
    """Raises NumericalError if `values` hold NaN or infinity."""
    if not np.isfinite(values).all():
        raise NumericalError(
            f"the network gave NaN or infinity in {role!r}; check the bundle with its reference frames, "
            "and an FP16 engine against FP32"
        )


def _split(outputs: Mapping[str, Tensor], fits: Sequence[Letterbox]) -> list[FrameOutputs]:
    """The batch, frame by frame: small tensors on the host, mask features where they are."""
    roles = ("class_logits", "embeddings", "mask_embeddings")
    host = [_floats(outputs[role].numpy()) for role in roles]
    features = outputs["mask_features"]
    return [
        FrameOutputs(fit, Queries(*(array[item] for array in host)), features.row(item))
        for item, fit in enumerate(fits)
    ]


def _floats(array: Array) -> Floats:
    return array.astype(np.float32, copy=False)
