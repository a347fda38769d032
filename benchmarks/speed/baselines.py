"""Baselines for visrt: the network in PyTorch, in torch.compile or in ONNX Runtime, post-processed as published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch

from visrt.benchmarks.speed.candidates import Opening, Run
from visrt.benchmarks.speed.official_order import KeptFrame, VideoAnswer, video_answer
from visrt.export.graphs import FrameGraph, MasksGraph
from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.runtime.arrays import Array, Floats
from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.engines.backends import open_engines
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.errors import UsageError
from visrt.runtime.image import Letterbox, letterbox_into, pillow_bilinear
from visrt.runtime.methods.method import PerFrameMethod
from visrt.runtime.methods.registry import method_of
from visrt.runtime.sources.video import read_video

__all__ = ["BASELINES", "Baseline", "Network", "baseline_of", "compiled", "eager"]

Network = Callable[[Array, Array], KeptFrame]
"""From one frame to its outputs: images uint8 RGB [1, H, W, 3], valid_sizes int32 [1, 2]."""


@dataclass
class Baseline:
    """The first `frames` frames of `clip` as one video: the network frame by frame, then the result of the whole.

    make: builds the network when the baseline is opened. The time of post-processing is spread over the frames evenly.
    """

    name: str
    make: Callable[[], Network]
    spec: InputSpec
    clip: Path
    frames: int
    threads: int | None = None
    _network: Network = field(init=False)
    _fit: Letterbox = field(init=False)

    def open(self) -> Opening:
        start = perf_counter()
        with self._threads():
            self._network = self.make()
            middle = perf_counter()
            for frame in islice(read_video(self.clip), 1):
                self._seen(frame.image)
        return Opening(middle - start, perf_counter() - middle)

    def run(self) -> Run:
        stages: list[dict[str, float]] = []
        start, cpu = perf_counter(), process_time()
        kept = self.seen(stages)
        before = perf_counter()
        answer = self.answer(kept)
        end, cpu_end = perf_counter(), process_time()
        shared = {"post": (end - before) / len(stages)}
        objects = int(answer.masks.any(dim=-1).any(dim=-1).sum())
        return Run([{**frame_stages, **shared} for frame_stages in stages], end - start, cpu_end - cpu, objects)

    def seen(self, stages: list[dict[str, float]] | None = None) -> list[KeptFrame]:
        """The network's outputs for each frame; the seconds of each frame by stage are appended to `stages`."""
        kept: list[KeptFrame] = []
        before = perf_counter()
        with self._threads():
            for frame in islice(read_video(self.clip), self.frames):
                decoded = perf_counter()
                seen, prepare_s = self._seen(frame.image)
                kept.append(seen)
                now = perf_counter()
                spent = {"decode": decoded - before, "preprocess": prepare_s, "frame_engine": now - decoded - prepare_s}
                if stages is not None:
                    stages.append(spent)
                before = now
        return kept

    def answer(self, kept: Sequence[KeptFrame]) -> VideoAnswer:
        """The result of the video."""
        with self._threads():
            return video_answer(kept, self._fit)

    def close(self) -> None:
        del self._network

    def _seen(self, image: Array) -> tuple[KeptFrame, float]:
        start = perf_counter()
        images = np.empty((1, *self.spec.image_size, 3), dtype=np.uint8)
        self._fit = letterbox_into(images[0], image, self.spec, pillow_bilinear)
        valid_sizes = np.array([self._fit.valid], dtype=np.int32)
        prepared = perf_counter()
        return self._network(images, valid_sizes), prepared - start

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """torch with this baseline's number of threads, inside the context."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def eager(graph: FrameGraph) -> Network:
    """A network of visrt in PyTorch, in inference mode."""
    return _in_inference_mode(graph)


def compiled(graph: FrameGraph) -> Network:
    """The same through torch.compile, which compiles at the first frame."""
    return _in_inference_mode(torch.compile(graph, dynamic=False))


def _in_inference_mode(graph: Callable[..., object]) -> Network:
    masks_of = MasksGraph()

    def network(images: Array, valid_sizes: Array) -> KeptFrame:
        with torch.inference_mode():
            given = graph(torch.from_numpy(images), torch.from_numpy(valid_sizes))
            logits, embeddings, mask_embeddings, features = (tensor[0] for tensor in given)  # type: ignore[attr-defined]
            return KeptFrame(logits, embeddings, masks_of(mask_embeddings, features))

    return network


def _onnxruntime_alone(bundle: Bundle, checkpoint: Path | None, threads: int | None) -> Network:
    """The graphs of a bundle in ONNX Runtime on the CPU; makes the masks of all queries in every frame."""
    engines = open_engines(bundle, "cpu", EngineOptions(threads))

    def network(images: Array, valid_sizes: Array) -> KeptFrame:
        given = engines["frame"]({"images": images, "valid_sizes": valid_sizes})
        logits, embeddings, chosen = (_floats(given[role].numpy()[0]) for role in ROLES)
        features = given["mask_features"].row(0)
        masks = engines["masks"]({"mask_embeddings": chosen.astype(features.dtype), "mask_features": features})
        tensors = (torch.from_numpy(array) for array in (logits, embeddings, _floats(masks["mask_logits"].numpy())))
        return KeptFrame(*tensors)

    return network


ROLES = ("class_logits", "embeddings", "mask_embeddings")


def _floats(array: Array) -> Floats:
    return array.astype(np.float32, copy=False)


def _of_checkpoint(bundle: Bundle, checkpoint: Path | None, peer: str) -> FrameGraph:
    if checkpoint is None:
        raise UsageError(f"peer {peer!r} runs a network in PyTorch: give its weights with --checkpoint")
    found = load_checkpoint(checkpoint, MASK2FORMER)
    if found.settings.classes != len(bundle.manifest.classes):
        raise UsageError(
            f"{checkpoint}: has {found.settings.classes} classes, bundle {bundle.manifest.name!r} "
            f"{len(bundle.manifest.classes)}; give the checkpoint that the bundle was exported from"
        )
    return FrameGraph.from_settings(found.network(), found.settings, bundle.manifest.input)


def _eager(bundle: Bundle, checkpoint: Path | None, threads: int | None) -> Network:
    return eager(_of_checkpoint(bundle, checkpoint, "eager"))


def _compiled(bundle: Bundle, checkpoint: Path | None, threads: int | None) -> Network:
    return compiled(_of_checkpoint(bundle, checkpoint, "compile"))


BASELINES: Mapping[str, Callable[[Bundle, Path | None, int | None], Network]] = {
    "eager": _eager,
    "compile": _compiled,
    "ort": _onnxruntime_alone,
}

NAMES = {"eager": "PyTorch eager", "compile": "torch.compile", "ort": "ONNX Runtime alone"}


def baseline_of(
    peer: str, bundle: Bundle, checkpoint: Path | None, clip: Path, frames: int, threads: int | None
) -> Baseline:
    """The baseline `peer`, a name in `BASELINES`, for the input size of `bundle`."""
    if peer not in BASELINES:
        raise UsageError(f"peer {peer!r} is unknown; choose one of {', '.join(BASELINES)}")
    if not isinstance(method_of(bundle.manifest), PerFrameMethod):
        raise UsageError(
            f"bundle {bundle.manifest.name!r} is of family {bundle.manifest.family!r}; peers are made of networks that "
            "look at one frame at a time: minvis or ctvis"
        )
    name = f"{NAMES[peer]}, published order"
    return Baseline(
        name, lambda: BASELINES[peer](bundle, checkpoint, threads), bundle.manifest.input, clip, frames, threads
    )
