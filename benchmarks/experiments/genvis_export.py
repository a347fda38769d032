"""The published GenVIS at full size with random weights: exported with its parity, and built by TensorRT-RTX in FP16.

    python -m visrt.benchmarks.experiments.genvis_export --write

Random weights: whether graphs agree with torch and build hangs on operators and shapes, not on what was learnt. They
are judged on one synthetic frame, which `visrt export` would choose from several.
"""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import torch
from PIL import Image

from visrt.benchmarks.accuracy.result_files import EXPERIMENT_RESULTS, add_result_options, write_result
from visrt.benchmarks.experiments.large_build import built_from
from visrt.benchmarks.experiments.large_graphs import FullSize
from visrt.export.bundle import Export, ExportReport, export_bundle
from visrt.export.frames import synthetic_frames
from visrt.export.genvis import read_genvis
from visrt.export.nodes import computing_precisions
from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.checkpoints.published import DATASET_CLASSES, PUBLISHED, genvis
from visrt.models.genvis import GenVis
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.engines.trt.build import Profile
from visrt.runtime.engines.trt.library import load_tensorrt
from visrt.runtime.parity.frames import Frames

__all__ = ["exported", "half_graphs", "main"]

SEED = 5


def exported(checkpoint: Path, folder: Path, size: tuple[int, int], association: dict[str, Any]) -> ExportReport:
    """The FP32 bundle in `folder`; raises ParityError if it does not agree with torch."""
    height, width = size
    picture = folder / "frame.png"
    Image.fromarray(synthetic_frames(1, height, width, seed=SEED).images[0]).save(picture)
    wanted = Export(
        checkpoint,
        folder / "bundle",
        height,
        width,
        family="genvis",
        association=association,
        references=(picture,),
    )
    return export_bundle(wanted, on_stage=lambda stage: print(stage, flush=True))


def half_graphs(checkpoint: Path, size: tuple[int, int], association: dict[str, Any]) -> FullSize:
    """The FP16 graphs."""
    model = read_genvis(checkpoint, InputSpec(height=size[0], width=size[1]), association)
    frames: Frames = synthetic_frames(1, *size, seed=SEED)
    models: dict[str, onnx.ModelProto] = dict(model.traced("fp16", frames, ()).models)
    return FullSize("fp16", models, {name: computing_precisions(one) for name, one in models.items()})


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(argv)
    height, width = map(int, given.size.split("x"))
    size, association = (height, width), clip_settings(given.clip_lengths)
    with TemporaryDirectory() as name:
        checkpoint = Path(name) / "model.safetensors"
        torch.manual_seed(0)
        network = GenVis(genvis(PUBLISHED[given.network])).eval()
        save_checkpoint(network, checkpoint, DATASET_CLASSES["ytvis2019"])
        start = time.process_time()
        report = exported(checkpoint, Path(name), size, association)
        told = _parity(report) | {"cpu_s": round(time.process_time() - start)}
        print(json.dumps(told, indent=1), flush=True)
        engines = [] if given.skip_builds else _builds(checkpoint, size, association, tuple(given.target))
    write_result(given.out, settings_of(given), {"export": told, "fp16_engines": engines})
    print(json.dumps(engines, indent=1, default=dict))


def _parity(report: ExportReport) -> dict[str, Any]:
    rows = [asdict(row) for row in report.parity.tensors]
    graphs = {
        name: {"macs": g.macs, "onnx_mb": round(g.file.bytes / 1e6, 1)} for name, g in report.manifest.graphs.items()
    }
    return {"passed": report.parity.passed, "graphs": graphs, "parity": rows}


def _builds(
    checkpoint: Path, size: tuple[int, int], association: dict[str, Any], targets: tuple[str, ...]
) -> list[dict[str, Any]]:
    """What TensorRT-RTX made of the FP16 graphs: the clip graph for clips up to the longest, of up to four streams."""
    longest = max(association["clip_lengths"])
    profiles: dict[str, Profile] = {
        "frame": {"batch": (1, 1, longest)},
        "memory": {"clips": (1, 256, 256)},
        "clip": {"streams": (1, 1, 4), "frames": (1, association["clip_frames"], longest)},
        "masks": {"streams": (1, 1, 4), "masks": (1, 10, 50)},
    }
    library = load_tensorrt("tensorrt-rtx")
    graphs = half_graphs(checkpoint, size, association)
    return [built_from(library, graphs, name, profiles[name], targets) for name in graphs.models]


def clip_settings(text: str) -> dict[str, Any]:
    """Association settings for clip lengths as in "1,3"; the session takes clips of the first."""
    lengths = tuple(map(int, text.split(",")))
    return {"clip_frames": lengths[0], "clip_lengths": lengths}


def arguments(argv: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--network", choices=list(PUBLISHED), default="r50")
    parser.add_argument("--size", default="480x864")
    parser.add_argument("--clip-lengths", default="1,3")
    parser.add_argument("--target", nargs="+", default=["8.6", "8.9", "12.0"])
    parser.add_argument("--skip-builds", action="store_true", help="export only")
    add_result_options(parser, EXPERIMENT_RESULTS / "genvis_r50_export.json")
    return parser.parse_args(argv)


def settings_of(given: Namespace) -> dict[str, Any]:
    return {
        "network": asdict(genvis(PUBLISHED[given.network])),
        "size": given.size,
        "association": clip_settings(given.clip_lengths),
        "targets": given.target,
        "seed": SEED,
    }


if __name__ == "__main__":
    main()
