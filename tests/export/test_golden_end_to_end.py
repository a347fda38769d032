"""From raw frames to the official final result: our network behind the runtime, against the official code.

Two rungs: torch itself, and the exported graphs in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import fake_manifest
from golden import assert_same_finals, fit_officially, golden_sets, load_golden
from numpy.typing import NDArray
from torch_engine import TorchEngine

from visrt.benchmarks.video_level.ctvis import followed
from visrt.benchmarks.video_level.rules import official_result
from visrt.export.bundle import Export, export_bundle
from visrt.export.graphs import FrameGraph, MasksGraph
from visrt.models.checkpoints import load_checkpoint
from visrt.models.mask2former_checkpoints import MASK2FORMER
from visrt.runtime.ctvis import CtVis
from visrt.runtime.engine import Engine
from visrt.runtime.minvis import match_to_slots
from visrt.runtime.session import Session

Golden = dict[str, NDArray[Any]]
Opened = Callable[[Path, Golden], Session]

MINVIS = golden_sets("minvis_*", without="_track_")
CTVIS = golden_sets("ctvis_*", without="_track_")


def family_of_set(path: Path) -> str:
    return path.stem.split("_")[0]


def weights_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}_weights.pth")


def on_torch(path: Path, golden: Golden) -> Session:
    """A session whose engines are the network of the golden set at `path`, in its input size."""
    network = load_checkpoint(weights_of(path), MASK2FORMER).network()
    settings = network.settings
    manifest = fake_manifest(
        golden["net_input"].shape[2:],
        queries=settings.queries,
        classes=[f"class {k}" for k in range(settings.classes)],
        channels=settings.reid_dim or settings.hidden_dim,
        mask_channels=settings.mask_dim,
    ).model_copy(update={"family": family_of_set(path)})
    modules = {"frame": FrameGraph(network, settings.pixel_mean, settings.pixel_std).eval(), "masks": MasksGraph()}
    engines: dict[str, Engine] = {name: TorchEngine(manifest.graphs[name], module) for name, module in modules.items()}
    return Session(manifest, engines)


@pytest.fixture(scope="module")
def on_onnx_runtime(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A session on the bundle exported from the golden set, each exported once."""
    folders: dict[Path, Path] = {}

    def opened(path: Path, golden: Golden) -> Session:
        if path not in folders:
            height, width = golden["net_input"].shape[2:]
            classes = tuple(f"class {k}" for k in range(golden["pred_logits"].shape[2] - 1))
            out = tmp_path_factory.mktemp(path.stem) / "bundle"
            wanted = Export(weights_of(path), out, height, width, classes=classes, family=family_of_set(path))
            folders[path] = export_bundle(wanted).folder
        return Session.open(folders[path], threads=1)

    return opened


@pytest.fixture(params=["torch", "onnxruntime"])
def opened(request: pytest.FixtureRequest, on_onnx_runtime: Opened) -> Opened:
    return on_torch if request.param == "torch" else on_onnx_runtime


@pytest.mark.parametrize("path", [*MINVIS, *CTVIS])
def test_golden_minvis_and_ctvis_from_frames_to_the_official_result(
    path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = load_golden(path)
    fit_officially(monkeypatch, golden)

    with opened(path, golden) as session:
        result = official_result(session, lambda: iter(golden["frames_rgb"]))

    assert_same_finals(result, golden)


@pytest.mark.parametrize("path", [*MINVIS, *CTVIS])
def test_golden_minvis_and_ctvis_exported_graphs_give_the_official_outputs(
    path: Path, on_onnx_runtime: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoint -> bundle -> ONNX Runtime; the tolerances are those of the whole network."""
    golden = load_golden(path)
    fit_officially(monkeypatch, golden)

    with on_onnx_runtime(path, golden) as session:
        frames = session.network.run_frames(list(golden["frames_rgb"]))
        masks = [session.network.run_masks(frame.queries.mask_embeddings, frame) for frame in frames]

    embeddings = golden["pred_embeds"] if "pred_embeds" in golden else golden["pred_embds"]
    assert_close([frame.queries.class_logits for frame in frames], golden["pred_logits"], 2e-4)
    assert_close([frame.queries.embeddings for frame in frames], embeddings, 2e-4)
    assert_close(masks, golden["pred_masks"], 1e-3)


def assert_close(given: Sequence[NDArray[np.float32]], expected: NDArray[np.float32], tolerance: float) -> None:
    found = np.stack(given)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * max(1, np.abs(expected).max())


@pytest.mark.parametrize("path", MINVIS)
def test_golden_minvis_slots_from_frames_are_the_official_ones(
    path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = load_golden(path)
    fit_officially(monkeypatch, golden)

    with opened(path, golden) as session:
        embeddings = [session.network.run_frames([frame])[0].queries.embeddings for frame in golden["frames_rgb"]]

    memory = embeddings[0]
    for current, expected in zip(embeddings[1:], golden["match_perm"], strict=True):
        order = match_to_slots(memory, current)
        assert np.array_equal(order, expected)
        memory = current[order]


@pytest.mark.parametrize("path", CTVIS)
def test_golden_ctvis_ids_from_frames_are_the_official_ones(
    path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = load_golden(path)
    fit_officially(monkeypatch, golden)

    with opened(path, golden) as session:
        assert isinstance(session.method, CtVis)
        frames = list(followed(session.network, session.method, golden["frames_rgb"]))

    for found, ids in zip(frames, golden["trk_ids"], strict=True):
        assert [number for number, _, _ in found] == ids[ids >= 0].tolist()


@pytest.mark.parametrize("path", MINVIS)
def test_golden_minvis_a_batch_of_two_gives_the_ids_and_labels_of_two_batches_of_one(path: Path) -> None:
    golden = load_golden(path)
    frames = list(golden["frames_rgb"][:4])
    scores = {"birth_score": 0.3, "keep_score": 0.2}
    one, two = (Session(s.manifest, s.network._engines, association=scores) for s in (on_torch(path, golden),) * 2)

    singly = [one.step(frame)[0] for frame in frames]
    paired = two.step_batch(frames[:2]) + two.step_batch(frames[2:])

    assert any(result.objects for result in singly)
    for a, b in zip(singly, paired, strict=True):
        assert [(o.id, o.label) for o in a.objects] == [(o.id, o.label) for o in b.objects]
        assert np.allclose([o.score for o in a.objects], [o.score for o in b.objects], atol=1e-4)
        differing = [np.mean(x.mask() != y.mask()) for x, y in zip(a.objects, b.objects, strict=True)]
        assert max(differing, default=0) < 2e-3
