"""GenVIS from raw frames to the official final result: torch itself, and the exported graphs in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes_genvis import genvis_manifest
from golden import Golden, assert_same_finals, class_names, comparing, fit_officially, golden_sets
from golden_networks import bundle_of, genvis_file, genvis_run
from torch_engine import TorchEngine

from visrt.benchmarks.video_level.rules import official_result
from visrt.export.bundle import Export
from visrt.export.contract import graph_spec
from visrt.export.genvis import ClipGraph, ClipTensors, GenVisExport, read_genvis
from visrt.export.graphs import MasksGraph
from visrt.export.onnx_graph import onnx_from_clip_graph, onnx_from_masks_graph
from visrt.models.genvis import GenVis
from visrt.runtime.arrays import softmax
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.bundles.writer import file_spec
from visrt.runtime.engines.engine import Engine
from visrt.runtime.engines.ort import CpuEngine
from visrt.runtime.methods.genvis import BASE, clip_step, first_step
from visrt.runtime.methods.genvis import GenVis as GenVisFamily
from visrt.runtime.network import ClipGraphs
from visrt.runtime.session import Session

SETS = pytest.mark.parametrize("golden", golden_sets("genvis", "video"), indirect=True)
OUTPUTS = {
    "class_logits": "pred_logits",
    "mask_embeddings": "pred_mask_embed",
    "prototypes": "prototypes_out",
    "memory_key": "memory_k_new",
    "memory_value": "memory_v_new",
}
"""Outputs of the clip graph, and what the sets call them."""

Opened = Callable[[Golden], Session]


def chances_of(golden: Golden) -> list[Any]:
    """The probabilities of the classes [S, K] in each clip."""
    clips = golden.parts("clip", "pred_logits").values()
    return [softmax(golden[clip + "pred_logits"][0, 0].astype(float))[:, :-1] for clip in clips]


def association_of(golden: Golden) -> dict[str, Any]:
    """Clips as long as in the set; half of its slots are shown."""
    window = golden.config["len_clip_window"]
    middle = float(np.median(np.max(chances_of(golden), axis=(0, 2))))
    return {"clip_frames": window, "clip_lengths": (window,), "birth_score": middle, "keep_score": middle}


def read(golden: Golden, folder: Path) -> GenVisExport:
    height, width = golden.input_size
    return read_genvis(genvis_file(golden, folder), InputSpec(height=height, width=width), association_of(golden))


def session_of(golden: Golden, model: GenVisExport, engines: dict[str, Engine]) -> Session:
    """A session on `engines`, and torch for the graphs that none is given for."""
    settings, association = model.checkpoint.settings, association_of(golden)
    sizes = settings.frame.queries, settings.instances, settings.frame.hidden_dim
    manifest = genvis_manifest(golden.input_size, class_names(settings.classes), association, *sizes)
    assert isinstance(model.network, GenVis)
    modules = {"frame": model.graph, "clip": ClipGraph(model.network.vita_module), "masks": MasksGraph()}
    in_torch = {name: TorchEngine(manifest.graphs[name], one) for name, one in modules.items() if name not in engines}
    return Session(manifest, {**in_torch, **engines}, states={BASE: model.states[BASE].values})


def on_torch(golden: Golden, folder: Path) -> Session:
    return session_of(golden, read(golden, folder), {})


_EXPORTED: dict[object, Path] = {}
"""The set with which a network of each architecture and size was exported whole. Tracing a frame graph takes half a
minute, so that of another set with other weights alone stays in torch."""


def on_onnx_runtime(golden: Golden, folder: Path) -> Session:
    model = read(golden, folder)
    if _EXPORTED.setdefault((model.checkpoint.settings, golden.input_size), golden.path) != golden.path:
        return session_of(golden, model, small_engines(model, golden.input_size))
    export = Export(
        model.checkpoint.path,
        folder / "bundle",
        *golden.input_size,
        classes=class_names(model.checkpoint.settings.classes),
        family="genvis",
        association=association_of(golden),
    )
    return Session.open(bundle_of(export), threads=1)


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
    specs = {
        name: graph_spec(one, file_spec(f"{name}.onnx", data[name]), "fp32", model.meanings)
        for name, one in graphs.items()
    }
    return {name: CpuEngine(spec, data[name]) for name, spec in specs.items()}


RUNGS = {"torch": on_torch, "onnxruntime": on_onnx_runtime}
_OPEN: dict[tuple[str, Path], Session] = {}


@pytest.fixture(params=list(RUNGS))
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A session on the network of a golden set, each opened once."""

    def open_once(golden: Golden) -> Session:
        key = (request.param, golden.path)
        if key not in _OPEN:
            _OPEN[key] = RUNGS[request.param](golden, tmp_path_factory.mktemp(golden.path.stem))
        return _OPEN[key]

    return open_once


@pytest.fixture(autouse=True)
def official_size(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_officially(monkeypatch, golden)


@SETS
def test_golden_genvis_from_frames_to_the_official_result(golden: Golden, opened: Opened) -> None:
    """As near as rounding allows."""
    result = official_result(opened(golden), lambda: iter(golden.frames), len(golden.finals.scores))

    run = genvis_run(golden)
    assert_same_finals(result, golden.finals, run.chance_bound, run.mask_share)


@SETS
def test_golden_genvis_clip_after_clip_from_frames(golden: Golden, opened: Opened) -> None:
    """As near as rounding allows, which adds up over frames, prototypes and memory."""
    session = opened(golden)
    assert isinstance(session.method, GenVisFamily)
    length, clips = session.method.settings.clip_frames, golden.parts("clip")
    settings = replace(session.method.settings, memory_clips=len(golden.frames))
    step = first_step(session.network.states[BASE])
    with comparing(golden, genvis_run(golden).bounds) as compare:
        for at in range(0, len(golden.frames), length):
            seen = session.network.run_frames(golden.frames[at : at + length])
            clip = clips.get(step.clip, f"clip{step.clip}/")
            graphs = ClipGraphs(session.network, seen, session.network.new_states())
            outputs, step, invalid = clip_step([one.tensors for one in seen], graphs.run, step, settings)
            assert not invalid.any()
            compare(clip, {stored: outputs[name] for name, stored in OUTPUTS.items()})
    assert step.clip > max(clips)


@SETS
def test_golden_genvis_a_stream_shows_the_slots_of_the_official_clips(golden: Golden, opened: Opened) -> None:
    """The causal score of a frame is the best chance of any clip up to its own; every frame has its result."""
    length, probabilities = golden.config["len_clip_window"], chances_of(golden)
    if len(probabilities) < -(-len(golden.frames) // length):
        pytest.skip(f"{golden.path.stem} stores pred_logits of {len(probabilities)} clips only")
    session = opened(golden)
    session.reset()
    results = [r for frame in golden.frames for r in session.step(frame)] + session.flush()

    assert [r.index for r in results] == list(range(len(golden.frames)))
    for result in results:
        best = np.max(probabilities[: result.index // length + 1], axis=0)
        for found in result.objects:
            assert np.abs(best[:, found.label] - found.score).min() <= genvis_run(golden).chance_bound
    assert any(result.objects for result in results)
