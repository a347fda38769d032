"""The export of each family, by name. A new family is a file of its own and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visrt.export.eomt import read_eomt
from visrt.export.family import Exportable
from visrt.export.genvis import read_genvis
from visrt.export.inspro import read_inspro, read_inspro_lite
from visrt.export.per_frame import read_per_frame
from visrt.export.videomt import read_videomt
from visrt.models.checkpoints.published import PUBLISHED, PUBLISHED_VITS
from visrt.models.dataset_classes import DATASET_CLASSES
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.errors import UsageError

__all__ = [
    "DEFAULT_FAMILY",
    "FAMILIES",
    "PublishedResize",
    "published_resize",
    "read_for",
    "require_known",
    "resize_of",
]

FAMILIES: dict[str, Callable[[Path, InputSpec, Mapping[str, Any]], Exportable[Any]]] = {
    "minvis": read_per_frame,
    "ctvis": read_per_frame,
    "genvis": read_genvis,
    "inspro": read_inspro,
    "inspro_lite": read_inspro_lite,
    "eomt": read_eomt,
    "videomt": read_videomt,
}
"""Each takes the checkpoint, the images that the frame graph will be given, and all association settings."""


DEFAULT_FAMILY = "minvis"


def require_known(family: str) -> None:
    """Raises UsageError for a family that cannot be exported."""
    if family not in FAMILIES:
        raise UsageError(f"family {family!r} cannot be exported; choose one of {', '.join(FAMILIES)}")


def read_for(family: str, checkpoint: Path, spec: InputSpec, association: Mapping[str, Any]) -> Exportable[Any]:
    """The checkpoint as `family` exports it. Raises UsageError for an unknown family."""
    require_known(family)
    return FAMILIES[family](checkpoint, spec, association)


@dataclass(frozen=True)
class PublishedResize:
    """Pixels of the short side, and the most of the long side, to which published models see frames resized."""

    short_side: int
    long_side: int = 1333


USUAL, SWIN_L, ROTARY = "usual", "swin_l", "rotary"

RESIZES: dict[str, dict[str, PublishedResize]] = {
    "minvis": {USUAL: PublishedResize(360), SWIN_L: PublishedResize(480)},
    "ctvis": {USUAL: PublishedResize(480)},
    "genvis": {USUAL: PublishedResize(360), SWIN_L: PublishedResize(448)},
    "inspro": {USUAL: PublishedResize(360, 640)},
    "inspro_lite": {USUAL: PublishedResize(360, 640)},
    "eomt": {USUAL: PublishedResize(640, 640)},
    "videomt": {USUAL: PublishedResize(448), ROTARY: PublishedResize(480)},
}
"""MIN_SIZE_TEST and MAX_SIZE_TEST of the released configurations; of InsPro as its paper writes (section 4.2); of EoMT
a long side of 640, in a square."""

OF_SETS: dict[tuple[str, tuple[str, ...]], PublishedResize] = {
    ("minvis", DATASET_CLASSES["ytvis2021"]): PublishedResize(360),
    ("videomt", DATASET_CLASSES["ovis"]): PublishedResize(544),
}
"""What a family's configurations for a set have in place of `RESIZES`, whatever the backbone, by the set's classes."""


def published_resize(family: str, settings: Any, classes: tuple[str, ...]) -> PublishedResize:
    """The resize with which the network of `settings` for `classes` is evaluated, as `family`.

    Backbones that nobody published take that of ResNet-50.
    """
    backbone = getattr(getattr(settings, "frame", settings), "backbone", None)
    known = getattr(settings, "positions", USUAL)
    if backbone is not None and backbone.channels == PUBLISHED[SWIN_L].backbone.channels:
        known = SWIN_L
    return resize_of(family, known, classes)


def resize_of(family: str, backbone: str, classes: tuple[str, ...]) -> PublishedResize:
    """The published resize of `family` for `classes`; `backbone`: a published one by name, or a key of `RESIZES`."""
    known = PUBLISHED_VITS.get(backbone, {}).get("positions", backbone)
    return OF_SETS.get((family, classes)) or RESIZES[family].get(known, RESIZES[family][USUAL])
