"""From a family's name to what it does. A new family is one file beside this one and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from visrt.runtime.contract import check_graphs
from visrt.runtime.errors import BundleError
from visrt.runtime.family import Family
from visrt.runtime.manifest import Manifest
from visrt.runtime.minvis import MinVis, MinVisSettings
from visrt.runtime.settings import load_settings

__all__ = ["FAMILIES", "family_of"]


def _minvis(association: Mapping[str, Any]) -> MinVis:
    return MinVis(load_settings(MinVisSettings, association, "association"))


FAMILIES: dict[str, Callable[[Mapping[str, Any]], Family[Any]]] = {"minvis": _minvis}


def family_of(manifest: Manifest, changes: Mapping[str, Any] | None = None) -> Family[Any]:
    """The family of a bundle with its association settings, `changes` in their place where given.

    Raises BundleError for an unknown family or graphs that do not fit it, SettingsError for an unknown setting.
    """
    if manifest.family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise BundleError(f"bundle {manifest.name!r}: family {manifest.family!r} is unknown; this visrt knows {known}")
    family = FAMILIES[manifest.family]({**manifest.association, **(changes or {})})
    height, width = manifest.input.height, manifest.input.width
    rows, columns = manifest.input.image_size
    sizes = {"I": rows, "J": columns, "h": height // 4, "w": width // 4, "L": len(manifest.classes) + 1}
    check_graphs(manifest, family.needs(), sizes)
    return family
