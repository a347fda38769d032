"""The published InsPro-lite at full size, weights random: exported with its parity, built by TensorRT-RTX in FP16.

    python -m visrt.benchmarks.experiments.inspro_export --bundle runs/inspro_r50 --write

384x640 is what a video of 640x360 is padded to. Random weights: whether graphs agree with torch and build hangs on
operators and shapes, not on what was learnt. They are judged on one synthetic frame, which `visrt export` would choose
from several.
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

import torch
from PIL import Image

from visrt.benchmarks.accuracy.result_files import EXPERIMENT_RESULTS, add_result_options, write_result
from visrt.benchmarks.experiments.large_build import built_from
from visrt.benchmarks.experiments.large_graphs import FullSize
from visrt.export.bundle import Export, ExportReport, export_bundle
from visrt.export.frames import synthetic_frames
from visrt.export.inspro import read_inspro_lite
from visrt.export.nodes import computing_precisions
from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.checkpoints.published import DATASET_CLASSES
from visrt.models.inspro import INSPRO_R50_LITE, InsPro, InsProSettings
from visrt.models.interaction import InteractionStage
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.engines.trt.build import Profile
from visrt.runtime.engines.trt.library import load_tensorrt

__all__ = ["PROFILES", "half_graphs", "main", "one_stream", "random_network"]

SEED = 5
PROFILES: dict[str, Profile] = {
    "frame": {"batch": (1, 1, 1)},
    "head": {},
    "head_lite": {},
    "masks": {"masks": (1, 10, 50)},
}
"""Of one stream."""


def random_network(settings: InsProSettings) -> InsPro:
    """Seeded weights whose boxes differ from the start and move little, as those of a trained network do."""
    torch.manual_seed(SEED)
    network = InsPro(settings).eval()
    with torch.no_grad():
        parts = torch.rand(settings.queries, 2), 0.1 + 0.5 * torch.rand(settings.queries, 2)
        network.init_proposal_boxes.weight.copy_(torch.cat(parts, dim=-1))
        for stage in (module for module in network.modules() if isinstance(module, InteractionStage)):
            stage.bboxes_delta.weight.mul_(0.1)
    return network


def exported(checkpoint: Path, bundle: Path, size: tuple[int, int]) -> ExportReport:
    """The FP32 bundle; raises ParityError if it does not agree with torch. Every slot is an object, ten are shown."""
    with TemporaryDirectory() as folder:
        picture = Path(folder) / "frame.png"
        Image.fromarray(synthetic_frames(1, *size, seed=SEED).images[0]).save(picture)
        wanted = Export(
            checkpoint,
            bundle,
            *size,
            family="inspro_lite",
            association={"birth_score": 0.0, "keep_score": 0.0, "max_objects": 10},
            references=(picture,),
            overwrite=True,
        )
        return export_bundle(wanted, on_stage=lambda stage: print(stage, flush=True))


def half_graphs(checkpoint: Path, size: tuple[int, int]) -> FullSize:
    """The FP16 graphs."""
    model = read_inspro_lite(checkpoint, InputSpec(height=size[0], width=size[1]), {})
    models = model.traced("fp16", synthetic_frames(1, *size, seed=SEED), ()).models
    return FullSize("fp16", models, {name: computing_precisions(one) for name, one in models.items()})


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(argv)
    height, width = map(int, given.size.split("x"))
    size = height, width
    with TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model.safetensors"
        save_checkpoint(random_network(INSPRO_R50_LITE), checkpoint, DATASET_CLASSES["ytvis2019"])
        start = time.process_time()
        told = _parity(exported(checkpoint, given.bundle, size)) | {"cpu_s": round(time.process_time() - start)}
        print(json.dumps(told, indent=1), flush=True)
        engines = [] if given.skip_builds else _builds(checkpoint, size, tuple(given.target))
    write_result(given.out, settings_of(given), {"export": told, "fp16_engines": engines})
    print(json.dumps(engines, indent=1, default=dict))


def _parity(report: ExportReport) -> dict[str, Any]:
    graphs = {
        name: {"macs": g.macs, "onnx_mb": round(g.file.bytes / 1e6, 1)} for name, g in report.manifest.graphs.items()
    }
    return {"passed": report.parity.passed, "graphs": graphs, "parity": [asdict(row) for row in report.parity.tensors]}


def _builds(checkpoint: Path, size: tuple[int, int], targets: tuple[str, ...]) -> list[dict[str, Any]]:
    """What TensorRT-RTX made of the FP16 graphs."""
    library, graphs = load_tensorrt("tensorrt-rtx"), half_graphs(checkpoint, size)
    return [built_from(library, graphs, name, one_stream(name), targets) for name in graphs.models]


def one_stream(name: str) -> Profile:
    """What the engine of the graph `name` is built for."""
    return PROFILES[name] if name == "frame" else {"streams": (1, 1, 1), **PROFILES[name]}


def arguments(argv: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--size", default="384x640")
    parser.add_argument("--bundle", type=Path, required=True, help="folder for the FP32 bundle")
    parser.add_argument("--target", nargs="+", default=["8.6", "8.9", "12.0"])
    parser.add_argument("--skip-builds", action="store_true", help="export only")
    add_result_options(parser, EXPERIMENT_RESULTS / "inspro_r50_export.json")
    return parser.parse_args(argv)


def settings_of(given: Namespace) -> dict[str, Any]:
    return {
        "network": asdict(INSPRO_R50_LITE),
        "size": given.size,
        "profiles": PROFILES,
        "targets": given.target,
        "seed": SEED,
    }


if __name__ == "__main__":
    main()
