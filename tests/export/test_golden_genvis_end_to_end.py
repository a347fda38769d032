"""GenVIS from raw frames to the official final result: torch itself, and the exported graphs in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

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
from visrt.export.genvis import GenVisExport, MemoryGraph, read_genvis
from visrt.export.graphs import SlotMasksGraph
from visrt.runtime.arrays import Array, softmax
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.bundles.writer import file_spec
from visrt.runtime.engines.engine import Engine
from visrt.runtime.engines.ort import CpuEngine
from visrt.runtime.methods.genvis import BASE, clip_step, first_step
from visrt.runtime.methods.genvis import GenVis as GenVisFamily
from visrt.runtime.methods.method import Answer, Steps
from visrt.runtime.network import StreamGraphs
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

T = TypeVar("T")
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
    modules = {**model.float32_graphs(), "memory": MemoryGraph(), "masks": SlotMasksGraph()}
    in_torch = {name: TorchEngine(manifest.graphs[name], one) for name, one in modules.items() if name not in engines}
    return Session(
        manifest, {**in_torch, **engines}, states={name: model.states[name].values for name in (BASE, "key")}
    )


def on_torch(golden: Golden, folder: Path) -> Session:
    return session_of(golden, read(golden, folder), {})


_EXPORTED: dict[object, Path] = {}
"""The set with which a network of each architecture and size was exported whole. Tracing a frame graph takes half a
minute, so that of another set with other weights alone stays in torch."""


def on_onnx_runtime(golden: Golden, folder: Path) -> Session:
    model = read(golden, folder)
    if _EXPORTED.setdefault((model.checkpoint.settings, golden.input_size), golden.path) != golden.path:
        return session_of(golden, model, small_engines(model))
    export = Export(
        model.checkpoint.path,
        folder / "bundle",
        *golden.input_size,
        classes=class_names(model.checkpoint.settings.classes),
        family="genvis",
        association=association_of(golden),
    )
    return Session.open(bundle_of(export), threads=1)


def small_engines(model: GenVisExport) -> dict[str, Engine]:
    """All graphs but the frame graph in ONNX Runtime."""
    graphs = model.small_models(model.float32_graphs()["clip"], torch.float32)
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


@dataclass
class Watched:
    """Keeps the outputs of the last call, on the host."""

    outputs: dict[str, Array] = field(default_factory=dict)

    def answers(self, steps: Steps[T]) -> Steps[T]:
        """`steps` as they are."""
        answer: Answer | None = None
        while True:
            try:
                call = steps.send(answer)  # type: ignore[arg-type]
            except StopIteration as end:
                result: T = end.value
                return result
            answer = yield call
            self.outputs = {**answer.host, **{role: tensor.numpy() for role, tensor in answer.device.items()}}


@SETS
def test_golden_genvis_clip_after_clip_from_frames(golden: Golden, opened: Opened) -> None:
    """As near as rounding allows, which adds up over frames, prototypes and memory."""
    session = opened(golden)
    assert isinstance(session.method, GenVisFamily)
    length, clips = session.method.settings.clip_frames, golden.parts("clip")
    settings = replace(session.method.settings, memory_clips=len(golden.frames))
    network, states = session.network, session.network.new_states()
    step = first_step(len(network.states[BASE]))
    with comparing(golden, genvis_run(golden).bounds) as compare:
        for at in range(0, len(golden.frames), length):
            seen, watched = network.run_frames(golden.frames[at : at + length]), Watched()
            name = clips.get(step.clip, f"clip{step.clip}/")
            steps = watched.answers(clip_step(seen, StreamGraphs(network, states), step, settings))
            clip, step = network.alone(steps, states)
            assert not clip.invalid.any()
            compare(name, {stored: watched.outputs[role] for role, stored in OUTPUTS.items()})
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
