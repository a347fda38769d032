"""A settings file of any family: its "family" decides which settings it holds; without one, Mask2Former's."""

from __future__ import annotations

from pathlib import Path

from visrt.runtime.errors import SettingsError
from visrt.runtime.json_file import read_json_object
from visrt.runtime.settings import load_settings
from visrt.training.inspro_settings import InsProTrainSettings, refuse_moved
from visrt.training.settings import TrainSettings
from visrt.training.vit.eomt_settings import EomtTrainSettings
from visrt.training.vit.videomt_settings import VideoMtTrainSettings

__all__ = ["RunSettings", "family_of", "run_settings_from_file"]

OfOneFamily = InsProTrainSettings | EomtTrainSettings | VideoMtTrainSettings
RunSettings = TrainSettings | InsProTrainSettings | EomtTrainSettings | VideoMtTrainSettings

FAMILIES: dict[str, type[OfOneFamily]] = {
    "inspro": InsProTrainSettings,
    "eomt": EomtTrainSettings,
    "videomt": VideoMtTrainSettings,
}


def run_settings_from_file(path: Path) -> RunSettings:
    """The settings of a run. Raises SettingsError."""
    values = read_json_object(path, "one object of settings", SettingsError)
    family = values.get("family")
    if family is None:
        return load_settings(TrainSettings, values, str(path))
    if family not in [*FAMILIES]:
        known = ", ".join(FAMILIES)
        raise SettingsError(
            f"{path}: setting 'family' is {family!r}; known are: {known}; leave it out for the Mask2Former families"
        )
    refuse_moved(values, str(path))
    return load_settings(FAMILIES[family], values, str(path))


def family_of(settings: RunSettings) -> str | None:
    """The family to export the network of a run as; None is the default."""
    if isinstance(settings, InsProTrainSettings):
        return "inspro_lite" if settings.phase == "lite" else "inspro"
    if not isinstance(settings, TrainSettings):
        return settings.family
    if settings.genvis is not None:
        return "genvis"
    return None if settings.loss.contrast == "off" else "ctvis"
