"""visrt against its own network in PyTorch, in frames a CPU-second: ResNet-50 MinVIS with random weights.

    python -m visrt.benchmarks.experiments.eager_ratio --write

One interleaved run on one thread, at 480x864 of 720x1280. visrt: ONNX Runtime, association, masks of ten objects
resized and encoded, frame by frame. The peers: visrt's network in PyTorch, then the published post-processing of the
whole video, see official_order.py. "eager" is the fastest form, whose deformable attention sums an embedding bag;
"grid_sample" is the form that PyTorch users without the compiled operator run. CPU seconds of all threads.

Random weights are sure of nothing, so that visrt is told to show ten objects whatever their score, as many as the
published rule shows; their masks are ragged, which makes resizing and encoding them dear.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from statistics import median
from time import process_time
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from visrt.benchmarks.accuracy.result_files import EXPERIMENT_RESULTS, add_result_options, write_result
from visrt.benchmarks.speed.baselines import eager
from visrt.benchmarks.speed.host_overhead import pictures
from visrt.benchmarks.speed.interleaved import spread
from visrt.benchmarks.speed.memory import peak_rss_mb, rss_mb, start_peak
from visrt.benchmarks.speed.official_order import BEST, KeptFrame, video_answer
from visrt.benchmarks.speed.scripted import Scene, scripted_session
from visrt.export.contract import graph_spec
from visrt.export.graphs import FrameGraph, MasksGraph
from visrt.export.onnx_graph import onnx_from_frame_graph, onnx_from_masks_graph
from visrt.models import deformable
from visrt.models.checkpoints.published import published
from visrt.models.mask2former import Mask2Former, NetworkSettings
from visrt.runtime.bundles.manifest import InputSpec, Manifest, Producer
from visrt.runtime.bundles.writer import file_spec
from visrt.runtime.engines.engine import Engine
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.engines.ort import CpuEngine
from visrt.runtime.image import letterbox, network_input, pillow_bilinear
from visrt.runtime.session import Session
from visrt.runtime.sources.source import Image

__all__ = ["SHOWS_TEN", "Setting", "Sides", "compare", "grid_sampled_sum", "growth"]

POST = ("association", "mask_engine", "masks")
"""What visrt does after the network: which queries are which objects, their masks, resized and encoded."""

SHOWS_TEN = {"birth_score": 0.0, "keep_score": 0.0, "nms_iou": 1.0, "max_objects": BEST}
"""Association settings that show ten objects whatever their score."""

SETTLED = 2
"""Frames until buffers are there."""

SCRIPTED_FRAMES = 200


@dataclass(frozen=True)
class Setting:
    """The network, its input and the video's size (height, width), and how much is measured."""

    network: NetworkSettings
    size: tuple[int, int] = (480, 864)
    source: tuple[int, int] = (720, 1280)
    rounds: int = 5
    frames: int = 4
    threads: int = 1


class Sides:
    """visrt and its peers on one network."""

    def __init__(self, setting: Setting, graph: FrameGraph, session: Session) -> None:
        self.setting, self.session = setting, session
        self.session.watch.clock = process_time
        self.eager = eager(graph)
        self.fit = letterbox(setting.source, setting.size)

    @classmethod
    def of_random_weights(cls, setting: Setting) -> Sides:
        torch.manual_seed(0)
        settings = setting.network
        graph = FrameGraph(Mask2Former(settings).eval(), settings.pixel_mean, settings.pixel_std).eval()
        return cls(setting, graph, _session(graph, setting))

    def visrt(self, images: Sequence[Image]) -> dict[str, float]:
        """CPU seconds by part for a video of `images`."""
        self.session.reset()
        start = process_time()
        shown = [len(result.objects) for image in images for result in self.session.step(image)]
        whole = process_time() - start
        seconds = self.session.times.seconds
        assert min(shown) >= 1, "nothing was shown, so that there was nothing to do"
        return {
            "whole": whole,
            "network": seconds["frame_engine"] + seconds["copy_out"],
            "post": sum(seconds[stage] for stage in POST),
            "objects": sum(shown),
        }

    def with_grid_sample(self, images: Sequence[Image]) -> dict[str, float]:
        """As `peer`, its deformable attention written with grid_sample."""
        with patch.object(deformable, "sampled_sum", grid_sampled_sum):
            return self.peer(images)

    def peer(self, images: Sequence[Image]) -> dict[str, float]:
        """CPU seconds by part for a video of `images`."""
        start, network_s = process_time(), 0.0
        kept = []
        for image in images:
            fitted = np.empty((1, *self.setting.size, 3), np.uint8)
            network_input(image, self.fit, pillow_bilinear, fitted[0])
            before = process_time()
            kept.append(self.eager(fitted, np.array([self.fit.valid], np.int32)))
            network_s += process_time() - before
        before = process_time()
        answer = video_answer(kept, self.fit)
        end = process_time()
        objects = int(answer.masks.any(dim=-1).any(dim=-1).sum())
        return {"whole": end - start, "network": network_s, "post": end - before, "objects": objects}


def grid_sampled_sum(value: Tensor, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """What `visrt.models.deformable.sampled_sum` computes, by PyTorch's own bilinear sampling."""
    batch, height, width, heads = value.shape[:4]
    maps = value.permute(0, 3, 4, 1, 2).flatten(0, 1)  # [B * heads, D, H, W]
    size = torch.tensor([width, height], dtype=torch.float32)
    places = (2 * (torch.stack((x, y), dim=-1) + 0.5) / size - 1).transpose(1, 2).flatten(0, 1)  # [B * heads, Q, P, 2]
    samples = F.grid_sample(maps, places, mode="bilinear", padding_mode="zeros", align_corners=False)
    summed = (samples * weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)).sum(dim=-1)  # [B * heads, D, Q]
    out: Tensor = summed.unflatten(0, (batch, heads)).permute(0, 3, 1, 2)
    return out


def compare(sides: Sides) -> dict[str, Any]:
    """CPU milliseconds a frame of each side by part, and how many times visrt's frames a CPU-second are a peer's."""
    setting = sides.setting
    video = pictures(setting.source)
    calls: dict[str, Callable[[Sequence[Image]], dict[str, float]]] = {
        "visrt": sides.visrt,
        "eager": sides.peer,
        "grid_sample": sides.with_grid_sample,
    }
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    for number in range(setting.rounds + 1):
        images = _some(video, setting.frames if number else 1)
        for name in list(calls) if number % 2 else reversed(list(calls)):
            seconds = calls[name](images)
            if number:
                measured[name].append({part: value / setting.frames for part, value in seconds.items()})
    parts = ("whole", "network", "post")
    return {
        "cpu_ms_a_frame": {
            name: {part: asdict(spread([1e3 * one[part] for one in rounds])) for part in parts}
            for name, rounds in measured.items()
        },
        "objects_a_frame": {name: median(one["objects"] for one in rounds) for name, rounds in measured.items()},
        "frames_a_cpu_second_ratio": {
            peer: {part: _ratio(measured[peer], measured["visrt"], part) for part in parts}
            for peer in ("eager", "grid_sample")
        },
        "post_share_of_visrt": asdict(spread([one["post"] / one["whole"] for one in measured["visrt"]])),
    }


def _ratio(peer: Sequence[dict[str, float]], visrt: Sequence[dict[str, float]], part: str) -> dict[str, float]:
    return asdict(spread([one[part] / other[part] for one, other in zip(peer, visrt, strict=True)]))


def growth(sides: Sides, network_frames: int, frames: int) -> dict[str, Any]:
    """MB by which the peak of visrt grows after its first frames: over `network_frames` with the network, and over
    `frames` with a scripted one of the same sizes, which takes no time. And what a frame more takes of the published
    post-processing: videos of four and of twelve frames, the same outputs of the network again and again."""
    setting = sides.setting
    fitted = np.zeros((1, *setting.size, 3), np.uint8)
    seen = sides.eager(fitted, np.array([sides.fit.valid], np.int32))
    short, long = (_official_peak_mb(sides, seen, length) for length in (4, 12))
    with scripted_session(Scene(BEST, setting.network.queries, setting.size)) as scripted:
        scripted_mb = _peak_growth_mb(scripted, setting.source, frames)
    return {
        "visrt_peak_growth_mb": _peak_growth_mb(sides.session, setting.source, network_frames),
        "frames": network_frames,
        "scripted_peak_growth_mb": scripted_mb,
        "scripted_frames": frames,
        "published_order_mb_a_frame": (long - short) / 8,
    }


def _peak_growth_mb(session: Session, size: tuple[int, int], frames: int) -> float:
    """Of `frames` frames after the first few, over what was held then."""
    session.reset()
    video = pictures(size)
    for image in _some(video, SETTLED):
        session.step(image)
    start_peak()
    for image in _some(video, SETTLED):
        session.step(image)
    before = peak_rss_mb()
    for image in islice(video, frames):
        session.step(image)
    return peak_rss_mb() - before


def _official_peak_mb(sides: Sides, seen: KeptFrame, frames: int) -> float:
    start_peak()
    before = rss_mb()
    kept = [KeptFrame(seen.class_logits.clone(), seen.embeddings.clone(), seen.masks.clone()) for _ in range(frames)]
    video_answer(kept, sides.fit)
    return peak_rss_mb() - before


def _some(video: Iterator[Image], count: int) -> list[Image]:
    return [next(video) for _ in range(count)]


def _session(graph: FrameGraph, setting: Setting) -> Session:
    """A session on the network's graphs in ONNX Runtime, which shows the ten best whatever their score."""
    settings, (height, width) = setting.network, setting.size
    models = {
        "frame": onnx_from_frame_graph(graph, height, width),
        "masks": onnx_from_masks_graph(MasksGraph(), settings.mask_dim, height, width, torch.float32),
    }
    data = {name: model.SerializeToString(deterministic=True) for name, model in models.items()}
    specs = {name: graph_spec(models[name], file_spec(f"{name}.onnx", data[name]), "fp32") for name in models}
    manifest = Manifest(
        name="random weights",
        family="minvis",
        classes=tuple(f"class {label}" for label in range(settings.classes)),
        input=InputSpec(height=height, width=width),
        graphs=specs,
        association=SHOWS_TEN,
        reference=file_spec("none", b""),
        producer=Producer(versions={}, checkpoint="random", checkpoint_sha256="0" * 64, created="now"),
    )
    options = EngineOptions(setting.threads)
    engines: dict[str, Engine] = {name: CpuEngine(specs[name], data[name], options) for name in specs}
    return Session(manifest, engines)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="visrt against its network in PyTorch, by CPU time.")
    add_result_options(parser, EXPERIMENT_RESULTS / "eager_ratio.json")
    parser.add_argument("--backbone", default="r50")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=3, help="of a round's video")
    parser.add_argument("--memory-frames", type=int, default=8, help="with the network; 200 more with a scripted one")
    return parser.parse_args(argv)


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    return {**asdict(_setting(given)), "memory_frames": given.memory_frames, "scripted_frames": SCRIPTED_FRAMES}


def _setting(given: argparse.Namespace) -> Setting:
    return Setting(published(given.backbone, 40), rounds=given.rounds, frames=given.frames)


def main() -> None:
    given = arguments()
    setting = _setting(given)
    torch.set_num_threads(setting.threads)
    with threadpool_limits(setting.threads, user_api="blas"):
        sides = Sides.of_random_weights(setting)
        compared = compare(sides)
        print(json.dumps(compared, indent=1), flush=True)
        memory = growth(sides, given.memory_frames, SCRIPTED_FRAMES)
    write_result(given.out, settings_of(given), {**compared, "memory": memory})
    print(json.dumps(memory))


if __name__ == "__main__":
    main()
