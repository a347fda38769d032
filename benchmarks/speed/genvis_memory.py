"""What GenVIS's memory costs on a CPU core: CPU milliseconds a clip by stage, at a memory that is full.

    python -m visrt.benchmarks.speed.genvis_memory

Slots, channels and classes are those of the published networks, with a small frame network and random weights: what is
measured depends on neither. One thread, clips of one frame, each of which shows ten objects.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from visrt.export.bundle import Export, export_bundle
from visrt.export.frames import synthetic_frames
from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.genvis import GenVis, GenVisNetworkSettings
from visrt.models.mask2former import NetworkSettings
from visrt.models.resnet import ResNetSettings
from visrt.runtime.session import Session
from visrt.runtime.times import StageTimes

__all__ = ["main", "measured"]

HEIGHT, WIDTH = 64, 96
CLASSES = tuple(f"class {number}" for number in range(40))
SHOWN = {"birth_score": 0.0, "keep_score": 0.0, "max_objects": 10}
"""Settings by which ten objects are shown of a network that has learned nothing."""

STAGES = ("association", "memory_engine", "clip_engine", "mask_engine")


def measured(bundle: Path, cap: int, clips: int) -> StageTimes:
    """Times of `clips` clips after the first `cap`."""
    frames = synthetic_frames(8, HEIGHT, WIDTH).images
    with Session.open(bundle, threads=1, association={"memory_clips": cap, **SHOWN}) as session:
        session.watch.clock = time.thread_time
        for at in range(cap):
            session.step(frames[at % len(frames)])
        before = session.times
        for at in range(clips):
            session.step(frames[at % len(frames)])
        after = session.times
    return StageTimes(clips, {stage: after.seconds[stage] - before.seconds[stage] for stage in after.seconds})


def exported(folder: Path) -> Path:
    """A bundle in `folder` with 100 slots of 256 channels."""
    frame = NetworkSettings(
        classes=len(CLASSES),
        queries=20,
        backbone=ResNetSettings(blocks=(1, 1, 1, 1), width=8, stem_width=8),
        pixel_decoder="fpn",
        encoder_layers=1,
        encoder_feedforward_dim=64,
        decoder_layers=1,
        decoder_feedforward_dim=64,
    )
    torch.manual_seed(0)
    network = GenVis(GenVisNetworkSettings(frame, encoder_layers=1, decoder_layers=1, feedforward_dim=64))
    checkpoint, picture = folder / "model.safetensors", folder / "frame.png"
    save_checkpoint(network.eval(), checkpoint, CLASSES)
    Image.fromarray(np.asarray(synthetic_frames(1, HEIGHT, WIDTH, seed=5).images[0])).save(picture)
    bundle = folder / "bundle"
    export_bundle(Export(checkpoint, bundle, HEIGHT, WIDTH, family="genvis", references=(picture,)))
    return bundle


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(argv)
    with TemporaryDirectory() as folder:
        bundle = exported(Path(folder))
        for cap in given.clips:
            times = measured(bundle, cap, given.measured).ms_per_frame()
            row = ", ".join(f"{stage} {times[stage]:.2f}" for stage in STAGES if stage in times)
            print(f"{cap} clips remembered, CPU-ms a clip: {row}", flush=True)


def arguments(argv: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--clips", type=int, nargs="+", default=[16, 256], help="caps of the memory")
    parser.add_argument("--measured", type=int, default=100, help="clips measured when it is full")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
