"""A model that crashes its loader, or takes all memory or time, costs a child process and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import write, write_bundle
from onnx import helper, numpy_helper

from visrt.runtime.bundles.bundle import MANIFEST, Bundle, open_bundle
from visrt.runtime.engines.probe import ProbeLimits, probe
from visrt.runtime.errors import EngineError, UsageError


def bundle_with_masks(folder: Path, change: onnx.NodeProto, constants: dict[str, np.ndarray]) -> Bundle:
    """A sound bundle but for its masks graph, which also computes `change`."""
    write_bundle(folder)
    bundle = open_bundle(folder)
    model = onnx.load_from_string(bundle.graph("masks"))
    model.graph.node.append(change)
    model.graph.node.append(helper.make_node("ReduceMax", [change.output[0]], ["peak"], keepdims=0))
    model.graph.node[0].output[0] = "products"
    model.graph.node.append(helper.make_node("Add", ["products", "peak"], ["mask_logits"]))
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    spec = write(folder / "masks.onnx", model.SerializeToString())
    graphs = dict(bundle.manifest.graphs)
    graphs["masks"] = graphs["masks"].model_copy(update={"file": spec})
    manifest = bundle.manifest.model_copy(update={"graphs": graphs})
    (folder / MANIFEST).write_text(manifest.model_dump_json(by_alias=True))
    return open_bundle(folder)


def test_a_sound_bundle_passes(tmp_path: Path) -> None:
    probe(open_bundle(write_bundle(tmp_path / "sound")))


def test_a_loader_that_crashes_is_told_by_its_signal(tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "bundle"))
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    with pytest.raises(EngineError, match=r"frame\.onnx: the loader died with signal 11 \(SIGSEGV\)"):
        probe(bundle, child=("-c", crash))


def test_a_model_that_wants_all_memory_is_refused(tmp_path: Path) -> None:
    bomb = helper.make_node(
        "ConstantOfShape", ["huge"], ["bomb"], value=numpy_helper.from_array(np.ones(1, np.float32))
    )
    bundle = bundle_with_masks(tmp_path / "bomb", bomb, {"huge": np.array([2**20, 2**14])})
    with pytest.raises(EngineError, match=r"masks\.onnx: the loader (gave up|died)"):
        probe(bundle)


def test_a_model_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "bundle"))
    with pytest.raises(EngineError, match=r"within 0\.5 s"):
        probe(bundle, ProbeLimits(time_s=0.5), child=("-c", "import time; time.sleep(60)"))


def test_a_graph_that_is_not_what_the_manifest_says_is_told(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    bundle = open_bundle(folder)
    graphs = {name: bundle.manifest.graphs["masks"] for name in ("frame",)}
    swapped = graphs["frame"].model_copy(update={"inputs": bundle.manifest.graphs["frame"].inputs})
    manifest = bundle.manifest.model_copy(update={"graphs": {"frame": swapped}})
    with pytest.raises(EngineError, match=r"masks\.onnx: the loader gave up.*does not fit its manifest"):
        probe(Bundle(folder, manifest))


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="512 MB"):
        ProbeLimits(memory_mb=1)
