"""How long training takes to start on a set of COCO's size, and how much memory its processes hold.

    python -m visrt.benchmarks.speed.training_start --write

The set is made up and removed afterwards. Each start is a process of its own: it reads the annotations, makes the
validation clips and takes the first batch from workers. The first start finds no cache of the annotations, the second
that of the first, and the last a folder for it that cannot be written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from visrt.benchmarks.accuracy.result_files import RESULTS, add_result_options, write_result
from visrt.benchmarks.datasets.large_set import SetSize, write_large_set
from visrt.benchmarks.speed.memory import peak_rss_mb, rss_mb

__all__ = ["START", "measure_start", "settings_of"]

START = {"workers": 2, "batch": 4, "validation_clips": 2, "held_out": 0.02}
"""Of each start; workers are processes."""


def measure_start(folder: Path) -> dict[str, float]:
    """Seconds and MB of a start of training on the set in `folder`, in this process."""
    began = time.perf_counter()
    from visrt.training.batches import clip_loader, training_clips, validation_clips

    imported = time.perf_counter()
    settings = _settings(folder)
    bare_mb = rss_mb()
    clips = training_clips(settings)
    ready = time.perf_counter()
    ready_mb = rss_mb()
    validation_clips(settings)
    validated = time.perf_counter()
    batches = iter(clip_loader(clips, settings, 0, 0, 1))
    next(batches)
    batched = time.perf_counter()
    workers = [_rss_mb_of(worker.pid) for worker in batches._workers]  # type: ignore[attr-defined]
    for _ in batches:
        # Workers that are stopped in the middle of a clip complain.
        continue
    return {
        "import_s": imported - began,
        "read_s": ready - imported,
        "validation_clips_s": validated - ready,
        "first_batch_s": batched - validated,
        "start_s": batched - imported,
        "rss_before_mb": bare_mb,
        "rss_read_mb": ready_mb,
        "rss_mb": rss_mb(),
        "peak_rss_mb": peak_rss_mb(),
        "worker_rss_mb": max(workers),
        "photos": len(clips.pool.bases),
        "cutouts": sum(clips.pool.cutout_counts.values()),
    }


def _settings(folder: Path) -> Any:
    from visrt.models.mask2former import NetworkSettings
    from visrt.training.data.clips import ClipSettings
    from visrt.training.data.sources import SourceSettings
    from visrt.training.settings import DataSettings, OptimSettings, TrainSettings

    source = SourceSettings("coco", str(folder), held_out=START["held_out"], needs_target=True)
    data = DataSettings(
        (source,), ClipSettings(), workers=int(START["workers"]), validation_clips=int(START["validation_clips"])
    )
    network = NetworkSettings(classes=SetSize().categories)
    return TrainSettings(network, data, OptimSettings(steps=4, batch=int(START["batch"])))


def _rss_mb_of(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("VmRSS"))


def _start(folder: Path, cache: str) -> dict[str, Any]:
    """The figures of a start in a process of its own, with `cache` as the user's cache folder."""
    command = [sys.executable, "-m", "visrt.benchmarks.speed.training_start", "--start", str(folder)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "VISRT_CACHE": cache}
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def settings_of(size: SetSize) -> dict[str, Any]:
    return {"set": asdict(size), **START}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The start of training on a set of COCO's size.")
    add_result_options(parser, RESULTS / "training_start.json")
    parser.add_argument("--photos", type=int, default=SetSize().photos)
    parser.add_argument("--objects", type=int, default=SetSize().objects)
    parser.add_argument("--start", type=Path, help="one start on the set in this folder, in this process")
    return parser.parse_args(argv)


def main() -> None:
    given = arguments()
    if given.start:
        print(json.dumps({name: round(value, 2) for name, value in measure_start(given.start).items()}))
        return
    size = replace(SetSize(), photos=given.photos, objects=given.objects)
    with TemporaryDirectory() as folder:
        path = write_large_set(Path(folder) / "set", size)
        figures: Mapping[str, Any] = {
            "annotations_mb": round(path.stat().st_size / 1e6, 1),
            "first": _start(path.parent, f"{folder}/cache"),
            "second": _start(path.parent, f"{folder}/cache"),
            "cache_mb": round(sum(one.stat().st_size for one in Path(folder, "cache").rglob("*.set")) / 1e6, 1),
            "without_cache": _start(path.parent, "/proc/none"),
        }
    write_result(given.out, settings_of(size), figures)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
