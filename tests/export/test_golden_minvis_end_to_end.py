"""From raw frames to the official final result: our network behind the runtime, against the official code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fakes import fake_manifest
from golden import assert_same_finals, fit_officially, golden_sets, load_golden
from torch_engine import TorchEngine

from visrt.export.graphs import FrameGraph, MasksGraph
from visrt.models.checkpoints import load_checkpoint
from visrt.runtime.engine import Engine
from visrt.runtime.session import Session
from visrt.runtime.video_result import official_result


def session_on(weights: Path, size: tuple[int, int]) -> Session:
    """A session whose engines are the network in `weights`, at input `size` (height, width)."""
    network = load_checkpoint(weights)
    settings = network.settings
    manifest = fake_manifest(
        size,
        queries=settings.queries,
        classes=[f"class {k}" for k in range(settings.classes)],
        channels=settings.hidden_dim,
        mask_channels=settings.mask_dim,
        association={"birth_score": 0.3, "keep_score": 0.2},
    )
    modules = {"frame": FrameGraph(network, settings.pixel_mean, settings.pixel_std).eval(), "masks": MasksGraph()}
    engines: dict[str, Engine] = {name: TorchEngine(manifest.graphs[name], module) for name, module in modules.items()}
    return Session(manifest, engines)


@pytest.mark.parametrize("path", golden_sets("minvis_*", without="_track_"))
def test_golden_minvis_from_frames_to_the_official_result(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = load_golden(path)
    fit_officially(monkeypatch, golden)
    session = session_on(path.with_name(f"{path.stem}_weights.pth"), golden["net_input"].shape[2:])

    result = official_result(session, lambda: iter(golden["frames_rgb"]))

    assert_same_finals(result, golden)


@pytest.mark.parametrize("path", golden_sets("minvis_*", without="_track_"))
def test_golden_minvis_a_batch_of_two_gives_the_ids_and_labels_of_two_batches_of_one(path: Path) -> None:
    golden = load_golden(path)
    weights, size = path.with_name(f"{path.stem}_weights.pth"), golden["net_input"].shape[2:]
    frames = list(golden["frames_rgb"][:4])
    one, two = session_on(weights, size), session_on(weights, size)

    singly = [one.step(frame)[0] for frame in frames]
    paired = two.step_batch(frames[:2]) + two.step_batch(frames[2:])

    assert any(result.objects for result in singly)
    for a, b in zip(singly, paired, strict=True):
        assert [(o.id, o.label) for o in a.objects] == [(o.id, o.label) for o in b.objects]
        assert np.allclose([o.score for o in a.objects], [o.score for o in b.objects], atol=1e-4)
        differing = [np.mean(x.mask() != y.mask()) for x, y in zip(a.objects, b.objects, strict=True)]
        assert max(differing, default=0) < 2e-3
