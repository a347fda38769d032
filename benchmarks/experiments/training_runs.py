"""What comparisons of trainings share: runs whose processor time is kept, and figures over seeds."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from visrt.training.loop import train
from visrt.training.run_settings import RunSettings

__all__ = ["FIGURES", "spread", "trained"]

FIGURES = "figures.json"
"""What was measured of a run, in its folder; a run that has it is over."""


def trained(settings: RunSettings, folder: Path) -> Path:
    """The weights of the run in `folder`; the processor time it took is kept in cpu_s.json, over interruptions too."""
    kept = folder / "cpu_s.json"
    if (folder / FIGURES).exists():
        return folder / "model.safetensors"
    before = json.loads(kept.read_text()) if kept.exists() else 0.0
    started = time.process_time()
    try:
        return train(settings, folder).weights
    finally:
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(before + time.process_time() - started))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The value of each seed, mean and spread; a share of nothing is None and counts in no mean."""
    known = [value for value in values if not isnan(value)]
    return {
        "seeds": [None if isnan(value) else value for value in values],
        "mean": mean(known) if known else None,
        "stdev": stdev(known) if len(known) > 1 else None,
    }
