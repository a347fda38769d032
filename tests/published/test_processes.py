"""Claims about several processes: every trainer runs in two, by torchrun and by accelerate, and learns as one does.

They differ by the points of the mask losses, which each process draws, and by the class loss, which is normalised
within each process.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import small_networks
import test_inspro_training as pairs
import test_loop as frames
import torch
import vit_runs
from tiny_sets import coco_values, write_coco

from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.mask2former import Mask2Former
from visrt.training.data.clips import ClipSettings
from visrt.training.data.sources import SourceSettings
from visrt.training.genvis_settings import GenVisTraining
from visrt.training.loop import train
from visrt.training.run_settings import RunSettings
from visrt.training.settings import DataSettings, OptimSettings, TrainSettings

ACCELERATE = (
    "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "{port}",
)  # fmt: skip

TOLERANCES = {
    "embeddings": 0.05, "no_embedding_loss": 0.05, "video": 0.05, "vita": 0.05, "pairs": 1e-3, "lite": 1e-3,
    "images": 0.05, "online": 0.05,
}  # fmt: skip
"""By trainer, of the loss of a step. InsPro draws no points and has no class normaliser."""


def in_two_steps(settings: RunSettings) -> RunSettings:
    optim = replace(settings.optim, steps=2, batch=4, ema_decay=0.0)
    return replace(settings, optim=optim, save_every=9, validate_every=2)


def trainers(folder: Path) -> dict[str, RunSettings]:
    """A small run of every trainer, on pictures below `folder`. One leaves its embedding head without a loss."""
    write_coco(folder / "photos", coco_values(pictures=6))
    torch.manual_seed(1)
    frame = small_networks.FRAME
    save_checkpoint(Mask2Former(replace(frame, reid_dim=16)), folder / "frame.safetensors", small_networks.CLASSES)
    clips = ClipSettings(height_px=64, width_px=96, cache_mb=20, frames=4, returning=1.0, max_objects=6)
    source = SourceSettings("coco", str(folder / "photos"), held_out=0.4)
    data = DataSettings((source,), clips, workers=0, validation_clips=1, validation_frames=3)
    optim = OptimSettings(steps=2, batch=4)
    start = str(folder / "frame.safetensors")
    video = TrainSettings(frame, data, optim, small_networks.POINTS, small_networks.VIDEO, init=start)
    whole: GenVisTraining = replace(small_networks.VIDEO, stage="vita", clip_frames=4, new_part="random")
    return {
        "embeddings": frames.contrasting(folder / "embeddings"),
        "no_embedding_loss": frames.contrasting(folder / "embeddings", "off"),
        "video": video,
        "vita": replace(video, genvis=whole),
        "pairs": pairs.settings_on(folder / "photos"),
        "lite": pairs.lite_on(folder / "photos", pairs.saved_network(folder)),
        "images": vit_runs.eomt_run(folder / "photos"),
        "online": vit_runs.videomt_run(folder / "photos"),
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the settings of every trainer, and its run in one process."""
    folder = tmp_path_factory.mktemp("trainers")
    for name, settings in trainers(folder).items():
        chosen = in_two_steps(settings)
        (folder / f"{name}.json").write_text(json.dumps(asdict(chosen)))
        train(chosen, folder / f"{name}_alone")
    return folder


def program(folder: Path, *names: str) -> list[str]:
    return [str(Path(__file__).parent / "train_each.py"), str(folder), *names]


@pytest.fixture(scope="module")
def by_torchrun(alone: Path) -> str:
    return frames.launched(program(alone, *TOLERANCES), frames.TORCHRUN)


@pytest.mark.parametrize("name", TOLERANCES)
def test_every_trainer_learns_in_two_processes_as_in_one(name: str, alone: Path, by_torchrun: str) -> None:
    assert by_torchrun.count("a step = 2 processes x 2") == len(TOLERANCES)
    one, two = frames.losses_of(alone / f"{name}_alone"), frames.losses_of(alone / f"{name}_shared")
    assert len(one) == len(two) == 2
    assert two == pytest.approx(one, rel=TOLERANCES[name])


def test_accelerate_launches_two_processes_too(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text((alone / "pairs.json").read_text())

    output = frames.launched(program(tmp_path, "pairs"), ACCELERATE)

    assert "a step = 2 processes x 2" in output
    assert frames.losses_of(tmp_path / "pairs_shared") == pytest.approx(
        frames.losses_of(alone / "pairs_alone"), rel=1e-3
    )
