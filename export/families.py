"""The export of each family, by name. A new family is a file of its own and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from visrt.export.family import Exportable
from visrt.export.genvis import read_genvis
from visrt.export.inspro import read_inspro, read_inspro_lite
from visrt.export.per_frame import read_per_frame
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.errors import UsageError

__all__ = ["DEFAULT_FAMILY", "FAMILIES", "read_for", "require_known"]

FAMILIES: dict[str, Callable[[Path, InputSpec, Mapping[str, Any]], Exportable[Any]]] = {
    "minvis": read_per_frame,
    "ctvis": read_per_frame,
    "genvis": read_genvis,
    "inspro": read_inspro,
    "inspro_lite": read_inspro_lite,
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
