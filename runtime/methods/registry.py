"""Tracking methods by name. A new one is a file in this folder and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from visrt.runtime.bundles.contract import check_graphs
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.errors import BundleError, UsageError
from visrt.runtime.methods.ctvis import CtVis, CtVisSettings
from visrt.runtime.methods.genvis import GenVis, GenVisSettings
from visrt.runtime.methods.inspro import LITE_KEY_EVERY_FRAMES, InsPro, InsProSettings
from visrt.runtime.methods.method import PerFrameMethod, TrackingMethod
from visrt.runtime.methods.minvis import MinVis, MinVisSettings
from visrt.runtime.methods.presets import PRESETS, Preset
from visrt.runtime.methods.videomt import VideoMt, VideoMtSettings
from visrt.runtime.settings import load_settings

__all__ = ["METHODS", "fits_state", "method_from_preset", "method_of"]

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


def _videomt(association: Settings) -> VideoMt:
    return VideoMt(load_settings(VideoMtSettings, association, "association"))


METHODS: dict[str, Callable[[Settings], TrackingMethod[Any]]] = {
    "minvis": _minvis,
    "ctvis": _ctvis,
    "genvis": _genvis,
    "inspro": _inspro,
    "inspro_lite": _inspro_lite,
    "eomt": _minvis,
    "videomt": _videomt,
}
"""By the name of a bundle's family. Each takes association settings and refuses unknown ones with SettingsError."""


def method_of(manifest: Manifest, changes: Settings | None = None, preset: str | None = None) -> TrackingMethod[Any]:
    """The tracking method of a bundle with its settings, or that of `preset`; `changes` replace single settings.

    Raises BundleError for an unknown family or graphs, at any size, that do not fit it, SettingsError for an unknown
    setting, UsageError for a preset that is unknown or not for such a bundle.
    """
    if manifest.family not in METHODS:
        known = ", ".join(METHODS)
        raise BundleError(f"bundle {manifest.name!r}: family {manifest.family!r} is unknown; this visrt knows {known}")
    if preset is None:
        method = METHODS[manifest.family]({**manifest.association, **(changes or {})})
    else:
        _refuse_other_graphs(manifest, preset)
        method = method_from_preset(preset, changes)
    for size in manifest.sizes:
        _check_size(size, method)
    return method


def fits_state(old: TrackingMethod[Any], new: TrackingMethod[Any]) -> bool:
    """Whether the state of `old` can be gone on from by `new`, the same method with other settings.

    Thresholds and counts of what is shown leave it as it is; what chooses how objects are remembered does not.
    Raises UsageError where the engines were opened for other clips.
    """
    if new.clip_frames != old.clip_frames:
        raise UsageError(
            f"clips of {new.clip_frames} frames in place of {old.clip_frames}: the engines are open for these; open a "
            "new session"
        )
    changed = [
        (before, getattr(new.settings, one.name))
        for one in fields(old.settings)
        if (before := getattr(old.settings, one.name)) != getattr(new.settings, one.name)
        and one.name not in COUNTS_OF_WHAT_IS_SHOWN
    ]
    same_masks = getattr(old.settings, "compares_masks", None) == getattr(new.settings, "compares_masks", None)
    return same_masks and all(isinstance(before, float) and isinstance(now, float) for before, now in changed)


COUNTS_OF_WHAT_IS_SHOWN = ("max_objects", "score_window_frames", "steady_frames", "noise_gap_frames", "mask_cells_min")


def _check_size(manifest: Manifest, method: TrackingMethod[Any]) -> None:
    height, width = manifest.input.height, manifest.input.width
    rows, columns = manifest.input.image_size
    axes = {"I": rows, "J": columns, "h": height // 4, "w": width // 4, "u": height // 8, "v": width // 8}
    axes |= {"K": len(manifest.classes), "L": len(manifest.classes) + 1}
    check_graphs(manifest, method.required_graphs(), axes, method.required_states())


def method_from_preset(name: str, changes: Settings | None = None) -> PerFrameMethod[Any]:
    """The method that the preset `name` is made of; `changes` replace single settings."""
    preset = _preset(name)
    method = METHODS[preset.family]({**preset.settings, **(changes or {})})
    assert isinstance(method, PerFrameMethod), f"preset {name!r}: {preset.family!r} does not decide frame by frame"
    return method


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise UsageError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _refuse_other_graphs(manifest: Manifest, preset: str) -> None:
    """Presets are for bundles whose graphs look at one frame at a time."""
    per_frame = [name for name, make in METHODS.items() if isinstance(make({}), PerFrameMethod)]
    if manifest.family not in per_frame:
        raise UsageError(
            f"preset {preset!r} was given for bundle {manifest.name!r} of family {manifest.family!r}; presets are for "
            f"bundles of {', '.join(sorted(per_frame))}"
        )
