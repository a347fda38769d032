"""GenVIS from raw frames to the official final result: torch itself, and the exported graphs in ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes_genvis import genvis_manifest
from golden import golden_sets, load_golden
from numpy.typing import NDArray
from torch_engine import TorchEngine

from visrt.benchmarks.video_level.rules import official_result
from visrt.export.bundle import Export, export_bundle
from visrt.export.contract import graph_spec
from visrt.export.genvis import ClipGraph, ClipTensors, GenVisExport, read_genvis
from visrt.export.graphs import MasksGraph
from visrt.export.onnx_graph import onnx_from_clip_graph, onnx_from_masks_graph
from visrt.models.genvis import GenVis
from visrt.runtime import image
from visrt.runtime.bundle_writer import file_spec
from visrt.runtime.engine import Engine
from visrt.runtime.genvis import BASE, clip_step, first_step
from visrt.runtime.genvis import GenVis as GenVisFamily
from visrt.runtime.image import Letterbox
from visrt.runtime.manifest import InputSpec
from visrt.runtime.masks import decode
from visrt.runtime.ort import CpuEngine
from visrt.runtime.session import Session

SETS = [*golden_sets("genvis_online_*"), *golden_sets("genvis_semionline_*")]
CLASSES = tuple("abcdefg")

Golden = dict[str, NDArray[Any]]
Opened = Callable[[Path, Golden], Session]


def weights_of(golden: Golden, folder: Path) -> Path:
    """The official checkpoint in the golden set, as a file."""
    path = folder / "official.pth"
    torch.save({"model": {name[3:]: torch.from_numpy(a) for name, a in golden.items() if name.startswith("sd/")}}, path)
    return path


def size_of(golden: Golden) -> tuple[int, int]:
    height, width = golden["clip0/image_normalized_padded"].shape[2:]
    return height, width


def association_of(golden: Golden) -> dict[str, Any]:
    window = json.loads(str(golden["config_json"]))["len_clip_window"]
    return {"clip_frames": window, "clip_lengths": (window,)}


def read(golden: Golden, folder: Path) -> GenVisExport:
    height, width = size_of(golden)
    return read_genvis(weights_of(golden, folder), InputSpec(height=height, width=width), association_of(golden))


def session_of(golden: Golden, model: GenVisExport, engines: dict[str, Engine]) -> Session:
    """A session on `engines`, and torch for the graphs that none is given for."""
    settings, association = model.checkpoint.settings, association_of(golden)
    sizes = settings.frame.queries, settings.instances, settings.frame.hidden_dim
    manifest = genvis_manifest(size_of(golden), CLASSES, association, *sizes)
    assert isinstance(model.network, GenVis)
    modules = {"frame": model.graph, "clip": ClipGraph(model.network.vita_module), "masks": MasksGraph()}
    in_torch = {name: TorchEngine(manifest.graphs[name], one) for name, one in modules.items() if name not in engines}
    return Session(manifest, {**in_torch, **engines}, states={BASE: model.states[BASE].values})


def on_torch(path: Path, golden: Golden, folder: Path) -> Session:
    return session_of(golden, read(golden, folder), {})


_EXPORTED: dict[object, Path] = {}
"""The set with which a network of each architecture and size was exported whole. Tracing a frame graph takes half a
minute, so that of another set with other weights alone stays in torch."""


def on_onnx_runtime(path: Path, golden: Golden, folder: Path) -> Session:
    model = read(golden, folder)
    if _EXPORTED.setdefault((model.checkpoint.settings, size_of(golden)), path) != path:
        return session_of(golden, model, small_engines(model, size_of(golden)))
    height, width = size_of(golden)
    wanted = Export(
        folder / "official.pth",
        folder / "bundle",
        height,
        width,
        classes=CLASSES,
        family="genvis",
        association=association_of(golden),
    )
    return Session.open(export_bundle(wanted).folder, threads=1)


def small_engines(model: GenVisExport, size: tuple[int, int]) -> dict[str, Engine]:
    """The clip graph and the masks graph in ONNX Runtime."""
    settings = model.checkpoint.settings
    assert isinstance(model.network, GenVis)
    sizes = settings.frame.queries, settings.instances, settings.frame.hidden_dim
    graphs = {
        "clip": onnx_from_clip_graph(ClipGraph(model.network.vita_module), *sizes, ClipTensors._fields),
        "masks": onnx_from_masks_graph(MasksGraph(), settings.frame.mask_dim, *size, torch.float32),
    }
    data = {name: one.SerializeToString() for name, one in graphs.items()}
    specs = {name: graph_spec(one, file_spec(f"{name}.onnx", data[name]), "fp32") for name, one in graphs.items()}
    return {name: CpuEngine(spec, data[name]) for name, spec in specs.items()}


RUNGS = {"torch": on_torch, "onnxruntime": on_onnx_runtime}
_OPEN: dict[tuple[str, Path], Session] = {}


@pytest.fixture(params=list(RUNGS))
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A session on the network of a golden set, each opened once."""

    def open_once(path: Path, golden: Golden) -> Session:
        key = (request.param, path)
        if key not in _OPEN:
            _OPEN[key] = RUNGS[request.param](path, golden, tmp_path_factory.mktemp(path.stem))
        return _OPEN[key]

    return open_once


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Golden], None]:
    """Frames are resized to the size that the official code chose, and padded to the size it padded to."""

    def fit(golden: Golden) -> None:
        valid = golden["in/resized_uint8_chw"].shape[2:]
        monkeypatch.setattr(image, "letterbox", lambda source, size: Letterbox(source, valid, size))

    return fit


@pytest.mark.parametrize("path", SETS)
def test_golden_genvis_from_frames_to_the_official_result(
    path: Path, opened: Opened, fitted: Callable[[Golden], None]
) -> None:
    """Scores to 1e-4, labels equal, at most 1e-4 of the mask pixels different; finals are in no order."""
    golden = load_golden(path)
    fitted(golden)
    result = official_result(opened(path, golden), lambda: iter(golden["in/frames_rgb_uint8"]), 5)

    order, made = np.argsort(-golden["out/pred_scores"]), sorted(result.tracks, key=lambda track: -track.score)
    np.testing.assert_allclose([t.score for t in made], golden["out/pred_scores"][order], atol=1e-4)
    assert [t.label for t in made] == golden["out/pred_labels"][order].tolist()
    shape = tuple(golden["out/pred_masks_shape"])
    expected = np.unpackbits(golden["out/pred_masks_packed"])[: np.prod(shape)].reshape(shape).astype(bool)[order]
    empty = np.zeros(shape[2:], dtype=bool)
    masks = np.stack([[decode(rle) if rle else empty for rle in track.masks] for track in made])
    assert np.count_nonzero(masks != expected) <= 1e-4 * expected.size


@pytest.mark.parametrize("path", SETS)
def test_golden_genvis_clip_after_clip_from_frames(
    path: Path, opened: Opened, fitted: Callable[[Golden], None]
) -> None:
    """Errors add up over frames, prototypes and memory, to 2e-3 at most."""
    golden = load_golden(path)
    fitted(golden)
    session = opened(path, golden)
    assert isinstance(session.method, GenVisFamily)
    settings, frames = session.method.settings, list(golden["in/frames_rgb_uint8"])
    step, at = first_step(session.network.states[BASE]), 0
    while at < len(frames):
        seen = session.network.run_frames(frames[at : at + settings.clip_frames])
        outputs, step, broken = clip_step([one.tensors for one in seen], session.network.run, step, settings)
        assert not broken.any()
        for name, stored in (
            ("class_logits", "pred_logits"),
            ("mask_embeddings", "pred_mask_embed"),
            ("prototypes", "prototypes_out"),
            ("memory_key", "memory_k_new"),
            ("memory_value", "memory_v_new"),
        ):
            wanted = golden[f"clip{step.clip - 1}/{stored}"]
            assert np.abs(outputs[name].reshape(wanted.shape) - wanted).max() <= 2e-3, (name, step.clip)
        at += len(seen)
    assert f"clip{step.clip}/pred_logits" not in golden


@pytest.mark.parametrize("path", SETS)
def test_golden_genvis_a_stream_shows_the_slots_of_the_official_clips(
    path: Path, opened: Opened, fitted: Callable[[Golden], None]
) -> None:
    """The causal score of a frame is the best chance of any clip up to its own; every frame has its result."""
    golden = load_golden(path)
    fitted(golden)
    session = opened(path, golden)
    session.reset()
    results = [r for frame in golden["in/frames_rgb_uint8"] for r in session.step(frame)] + session.flush()
    assert [r.index for r in results] == list(range(len(golden["in/frames_rgb_uint8"])))
    best, index = np.zeros((10, len(CLASSES))), 0
    for clip in range(len({name.split("/")[0] for name in golden if name.startswith("clip")})):
        powers = np.exp(golden[f"clip{clip}/pred_logits"][0, 0].astype(float))
        best = np.maximum(best, (powers / powers.sum(axis=1, keepdims=True))[:, :-1])
        for _ in range(golden[f"clip{clip}/frame_queries"].shape[1]):
            for found in results[index].objects:
                assert np.abs(best[:, found.label] - found.score).min() <= 1e-3
            index += 1
    assert any(result.objects for result in results)
