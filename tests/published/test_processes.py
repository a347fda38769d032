"""Claims about several processes: every trainer runs in two, by torchrun and by accelerate, and learns as one does.

They differ by the points of the mask losses, which each process draws, and by the class loss, which is normalised
within each process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import test_genvis_training as clips_of_videos
import test_inspro_training as pairs
import test_loop as frames
import torch
from tiny_sets import coco_values, write_coco

from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.mask2former import Mask2Former
from visrt.training.data.clips import ClipSettings
from visrt.training.data.sources import SourceSettings
from visrt.training.genvis_settings import GenVisTraining
from visrt.training.loop import train
from visrt.training.run_settings import RunSettings
from visrt.training.settings import DataSettings, OptimSettings, TrainSettings

ROOT = Path(__file__).parents[2]
LIMIT_S = 300
TORCHRUN = ("torch.distributed.run", "--nproc-per-node", "2", "--master-port", "{port}")
ACCELERATE = (
    "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "{port}",
)  # fmt: skip

TOLERANCES = {"embeddings": 0.05, "no_embedding_loss": 0.05, "video": 0.05, "vita": 0.05, "pairs": 1e-3, "lite": 1e-3}
"""By trainer, of the loss of a step. InsPro draws no points and has no class normaliser."""


def in_two_steps(settings: RunSettings) -> RunSettings:
    optim = replace(settings.optim, steps=2, batch=4, ema_decay=0.0)
    return replace(settings, optim=optim, save_every=9, validate_every=2)


def trainers(folder: Path) -> dict[str, RunSettings]:
    """A small run of every trainer, on pictures below `folder`. One leaves its embedding head without a loss."""
    write_coco(folder / "photos", coco_values(pictures=6))
    torch.manual_seed(1)
    frame = clips_of_videos.FRAME
    save_checkpoint(Mask2Former(replace(frame, reid_dim=16)), folder / "frame.safetensors", clips_of_videos.CLASSES)
    clips = ClipSettings(height_px=64, width_px=96, cache_mb=20, frames=4, returning=1.0, max_objects=6)
    source = SourceSettings("coco", str(folder / "photos"), held_out=0.4)
    data = DataSettings((source,), clips, workers=0, validation_clips=1, validation_frames=3)
    optim = OptimSettings(steps=2, batch=4)
    start = str(folder / "frame.safetensors")
    video = TrainSettings(frame, data, optim, clips_of_videos.POINTS, clips_of_videos.VIDEO, init=start)
    whole: GenVisTraining = replace(clips_of_videos.VIDEO, stage="vita", clip_frames=4, new_part="random")
    return {
        "embeddings": frames.contrasting(folder / "embeddings"),
        "no_embedding_loss": frames.contrasting(folder / "embeddings", "off"),
        "video": video,
        "vita": replace(video, genvis=whole),
        "pairs": pairs.settings_on(folder / "photos"),
        "lite": pairs.lite_on(folder / "photos", pairs.saved_network(folder)),
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


def launch(launcher: tuple[str, ...], folder: Path, names: list[str]) -> str:
    """The output of two processes that train `names`; both are killed where they do not end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [str(Path(__file__).parent / "train_each.py"), str(folder), *names]
    process = subprocess.Popen(
        [sys.executable, "-m", *(part.format(port=port) for part in launcher), *program],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return output


def losses_of(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def by_torchrun(alone: Path) -> str:
    return launch(TORCHRUN, alone, [*TOLERANCES])


@pytest.mark.parametrize("name", TOLERANCES)
def test_every_trainer_learns_in_two_processes_as_in_one(name: str, alone: Path, by_torchrun: str) -> None:
    assert by_torchrun.count("a step = 2 processes x 2") == len(TOLERANCES)
    one, two = losses_of(alone / f"{name}_alone"), losses_of(alone / f"{name}_shared")
    assert len(one) == len(two) == 2
    assert two == pytest.approx(one, rel=TOLERANCES[name])


def test_accelerate_launches_two_processes_too(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text((alone / "pairs.json").read_text())

    output = launch(ACCELERATE, tmp_path, ["pairs"])

    assert "a step = 2 processes x 2" in output
    assert losses_of(tmp_path / "pairs_shared") == pytest.approx(losses_of(alone / "pairs_alone"), rel=1e-3)
