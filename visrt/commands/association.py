"""The choice of a tracking method and its settings, shared by `track` and `eval`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from visrt.runtime.errors import SettingsError
from visrt.runtime.json_file import read_json_object
from visrt.runtime.methods.presets import PRESETS

__all__ = ["PRESET_HELP", "Association", "association_in"]

PRESET_HELP = f"Method of association in place of the bundle's and its settings: {', '.join(PRESETS)}."


@dataclass(frozen=True)
class Association:
    """preset: a method by name, None for the bundle's. changes: settings in place of the method's."""

    preset: str | None = None
    changes: dict[str, Any] | None = None

    def in_force(self, family: Any) -> dict[str, Any]:
        """The preset, and every setting of the `family` it led to."""
        return {"preset": self.preset, "association_settings": asdict(family.settings)}


def association_in(path: Path | None, preset: str | None) -> Association:
    """The preset, with the settings in the json file at `path` where one is given."""
    return Association(
        preset, None if path is None else read_json_object(path, "one object of association settings", SettingsError)
    )
