"""Streams of networks that carry state, on a fake TensorRT: together as each alone, and what crosses to the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from annotated_sets import set_values, write_set
from fake_gpu import Gpu
from fake_pycuda import install_cuda
from fake_sources import FakeSource
from fake_tensorrt import install_tensorrt
from genvis_bundles import exported_genvis
from inspro_bundles import exported_inspro
from red_videos import CLASS_MAP
from stateful_families import NetworkSettings, QueryNetwork, register

from visrt.benchmarks.accuracy.bundle_run import BundleRun, OpenedRun
from visrt.benchmarks.accuracy.evaluate import Reported
from visrt.export.bundle import Export, export_bundle
from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.videomt import VideoMt, VideoMtSettings
from visrt.runtime.arrays import Feed, Tensor
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.engines.trt.device_tensor import ALIGNMENT
from visrt.runtime.engines.trt.engine import TrtEngine
from visrt.runtime.engines.trt.engine_cache import EngineCache
from visrt.runtime.pipeline import Job, Pipeline, PipelineSettings
from visrt.runtime.results import FrameResult
from visrt.runtime.session import Session
from visrt.runtime.sources.source import Image, VideoFrame
from visrt.training.data.set_formats import load_annotations

STREAMS = 8
FRAMES = 4
TO_HOST = {"class_logits", "boxes", "restarted", "mask_logits", "kept_embeddings"}
"""Roles that may cross to the host."""


def split(folders: pytest.TempPathFactory) -> Path:
    """An encoder without state, and a decoder with."""
    torch.manual_seed(3)
    folder = folders.mktemp("split")
    checkpoint = folder / "model.safetensors"
    save_checkpoint(QueryNetwork(NetworkSettings()).eval(), checkpoint, ("person", "vehicle", "animal"))
    return export_bundle(Export(checkpoint, folder / "split", 64, 96, family="split")).folder


def genvis(folders: pytest.TempPathFactory) -> Path:
    """A memory of each stream, and graphs of whole clips."""
    return exported_genvis(folders).folder


def inspro_lite(folders: pytest.TempPathFactory) -> Path:
    """Two graphs that renew the same state, and a bank that one of them writes."""
    return exported_inspro(folders, "inspro_lite").folder


def videomt(folders: pytest.TempPathFactory) -> Path:
    """A transformer, half of it with the state; every slot is an object."""
    torch.manual_seed(0)
    folder = folders.mktemp("videomt")
    settings = VideoMtSettings(
        classes=3, queries=6, dim=64, blocks=3, heads=1, feedforward_dim=96, query_blocks=2, table_side=3
    )
    save_checkpoint(VideoMt(settings).eval(), folder / "model.safetensors", ("person", "vehicle", "animal"))
    shown = {"birth_score": 0.0, "keep_score": 0.0}
    export = Export(folder / "model.safetensors", folder / "made", 64, 96, family="videomt", association=shown)
    return export_bundle(export).folder


BUNDLES: dict[str, Callable[[pytest.TempPathFactory], Path]] = {
    "split": split,
    "genvis": genvis,
    "inspro_lite": inspro_lite,
    "videomt": videomt,
}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        yield


@pytest.fixture(scope="module", params=list(BUNDLES))
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(BUNDLES[request.param](tmp_path_factory))


@pytest.fixture(scope="module")
def genvis_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(genvis(tmp_path_factory))


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    card = Gpu(memory_mb=512)
    monkeypatch.setenv("VISRT_CACHE", str(tmp_path / "cache"))
    install_cuda(monkeypatch, card)
    install_tensorrt(monkeypatch, card, "tensorrt", "10.13.3.9")
    return card


class Noise(FakeSource):
    def __init__(self, stream: int, frames: int = FRAMES) -> None:
        super().__init__(frames)
        self._stream = stream

    def __iter__(self) -> Iterator[VideoFrame]:
        for frame in super().__iter__():
            random = np.random.default_rng(100 * self._stream + frame.index)
            yield replace(frame, image=random.integers(0, 256, (80, 120, 3), dtype=np.uint8))


class Kept:
    def __init__(self) -> None:
        self.results: list[FrameResult] = []

    def write(self, result: FrameResult, image: Image) -> None:
        self.results.append(result)

    def close(self) -> None: ...


def tracked(pipeline: Pipeline, sources: list[FakeSource]) -> list[list[FrameResult]]:
    sinks = [Kept() for _ in sources]
    outcomes = []
    jobs = [Job(source, [sink]) for source, sink in zip(sources, sinks, strict=True)]
    pipeline.track(jobs, lambda job, outcome: outcomes.append(outcome))
    assert [outcome.end for outcome in outcomes] == ["complete"] * len(sources)
    return [sink.results for sink in sinks]


@dataclass
class Crossing:
    """Bytes of the tensors that the manifest gives to the host, of every call, how many they were, and their roles."""

    up: int = 0
    down: int = 0
    tensors: int = 0
    roles: frozenset[str] = frozenset()

    def count(self, engine: TrtEngine, feeds: Mapping[str, Feed], outputs: Mapping[str, Tensor]) -> None:
        graph = engine._graph
        for role, spec in graph.inputs.items():
            if spec.place != "device":
                self.tensors += 1
                self.up += engine_bytes(engine, role, feeds[role])
        for role, tensor in outputs.items():
            if graph.outputs[role].place != "device":
                self.tensors += 1
                self.down += prod(tensor.shape) * tensor.dtype.itemsize
                self.roles |= {role}


def engine_bytes(engine: TrtEngine, role: str, feed: Feed) -> int:
    """Of an input; integers go up with their padding."""
    axes = engine._graph.inputs[role].shape
    padded = [
        engine._padded(axis, size) if isinstance(axis, str) else size
        for axis, size in zip(axes, feed.shape, strict=True)
    ]
    shape = feed.shape if np.issubdtype(feed.dtype, np.floating) else padded
    return prod(shape) * feed.dtype.itemsize


@pytest.fixture
def crossing(monkeypatch: pytest.MonkeyPatch) -> Crossing:
    counted, called = Crossing(), TrtEngine.__call__

    def call(self: TrtEngine, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        outputs = called(self, feeds)
        counted.count(self, feeds, outputs)
        return outputs

    monkeypatch.setattr(TrtEngine, "__call__", call)
    return counted


def test_eight_streams_are_as_each_alone_and_nothing_but_results_crosses(
    bundle: Bundle, gpu: Gpu, crossing: Crossing
) -> None:
    settings = PipelineSettings(streams=STREAMS, batch=STREAMS)
    with Pipeline.open(bundle, "tensorrt", settings=settings) as pipeline:
        before, calls = dict(gpu.counts), gpu.counts["executions"]
        together = tracked(pipeline, [Noise(stream) for stream in range(STREAMS)])
        calls = gpu.counts["executions"] - calls
        up, down = (gpu.counts[name] - before.get(name, 0) for name in ("htod_bytes", "dtoh_bytes"))
        plain = [spec for spec in bundle.manifest.states.values() if not spec.ring]
        state = sum(prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in plain)

        assert crossing.roles <= TO_HOST
        assert 0 <= down + up - crossing.down - crossing.up - STREAMS * state < ALIGNMENT * crossing.tensors
        assert gpu.counts["pageable"] == 0
        assert calls < STREAMS * FRAMES * len(bundle.manifest.graphs)
        for stream in range(STREAMS):
            assert tracked(pipeline, [Noise(stream)]) == [together[stream]]
    assert any(result.objects for results in together for result in results)
    assert not gpu.left


def test_streams_that_come_and_go_leave_no_memory_behind(bundle: Bundle, gpu: Gpu) -> None:
    with Pipeline.open(bundle, "tensorrt", settings=PipelineSettings(streams=2, batch=2)) as pipeline:
        tracked(pipeline, [Noise(stream, 2) for stream in range(4)])
        allocated = gpu.allocated
        tracked(pipeline, [Noise(stream, 2) for stream in range(9)])

        assert gpu.allocated == allocated


def remembering(bundle: Bundle, clips: int) -> Bundle:
    """As if exported with as many `memory_clips`, for clips of one frame."""
    association = {**bundle.manifest.association, "memory_clips": clips, "clip_frames": 1}
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"association": association}))


def test_a_session_may_remember_more_clips_than_its_bundle_and_the_bundle_s_engines_serve_fewer(
    genvis_bundle: Bundle, gpu: Gpu
) -> None:
    bundle, built = remembering(genvis_bundle, 4), list[int]()
    images = [frame.image for frame in Noise(0, 6)]
    for clips in (4, 2, 6):
        with (
            Session.open(bundle, "tensorrt", association={"memory_clips": clips}) as session,
            Session.open(bundle, "cpu", threads=1, association={"memory_clips": clips}) as expected,
        ):
            for image in images:
                [found], [wanted] = session.step(image), expected.step(image)
                assert [one.id for one in found.objects] == [one.id for one in wanted.objects]
                np.testing.assert_allclose(
                    [one.score for one in found.objects], [one.score for one in wanted.objects], atol=1e-5
                )
        built.append(len(EngineCache().kept(bundle.manifest.graphs["memory"].file.sha256)))
    assert built == [1, 1, 2], "the engine for four clips serves two, and six need one for eight"


@pytest.mark.parametrize("frames", [2, 7])
def test_the_official_rule_remembers_whole_videos_whatever_the_bundle_does(
    genvis_bundle: Bundle, tmp_path: Path, gpu: Gpu, frames: int
) -> None:
    """The published memory has no cap; on TensorRT an engine has room for as many clips as it was built for."""
    bundle = remembering(genvis_bundle, 2)
    annotated = load_annotations(write_set(tmp_path / "set", set_values(2, frames)), bundle.manifest.classes, CLASS_MAP)

    def reports(engine: str) -> dict[int, Reported]:
        run = OpenedRun.of(bundle, BundleRun(engine, rules=("official",)), annotated)
        return run.all_reports("official", annotated.videos, lambda progress: None)

    found, wanted = reports("tensorrt"), reports("cpu")
    for number, report in wanted.items():
        assert [track.label for track in found[number].tracks] == [track.label for track in report.tracks]
        np.testing.assert_allclose(
            [track.score for track in found[number].tracks], [track.score for track in report.tracks], atol=1e-5
        )
