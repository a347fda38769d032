"""A run's folder: settings, a state to resume from, metrics. A kill at any moment leaves a whole state."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from visrt.runtime.errors import OutputError, SettingsError
from visrt.runtime.json_file import read_json_object
from visrt.training.run_settings import RunSettings, run_settings_from_file

__all__ = ["RunFolder"]

PROGRESS = "progress.json"
"""In a saved state: the step it is of."""


class RunFolder:
    """settings.json, metrics.jsonl, plot.png, state/, model.safetensors; best.safetensors under early stop.

    A state is written to state.part, and takes the place of state/ when it is complete; in between the one before is
    state.old.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings, self.metrics, self.plot = path / "settings.json", path / "metrics.jsonl", path / "plot.png"
        self.weights, self.best = path / "model.safetensors", path / "best.safetensors"
        self.state, self.part, self.old = path / "state", path / "state.part", path / "state.old"

    def check(self, settings: RunSettings) -> None:
        """Refuse a folder that holds another run, or weights that this run would replace. Writes nothing.

        A run that left no state, because it failed before its first, is no hindrance.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path} is a file; give a folder for the run")
        above = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not os.access(above, os.W_OK):
            raise OutputError(f"{above} is not writable; give another folder for the run")
        if self.saved_in() is None:
            if self.weights.exists():
                raise SettingsError(
                    f"{self.weights} is there, but no state to resume from; choose another --out, or move it away"
                )
        elif self.settings.exists() and _same_run(run_settings_from_file(self.settings)) != _same_run(settings):
            raise SettingsError(
                f"{self.path} holds a run of other settings; choose another --out or repeat its settings"
            )

    def saved_in(self) -> Path | None:
        """The folder of the last whole state."""
        return next((folder for folder in (self.state, self.old) if (folder / PROGRESS).exists()), None)

    def saved_step(self) -> int:
        """The step of the last whole state; 0 if there is none."""
        saved = self.saved_in()
        return int(read_json_object(saved / PROGRESS, "the step of the saved state")["step"]) if saved else 0

    def begin(self, settings: RunSettings) -> None:
        """Write the settings, and forget what was measured after the last saved state: those steps are run again."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.settings.write_text(json.dumps(asdict(settings), indent=1) + "\n")
        step = self.saved_step()
        if step == 0:
            self.best.unlink(missing_ok=True)
        kept = [row for row in self.rows() if row["step"] <= step]
        self.metrics.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def rows(self) -> list[dict[str, Any]]:
        """The lines of the metrics file, without one that a kill cut off."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines if line.endswith("}")]

    def log(self, step: int, values: dict[str, float]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with self.metrics.open("a") as file:
            file.write(json.dumps({"step": step, **{k: round(v, 6) for k, v in values.items()}}) + "\n")

    def take_part(self, step: int) -> None:
        """state.part, which is complete, becomes the state."""
        (self.part / PROGRESS).write_text(json.dumps({"step": step}))
        if (self.state / PROGRESS).exists():
            shutil.rmtree(self.old, ignore_errors=True)
            self.state.rename(self.old)
        else:
            shutil.rmtree(self.state, ignore_errors=True)
        self.part.rename(self.state)
        shutil.rmtree(self.old, ignore_errors=True)


def _same_run(settings: RunSettings) -> RunSettings:
    """`settings` without what may differ on resuming: length, measurements, and how it fits memory."""
    optim = replace(settings.optim, steps=1, cooldown=0.0, clips_at_once=None, checkpoint_activations=False, stop=None)
    data = replace(settings.data, workers=0, validation_clips=0, validation_frames=1)
    return replace(settings, optim=optim, data=data, save_every=1, validate_every=1)
