"""Networks with random weights by name, in their published architecture and size: bundles for measuring speed.

How fast a network is depends on its operators and shapes, not on what it learnt. What these bundles see means nothing.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visrt.runtime.errors import UsageError, install_hint

if TYPE_CHECKING:
    from torch import nn

    from visrt.models.inspro import InsPro, InsProSettings

__all__ = ["ALL", "NETWORKS", "PRECISIONS", "RandomBundle", "RandomNetwork", "export_random", "random_bundles"]

ALL = "all"
CLASSES = "ytvis2019"
DIVISOR = 32
NEEDED = ("torch", "onnx", "onnxscript", "safetensors")
PRECISIONS = ("fp16", "fp32")
SEED = 0
WEAK = 0.1

TEN_OBJECTS = {"birth_score": 0.0, "keep_score": 0.0, "max_objects": 10}
"""Ten objects in every frame, whatever the weights: all networks are timed with the same number of masks."""


@dataclass(frozen=True)
class RandomNetwork:
    """family: as in `visrt export`. build: the network. height, width: of its input for 16:9 video at the published
    short side, in pixels. association: settings other than the family's defaults."""

    family: str
    build: Callable[[], nn.Module]
    height: int
    width: int
    association: Mapping[str, Any] = field(default_factory=lambda: TEN_OBJECTS)


@dataclass(frozen=True)
class RandomBundle:
    """The network `name`, one of NETWORKS, at a size (height, width) in a precision."""

    name: str
    size: tuple[int, int]
    precision: str

    @property
    def bundle(self) -> str:
        """The name of the bundle: minvis-r50-384x640-fp16."""
        return f"{self.name}-{self.size[0]}x{self.size[1]}-{self.precision}"


def _mask2former(backbone: str) -> nn.Module:
    from visrt.models.checkpoints.published import published
    from visrt.models.mask2former import Mask2Former

    return Mask2Former(published(backbone, _classes()))


def _ctvis(backbone: str) -> nn.Module:
    from visrt.models.checkpoints.published import ctvis, published
    from visrt.models.mask2former import Mask2Former

    return Mask2Former(ctvis(published(backbone, _classes())))


def _genvis(backbone: str) -> nn.Module:
    from visrt.models.checkpoints.published import genvis, published
    from visrt.models.genvis import GenVis

    return GenVis(genvis(published(backbone, _classes())))


def _eomt(vit: str) -> nn.Module:
    from visrt.models.checkpoints.published import eomt
    from visrt.models.eomt import Eomt

    return Eomt(eomt(vit, _classes()))


def _videomt(vit: str) -> nn.Module:
    from visrt.models.checkpoints.published import videomt
    from visrt.models.videomt import VideoMt

    return VideoMt(videomt(vit, _classes()))


def _inspro() -> nn.Module:
    from visrt.models.inspro import INSPRO_R50

    return spread_inspro(INSPRO_R50)


def _inspro_lite() -> nn.Module:
    from visrt.models.inspro import INSPRO_R50_LITE

    return spread_inspro(INSPRO_R50_LITE)


def spread_inspro(settings: InsProSettings) -> InsPro:
    """InsPro whose boxes lie all over the picture and move little, as those of a trained network do, and whose masks
    hang more on the generator's bias than on an untrained query, so that FP16 agrees with torch."""
    import torch

    from visrt.models.inspro import InsPro
    from visrt.models.interaction import InteractionStage

    network = InsPro(settings)
    with torch.no_grad():
        boxes = torch.rand(settings.queries, 2), 0.1 + 0.5 * torch.rand(settings.queries, 2)
        network.init_proposal_boxes.weight.copy_(torch.cat(boxes, dim=-1))
        for stage in (module for module in network.modules() if isinstance(module, InteractionStage)):
            stage.bboxes_delta.weight.mul_(0.1)
        for name in ("controller", "lite_controller"):
            if (generator := getattr(network, name, None)) is not None:
                torch.nn.init.normal_(generator.bias, std=0.3)
                generator.weight.mul_(WEAK)
    return network


def _classes() -> int:
    from visrt.models.dataset_classes import DATASET_CLASSES

    return len(DATASET_CLASSES[CLASSES])


NO_OVERLAP_RULE = {**TEN_OBJECTS, "nms_iou": 1.0}
ALL_SHOWN = {**NO_OVERLAP_RULE, "show_score": 0.0, "steady_frames": 1}
SEMI_ONLINE = {**TEN_OBJECTS, "clip_frames": 3, "clip_lengths": (3,)}

NETWORKS: dict[str, RandomNetwork] = {
    "minvis-r50": RandomNetwork("minvis", lambda: _mask2former("r50"), 384, 640, NO_OVERLAP_RULE),
    "minvis-swinl": RandomNetwork("minvis", lambda: _mask2former("swin_l"), 480, 864, NO_OVERLAP_RULE),
    "ctvis-r50": RandomNetwork("ctvis", lambda: _ctvis("r50"), 480, 864, ALL_SHOWN),
    "ctvis-swinl": RandomNetwork("ctvis", lambda: _ctvis("swin_l"), 480, 864, ALL_SHOWN),
    "genvis-online-r50": RandomNetwork("genvis", lambda: _genvis("r50"), 384, 640),
    "genvis-online-swinl": RandomNetwork("genvis", lambda: _genvis("swin_l"), 448, 800),
    "genvis-semi-r50": RandomNetwork("genvis", lambda: _genvis("r50"), 384, 640, SEMI_ONLINE),
    "genvis-semi-swinl": RandomNetwork("genvis", lambda: _genvis("swin_l"), 448, 800, SEMI_ONLINE),
    "inspro-r50": RandomNetwork("inspro", _inspro, 384, 640),
    "inspro-lite-r50": RandomNetwork("inspro_lite", _inspro_lite, 384, 640),
    "videomt-s": RandomNetwork("videomt", lambda: _videomt("vit_s"), 448, 800),
    "videomt-b": RandomNetwork("videomt", lambda: _videomt("vit_b"), 448, 800),
    "videomt-l": RandomNetwork("videomt", lambda: _videomt("vit_l"), 448, 800),
    "videomt-l-dinov3": RandomNetwork("videomt", lambda: _videomt("vit_l_dinov3"), 480, 864),
    "eomt-s": RandomNetwork("eomt", lambda: _eomt("vit_s"), 640, 640, NO_OVERLAP_RULE),
    "eomt-b": RandomNetwork("eomt", lambda: _eomt("vit_b"), 640, 640, NO_OVERLAP_RULE),
    "eomt-l": RandomNetwork("eomt", lambda: _eomt("vit_l"), 640, 640, NO_OVERLAP_RULE),
}
"""By family, and the backbones it is published with."""


def random_bundles(text: str, precision: str) -> list[RandomBundle]:
    """The bundles of `text`: "all", or names of NETWORKS with commas, each alone or as minvis-r50@480x864.

    Raises UsageError for what is not known, and where the packages that make bundles are missing.
    """
    found = [_named(one.strip(), precision) for one in (",".join(NETWORKS) if text == ALL else text).split(",")]
    if missing := [package for package in NEEDED if importlib.util.find_spec(package) is None]:
        raise UsageError(
            f"bundles with random weights are exported here, which needs {', '.join(missing)}; {install_hint('train')},"
            " or give bundles with --bundle"
        )
    return list(dict.fromkeys(found))


def _named(text: str, precision: str) -> RandomBundle:
    name, at, size = text.partition("@")
    if name not in NETWORKS:
        family = name.partition("-")[0]
        fault = "has no such backbone" if any(known.startswith(f"{family}-") for known in NETWORKS) else "is not known"
        raise UsageError(f"--random {text!r}: {family or 'it'} {fault}; known are {ALL}, {', '.join(NETWORKS)}")
    known = NETWORKS[name]
    if not at:
        return RandomBundle(name, (known.height, known.width), precision)
    digits = re.fullmatch(r"(\d{1,4})x(\d{1,4})", size)
    height, width = (int(digits[1]), int(digits[2])) if digits else (0, 0)
    if not height or not width or height % DIVISOR or width % DIVISOR:
        raise UsageError(
            f"--random {text!r}: expected height x width in pixels, both divisible by {DIVISOR}, as in "
            f"{name}@{known.height}x{known.width}; known are {', '.join(NETWORKS)}"
        )
    return RandomBundle(name, (height, width), precision)


def _steadied(network: nn.Module) -> nn.Module:
    """`network` with weak masked attention: else a last bit that flips a cell of an untrained attention mask moves a
    query, layer after layer, and FP16 would not agree with torch."""
    import torch

    from visrt.models.decoder import CrossAttentionLayer

    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, CrossAttentionLayer):
                layer.multihead_attn.out_proj.weight.mul_(WEAK)
    return network


def export_random(random: RandomBundle, folder: Path, say: Callable[[str], None]) -> None:
    """Exports the network with seeded weights of its usual initialisation; raises ParityError as any export does."""
    import torch

    from visrt.export.bundle import Export, export_bundle
    from visrt.models.checkpoints.checkpoint import save_checkpoint
    from visrt.models.dataset_classes import DATASET_CLASSES

    known = NETWORKS[random.name]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as at:
        checkpoint = Path(at) / "random.safetensors"
        torch.manual_seed(SEED)
        save_checkpoint(_steadied(known.build()).eval(), checkpoint, DATASET_CLASSES[CLASSES])
        export = Export(
            checkpoint,
            folder,
            *random.size,
            name=random.bundle,
            association=known.association,
            overwrite=True,
            precision=random.precision,
            family=known.family,
        )
        export_bundle(export, on_stage=say)
