"""The engines of a bundle on a fake GPU, opened without builder and cache: for tests of how engines run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import pytest
from bundles import frame_model, masks_model
from fake_gpu import Gpu
from fake_pycuda import install_cuda
from fake_tensorrt import engine_of, tensorrt_module
from fakes import fake_manifest

from visrt.runtime.bundles.dynamic_axes import profile_of
from visrt.runtime.bundles.manifest import GraphSpec, Manifest, TensorSpec
from visrt.runtime.engines.trt.context import TrtContext
from visrt.runtime.engines.trt.cuda import Gpu as RealGpu
from visrt.runtime.engines.trt.engine import TrtEngine
from visrt.runtime.engines.trt.library import Flavour, TensorRt
from visrt.runtime.engines.trt.log import log_of
from visrt.runtime.engines.trt.trt import start_engines

__all__ = ["Rig", "in_fp16", "install_cuda", "models_of", "rig_of", "serialised"]


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


def models_of(manifest: Manifest) -> dict[str, onnx.ModelProto]:
    """The graphs: in float32 inside, whatever the manifest says of their tensors."""
    models = {"frame": frame_model(_wide(manifest, "frame")), "masks": masks_model(_wide(manifest, "masks"))}
    for name, model in models.items():
        for value in [*model.graph.input, *model.graph.output]:
            specs = {**manifest.graphs[name].inputs, **manifest.graphs[name].outputs}
            if specs[value.name].dtype == "float16":
                _narrow(model, value)
    return models


def _wide(manifest: Manifest, name: str) -> GraphSpec:
    graph = manifest.graphs[name]
    return graph.model_copy(update={"inputs": _as(graph.inputs, "float32"), "outputs": _as(graph.outputs, "float32")})


def _as(specs: Mapping[str, TensorSpec], dtype: str) -> dict[str, TensorSpec]:
    """The tensors with all floats in `dtype`."""
    return {
        role: spec.model_copy(update={"dtype": dtype if spec.dtype.startswith("float") else spec.dtype})
        for role, spec in specs.items()
    }


def _narrow(model: onnx.ModelProto, value: onnx.ValueInfoProto) -> None:
    """Makes an input or output of the graph float16, with a cast behind it or before it."""
    name, wide = value.name, f"{value.name} in float32"
    for node in model.graph.node:
        for places in (node.input, node.output):
            for index, place in enumerate(places):
                if place == name:
                    places[index] = wide
    is_input = value in model.graph.input
    value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    if is_input:
        model.graph.node.insert(0, onnx.helper.make_node("Cast", [name], [wide], to=onnx.TensorProto.FLOAT))
    else:
        model.graph.node.append(onnx.helper.make_node("Cast", [wide], [name], to=onnx.TensorProto.FLOAT16))


def in_fp16(manifest: Manifest) -> Manifest:
    """The manifest of an FP16 bundle: features and masks in float16, what the host reads of a frame in float32."""
    frame, masks = manifest.graphs["frame"], manifest.graphs["masks"]
    features = {"mask_features": frame.outputs["mask_features"]}
    frame = frame.model_copy(update={"precision": "fp16", "outputs": {**frame.outputs, **_as(features, "float16")}})
    halves = {"inputs": _as(masks.inputs, "float16"), "outputs": _as(masks.outputs, "float16")}
    masks = masks.model_copy(update={"precision": "fp16", **halves})
    return manifest.model_copy(update={"graphs": {"frame": frame, "masks": masks}})


def serialised(
    gpu: Gpu,
    identity: str,
    manifest: Manifest,
    name: str,
    batch: int,
    models: Mapping[str, onnx.ModelProto] | None = None,
) -> bytes:
    """The engine of graph `name`, built for what the manifest needs in batches of up to `batch`."""
    sizes = profile_of(manifest, name, batch)
    shapes = {
        spec.name: tuple(
            tuple(sizes[axis][place] if isinstance(axis, str) else axis for axis in spec.shape) for place in range(3)
        )
        for spec in manifest.graphs[name].inputs.values()
    }
    return engine_of(gpu, identity, (models or models_of(manifest))[name].SerializeToString(), shapes)


def rig_of(
    monkeypatch: pytest.MonkeyPatch,
    gpu: Gpu | None = None,
    flavour: Flavour = "tensorrt",
    version: str = "10.13.3.9",
    batch: int = 2,
    size: tuple[int, int] = (64, 96),
    manifest: Manifest | None = None,
    told: Mapping[str, GraphSpec] | None = None,
    models: Mapping[str, onnx.ModelProto] | None = None,
) -> Rig:
    """The engines of `manifest`, opened. `told` replaces graphs of the manifest by what is not in the engines; `models`
    are the graphs of a manifest that is not MinVIS's."""
    gpu = gpu or Gpu()
    install_cuda(monkeypatch, gpu)
    library = TensorRt(tensorrt_module(gpu, flavour, version), flavour, version)
    manifest = manifest or fake_manifest(size, 4)
    identity = f"{flavour} {version}"
    data = {
        name: serialised(gpu, identity, manifest, name, batch, *([models] if models else []))
        for name in manifest.graphs
    }
    known = manifest.model_copy(update={"graphs": {**manifest.graphs, **(told or {})}})
    context = TrtContext(RealGpu(), library)
    with log_of(library).listening() as said:
        engines = start_engines(context, known, batch, lambda name: context.deserialize(data[name]))
    assert not said
    return Rig(gpu, known, engines)
