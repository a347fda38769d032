"""From a family's name to what it does. A new family is one file beside this one and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from visrt.runtime.clip_family import AnyFamily, ClipFamily
from visrt.runtime.contract import check_graphs
from visrt.runtime.ctvis import CtVis, CtVisSettings
from visrt.runtime.errors import BundleError, UsageError
from visrt.runtime.family import Family
from visrt.runtime.genvis import GenVis, GenVisSettings
from visrt.runtime.inspro import LITE_KEY_EVERY_FRAMES, InsPro, InsProSettings
from visrt.runtime.manifest import Manifest
from visrt.runtime.minvis import MinVis, MinVisSettings
from visrt.runtime.presets import PRESETS, Preset
from visrt.runtime.settings import load_settings

__all__ = ["FAMILIES", "family_from_preset", "family_of", "frame_family_of"]

Settings = Mapping[str, Any]


def _minvis(association: Settings) -> MinVis:
    return MinVis(load_settings(MinVisSettings, association, "association"))


def _ctvis(association: Settings) -> CtVis:
    return CtVis(load_settings(CtVisSettings, association, "association"))


def _genvis(association: Settings) -> GenVis:
    settings = load_settings(GenVisSettings, association, "association")
    if settings.clip_frames not in settings.clip_lengths:
        lengths = ", ".join(map(str, settings.clip_lengths))
        raise UsageError(
            f"clip_frames is {settings.clip_frames}, but the bundle was exported for clips of {lengths} frames; choose "
            "one of these, or export it again with this length in --clip-lengths"
        )
    return GenVis(settings)


def _inspro(association: Settings) -> InsPro:
    return InsPro(load_settings(InsProSettings, association, "association"))


def _inspro_lite(association: Settings) -> InsPro:
    return _inspro({"key_every_frames": LITE_KEY_EVERY_FRAMES, **association})


FRAME_FAMILIES: dict[str, Callable[[Settings], Family[Any]]] = {"minvis": _minvis, "ctvis": _ctvis}
CLIP_FAMILIES: dict[str, Callable[[Settings], ClipFamily[Any]]] = {
    "genvis": _genvis,
    "inspro": _inspro,
    "inspro_lite": _inspro_lite,
}
FAMILIES: dict[str, Callable[[Settings], AnyFamily]] = {**FRAME_FAMILIES, **CLIP_FAMILIES}


def family_of(manifest: Manifest, changes: Settings | None = None, preset: str | None = None) -> AnyFamily:
    """The family of a bundle with its association settings, or those of `preset`; `changes` in their place where given.

    Raises BundleError for an unknown family or graphs that do not fit it, SettingsError for an unknown setting,
    UsageError for a preset that is unknown or not for such a bundle.
    """
    if manifest.family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise BundleError(f"bundle {manifest.name!r}: family {manifest.family!r} is unknown; this visrt knows {known}")
    if preset is None:
        family: AnyFamily = FAMILIES[manifest.family]({**manifest.association, **(changes or {})})
    else:
        _refuse_other_graphs(manifest, preset)
        family = family_from_preset(preset, changes)
    height, width = manifest.input.height, manifest.input.width
    rows, columns = manifest.input.image_size
    sizes = {"I": rows, "J": columns, "h": height // 4, "w": width // 4, "u": height // 8, "v": width // 8}
    sizes |= {"K": len(manifest.classes), "L": len(manifest.classes) + 1}
    check_graphs(manifest, family.needs(), sizes, family.states() if isinstance(family, ClipFamily) else {})
    return family


def frame_family_of(manifest: Manifest) -> Family[Any]:
    """As `family_of`, for what works with families that decide frame by frame; UsageError for others."""
    family = family_of(manifest)
    if isinstance(family, ClipFamily):
        raise UsageError(
            f"bundle {manifest.name!r} is of family {manifest.family!r}, which looks at clips; this works for bundles "
            f"of {', '.join(FRAME_FAMILIES)} only"
        )
    return family


def family_from_preset(name: str, changes: Settings | None = None) -> Family[Any]:
    """The family that the preset `name` is made of, `changes` in place of its settings where given."""
    preset = _preset(name)
    return FRAME_FAMILIES[preset.family]({**preset.settings, **(changes or {})})


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise UsageError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _refuse_other_graphs(manifest: Manifest, preset: str) -> None:
    """Presets are for bundles whose graphs look at one frame at a time."""
    families = {preset.family for preset in PRESETS.values()}
    if manifest.family not in families:
        raise UsageError(
            f"preset {preset!r} was given for bundle {manifest.name!r} of family {manifest.family!r}; presets are for "
            f"bundles of {', '.join(sorted(families))}"
        )
