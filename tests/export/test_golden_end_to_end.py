"""From raw frames to the official final result: our network behind the runtime, against the official code.

Two rungs: torch itself, and the exported graphs in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import fake_manifest
from golden import Golden, assert_same_finals, class_names, comparing, fit_officially, golden_sets, tight
from golden_networks import mask2former
from torch_engine import TorchEngine

from visrt.benchmarks.video_level.ctvis import followed
from visrt.benchmarks.video_level.rules import official_result
from visrt.export.bundle import Export, export_bundle
from visrt.export.graphs import FrameGraph, MasksGraph
from visrt.runtime.engines.engine import Engine
from visrt.runtime.methods.ctvis import CtVis
from visrt.runtime.methods.minvis import match_to_slots
from visrt.runtime.session import Session

Opened = Callable[[Golden], Session]

MINVIS = pytest.mark.parametrize("golden", golden_sets("minvis", "network"), indirect=True)
CTVIS = pytest.mark.parametrize("golden", golden_sets("ctvis", "network"), indirect=True)
BOTH = pytest.mark.parametrize(
    "golden", [*golden_sets("minvis", "network"), *golden_sets("ctvis", "network")], indirect=True
)


def on_torch(golden: Golden) -> Session:
    """A session whose engines are the network of the golden set, in its input size."""
    network = mask2former(golden)
    settings = network.settings
    manifest = fake_manifest(
        golden.input_size,
        queries=settings.queries,
        classes=class_names(settings.classes),
        channels=settings.reid_dim or settings.hidden_dim,
        mask_channels=settings.mask_dim,
    ).model_copy(update={"family": golden.config["model"]})
    modules = {"frame": FrameGraph(network, settings.pixel_mean, settings.pixel_std).eval(), "masks": MasksGraph()}
    engines: dict[str, Engine] = {name: TorchEngine(manifest.graphs[name], module) for name, module in modules.items()}
    return Session(manifest, engines)


@pytest.fixture(scope="module")
def on_onnx_runtime(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A session on the bundle exported from the golden set, each exported once."""
    folders: dict[Path, Path] = {}

    def opened(golden: Golden) -> Session:
        if golden.path not in folders:
            out = tmp_path_factory.mktemp(golden.path.stem) / "bundle"
            classes = class_names(mask2former(golden).settings.classes)
            export = Export(
                golden.weights_file, out, *golden.input_size, classes=classes, family=golden.config["model"]
            )
            folders[golden.path] = export_bundle(export).folder
        return Session.open(folders[golden.path], threads=1)

    return opened


@pytest.fixture(params=["torch", "onnxruntime"])
def opened(request: pytest.FixtureRequest, on_onnx_runtime: Opened) -> Opened:
    return on_torch if request.param == "torch" else on_onnx_runtime


@BOTH
def test_golden_minvis_and_ctvis_from_frames_to_the_official_result(
    golden: Golden, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_officially(monkeypatch, golden)

    with opened(golden) as session:
        result = official_result(session, lambda: iter(golden.frames), len(golden.finals.scores))

    assert_same_finals(result, golden.finals)


@BOTH
def test_golden_minvis_and_ctvis_exported_graphs_give_the_official_outputs(
    golden: Golden, on_onnx_runtime: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoint -> bundle -> ONNX Runtime; the tolerances are those of the whole network."""
    fit_officially(monkeypatch, golden)

    with on_onnx_runtime(golden) as session:
        frames = session.network.run_frames(golden.frames)
        masks = [session.network.run_masks(frame.queries.mask_embeddings, frame.device) for frame in frames]

    embeddings = "pred_embeds" if "pred_embeds" in golden else "pred_embds"
    times = {"pred_logits": 2, embeddings: 2, "pred_masks": 10}
    with comparing(golden, {name: many * tight(golden[name]) for name, many in times.items()}) as compare:
        compare("", {"pred_logits": np.stack([frame.queries.class_logits for frame in frames])})
        compare("", {embeddings: np.stack([frame.queries.embeddings for frame in frames])})
        compare("", {"pred_masks": np.stack(masks)})


@MINVIS
def test_golden_minvis_slots_from_frames_are_the_official_ones(
    golden: Golden, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_officially(monkeypatch, golden)

    with opened(golden) as session:
        embeddings = [session.network.run_frames([frame])[0].queries.embeddings for frame in golden.frames]

    memory = embeddings[0]
    for current, expected in zip(embeddings[1:], golden["match_perm"], strict=True):
        order = match_to_slots(memory, current)
        assert np.array_equal(order, expected)
        memory = current[order]


@CTVIS
def test_golden_ctvis_ids_from_frames_are_the_official_ones(
    golden: Golden, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_officially(monkeypatch, golden)

    with opened(golden) as session:
        assert isinstance(session.method, CtVis)
        frames = list(followed(session.network, session.method, golden.frames))

    for found, ids in zip(frames, golden["trk_ids"], strict=True):
        assert [number for number, _, _ in found] == ids[ids >= 0].tolist()


@MINVIS
def test_golden_minvis_a_batch_of_two_gives_the_ids_and_labels_of_two_batches_of_one(golden: Golden) -> None:
    frames = golden.frames[: len(golden.frames) // 2 * 2]
    best = np.exp(golden["pred_logits"] - golden["pred_logits"].max(axis=-1, keepdims=True))
    middle = float(np.median((best[..., :-1] / best.sum(axis=-1, keepdims=True)).max(axis=-1)))
    scores = {"birth_score": middle, "keep_score": middle / 2}
    one, two = (Session(s.manifest, s.network._engines, association=scores) for s in (on_torch(golden),) * 2)

    singly = [one.step(frame)[0] for frame in frames]
    paired = [result for i in range(0, len(frames), 2) for result in two.step_batch(frames[i : i + 2])]

    assert any(result.objects for result in singly)
    for a, b in zip(singly, paired, strict=True):
        assert [(o.id, o.label) for o in a.objects] == [(o.id, o.label) for o in b.objects]
        assert np.allclose([o.score for o in a.objects], [o.score for o in b.objects], atol=1e-4)
        differing = [np.mean(x.mask() != y.mask()) for x, y in zip(a.objects, b.objects, strict=True)]
        assert max(differing, default=0) < 2e-3
