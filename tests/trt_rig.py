"""The engines of a bundle on a fake GPU, opened without builder and cache: for tests of how engines run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from bundles import frame_model, masks_model
from fake_gpu import Gpu
from fake_pycuda import install_cuda
from fake_tensorrt import engine_of, tensorrt_module
from fakes import fake_manifest

from visrt.runtime.cuda import Gpu as RealGpu
from visrt.runtime.dynamic_axes import profile_of
from visrt.runtime.manifest import GraphSpec, Manifest
from visrt.runtime.tensorrt_library import Flavour, TensorRt
from visrt.runtime.tensorrt_log import log_of
from visrt.runtime.trt import start_engines
from visrt.runtime.trt_bench import Bench
from visrt.runtime.trt_engine import TrtEngine

__all__ = ["Rig", "install_cuda", "rig_of", "serialised"]


@dataclass
class Rig:
    """A fake GPU with the engines of a small bundle on it."""

    gpu: Gpu
    manifest: Manifest
    engines: dict[str, TrtEngine]

    @property
    def frame(self) -> TrtEngine:
        return self.engines["frame"]

    @property
    def masks(self) -> TrtEngine:
        return self.engines["masks"]

    def close(self) -> None:
        for engine in self.engines.values():
            engine.close()


MODELS = {"frame": frame_model, "masks": masks_model}


def serialised(gpu: Gpu, identity: str, manifest: Manifest, name: str, batch: int, graph: GraphSpec) -> bytes:
    """The engine of graph `name`, built for what the manifest needs."""
    sizes = profile_of(manifest, name, batch)
    shapes = {
        spec.name: tuple(
            tuple(sizes[axis][place] if isinstance(axis, str) else axis for axis in spec.shape) for place in range(3)
        )
        for spec in graph.inputs.values()
    }
    return engine_of(gpu, identity, MODELS[name](graph).SerializeToString(), shapes)


def rig_of(
    monkeypatch: pytest.MonkeyPatch,
    gpu: Gpu | None = None,
    flavour: Flavour = "tensorrt",
    version: str = "10.13.3.9",
    batch: int = 2,
    size: tuple[int, int] = (64, 96),
    told: Mapping[str, GraphSpec] | None = None,
) -> Rig:
    """The engines, opened. `told` replaces graphs of the manifest by what is not in the engines."""
    gpu = gpu or Gpu()
    install_cuda(monkeypatch, gpu)
    library = TensorRt(tensorrt_module(gpu, flavour, version), flavour, version)
    manifest = fake_manifest(size, 4)
    identity = f"{flavour} {version}"
    data = {name: serialised(gpu, identity, manifest, name, batch, graph) for name, graph in manifest.graphs.items()}
    known = manifest.model_copy(update={"graphs": {**manifest.graphs, **(told or {})}})
    bench = Bench(RealGpu(), library)
    with log_of(library).listening() as said:
        engines = start_engines(bench, known, batch, lambda name: bench.deserialize(data[name]))
    assert not said
    return Rig(gpu, known, engines)
