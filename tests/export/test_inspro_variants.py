"""Every published variant of InsPro that is a setting: trained two steps, exported, and run as it was trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inspro_bundles import SETTINGS
from tiny_sets import coco_values, write_coco

from visrt.export.bundle import Export, export_bundle
from visrt.export.frames import synthetic_frames
from visrt.export.inspro import read_inspro
from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.inspro import INSPRO
from visrt.models.inspro import InsProSettings
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.methods.inspro import first_step, frame_step
from visrt.runtime.session import Session
from visrt.training.data.clips import ClipSettings
from visrt.training.data.motion import CameraSettings
from visrt.training.data.sources import SourceSettings
from visrt.training.inspro_learner import stages_of_clip
from visrt.training.inspro_settings import InsProTrainSettings
from visrt.training.loop import train
from visrt.training.losses.inspro import InsProLossSettings
from visrt.training.settings import DataSettings, OptimSettings

HEIGHT, WIDTH, FRAMES = 64, 96, 5
SMALL = replace(SETTINGS, classes=3, bank_frames=3, lite_stages=0)
EACH_FRAME = InsProLossSettings(matching_over_time="each_frame")

VARIANTS: dict[str, tuple[InsProSettings, InsProLossSettings]] = {
    "table 2a, A": (replace(SMALL, propagation="off"), EACH_FRAME),
    "table 2a, B": (SMALL, EACH_FRAME),
    "table 2a, C": (SMALL, InsProLossSettings()),
    "table 2a, D": (replace(SMALL, propagation="queries"), InsProLossSettings()),
    "table 2a, E": (replace(SMALL, propagation="proposals"), InsProLossSettings()),
    "table 2b, without deduplication": (SMALL, InsProLossSettings(dedup=0.0)),
    "table 2c, T = 1": (replace(SMALL, bank_frames=1), InsProLossSettings()),
    "table 2c, T = 36": (replace(SMALL, bank_frames=36), InsProLossSettings()),
    "InsPro-VID": (replace(SMALL, outputs="boxes"), InsProLossSettings(dedup_margin=0.15)),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_coco(folder, coco_values(pictures=6))
    return folder


def settings_on(pictures: Path, network: InsProSettings, loss: InsProLossSettings) -> InsProTrainSettings:
    camera = CameraSettings(letterbox=0.0)
    clips = ClipSettings(height_px=HEIGHT, width_px=WIDTH, cache_mb=20, frames=2, max_objects=5, camera=camera)
    source = SourceSettings("coco", str(pictures), held_out=0.4)
    data = DataSettings((source,), clips, workers=0, validation_clips=1, validation_frames=2)
    optim = OptimSettings(steps=2, batch=1, lr=1e-3, clip_norm=1.0)
    return InsProTrainSettings("inspro", network, data, optim, loss, first_boxes="grid", validate_every=9)


@pytest.mark.parametrize("name", VARIANTS)
def test_inspro_a_variant_runs_from_its_bundle_as_it_was_trained(name: str, pictures: Path, tmp_path: Path) -> None:
    """Boxes and scores of every slot in each frame of a video longer than the bank. Boxes that collapse go on."""
    settings = settings_on(pictures, *VARIANTS[name])
    weights = train(settings, tmp_path / "run").weights
    report = export_bundle(Export(weights, tmp_path / "bundle", HEIGHT, WIDTH, family="inspro"))
    assert report.parity.passed
    assert ("masks" in report.manifest.graphs) == (settings.network.outputs == "masks")
    assert ("bank" in report.manifest.states) == (settings.network.bank_entries > 0)
    images = synthetic_frames(FRAMES, HEIGHT, WIDTH).images
    expected = in_torch(weights, settings, images)
    with Session.open(report.folder, threads=1, association={"box_side_min": 0.0}) as session:
        given = in_the_runtime(session, images)
    for t, (outputs, last) in enumerate(zip(given, expected, strict=True)):
        np.testing.assert_allclose(outputs["boxes"], last.boxes, rtol=1e-3, atol=0.05, err_msg=f"frame {t}")
        np.testing.assert_allclose(outputs["class_logits"], last.class_logits, rtol=1e-3, atol=1e-3)


def in_torch(weights: Path, settings: InsProTrainSettings, images: Any) -> Any:
    """The last stage of each frame, by the code that watches a training run."""
    spec = InputSpec(height=HEIGHT, width=WIDTH)
    sizes = torch.tensor([[HEIGHT, WIDTH]] * len(images), dtype=torch.int32)
    pixels = read_inspro(weights, spec, {}).normalised(torch.from_numpy(images), sizes)
    return stages_of_clip(load_checkpoint(weights, INSPRO).network(), pixels, settings)


def in_the_runtime(session: Session, images: Any) -> list[dict[str, Any]]:
    """The head's outputs for each frame, as a stream gets them."""
    network, answers = session.network, []
    states, step = network.new_states(), first_step(network.states)
    for image in images:
        [frame] = network.run_frames([image])
        answer = network.alone(frame_step(frame, step, session.method.settings), states)
        step = answer.step
        answers.append(dict(answer.outputs))
    return answers
