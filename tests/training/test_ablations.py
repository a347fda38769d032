"""A network trained with any ablation of the papers exports, and its assignments do not depend on the precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import CLASSES, POINTS
from small_networks import FRAME as TWO_LAYERS
from small_networks import VIDEO as TWO_LAYERS_VIDEO
from tiny_sets import coco_values, write_coco

from visrt.export.bundle import Export, export_bundle
from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.mask2former import Mask2Former
from visrt.training.data.clips import ClipSettings
from visrt.training.data.sources import SourceSettings
from visrt.training.loop import Run, train
from visrt.training.losses.mask2former import LossSettings
from visrt.training.losses.targets import Matches, match_layers
from visrt.training.settings import DataSettings, OptimSettings, TrainSettings

FRAME = replace(TWO_LAYERS, queries=6, decoder_layers=1)
VIDEO = replace(TWO_LAYERS_VIDEO, decoder_layers=1, streams=1)
CONTRAST = replace(FRAME, reid_dim=16)


def settings(folder: Path, loss: LossSettings, **changes: Any) -> TrainSettings:
    """Two steps on clips of three frames."""
    write_coco(folder / "data", coco_values(pictures=6))
    clips = ClipSettings(height_px=64, width_px=96, cache_mb=20, frames=3, max_objects=6)
    source = SourceSettings("coco", str(folder / "data"), held_out=0.4)
    data = DataSettings((source,), clips, workers=0, validation_clips=1, validation_frames=2)
    plain = TrainSettings(FRAME, data, OptimSettings(steps=2, batch=1), loss, save_every=2, validate_every=2)
    return replace(plain, **changes)


def assert_exports(weights: Path, folder: Path, family: str) -> None:
    """Export compares its graphs with torch and raises if they differ."""
    report = export_bundle(Export(weights, folder, 64, 96, family=family))
    assert report.parity.passed


def test_a_network_trained_with_the_hinge_loss_exports(tmp_path: Path) -> None:
    loss = replace(POINTS, identity_weight=1.0, identity_loss="hinge", identity_range_frames=1)
    assert_exports(train(settings(tmp_path, loss), tmp_path / "run").weights, tmp_path / "bundle", "minvis")


def test_a_network_trained_with_local_negatives_exports(tmp_path: Path) -> None:
    loss = replace(POINTS, contrast="paper")
    weights = train(settings(tmp_path, loss, network=CONTRAST), tmp_path / "run").weights
    assert_exports(weights, tmp_path / "bundle", "ctvis")


def test_a_video_part_trained_by_correspondence_exports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_checkpoint(Mask2Former(FRAME), tmp_path / "frame.safetensors", CLASSES)
    video = replace(VIDEO, assignment="correspondence")
    run = settings(tmp_path, POINTS, genvis=video, init=str(tmp_path / "frame.safetensors"))
    assert_exports(train(run, tmp_path / "run").weights, tmp_path / "bundle", "genvis")


def assignments(run: Run, batches: list[Any], half: torch.dtype | None) -> list[Matches]:
    """Of every frame of `batches` and layer, the network and the matching run in `half`; None is float32."""
    found = []
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        with torch.no_grad(), torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=half is not None):
            layers, mask_features, _ = run.network(batch.images)
            for layer in match_layers(layers, mask_features, batch.targets, POINTS.match):
                found += layer
    return found


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_in_a_short_run_half_precision_assigns_as_float32_does(half: torch.dtype, tmp_path: Path) -> None:
    """Random queries of a fresh network are nearly alike, so that single pairs may differ by rounding."""
    torch.manual_seed(0)
    short = settings(tmp_path, POINTS, optim=OptimSettings(steps=8, batch=1, lr=1e-3, clip_norm=1.0))
    run = Run(short, tmp_path / "run")
    batches = []
    for [batch] in run.batches():
        run.advance([batch])
        batches.append(batch)
    run.network.eval()
    pairs = zip(assignments(run, batches, None), assignments(run, batches, half), strict=True)
    same = [
        torch.equal(exact.queries, other.queries) and torch.equal(exact.objects, other.objects)
        for exact, other in pairs
    ]
    assert len(same) == 2 * 8 * 3
    assert sum(same) >= 0.9 * len(same)
