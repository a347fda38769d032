"""A settings file of any family: its "family" says which settings it holds; without one, Mask2Former's."""

from __future__ import annotations

import json
from pathlib import Path

from visrt.runtime.errors import SettingsError
from visrt.runtime.settings import settings_from_file
from visrt.training.inspro_settings import InsProTrainSettings
from visrt.training.settings import TrainSettings

__all__ = ["RunSettings", "run_settings_from_file"]

RunSettings = TrainSettings | InsProTrainSettings

FAMILIES: dict[str, type[InsProTrainSettings]] = {"inspro": InsProTrainSettings}


def run_settings_from_file(path: Path) -> RunSettings:
    """The settings of a run. Raises SettingsError."""
    family = _family(path)
    if family is None:
        return settings_from_file(TrainSettings, path)
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise SettingsError(
            f"{path}: setting 'family' is {family!r}; known are: {known}; leave it out for the Mask2Former families"
        )
    return settings_from_file(FAMILIES[family], path)


def _family(path: Path) -> object:
    """What the file says; None where it cannot be read, which the strict loader then tells."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return values.get("family") if isinstance(values, dict) else None
