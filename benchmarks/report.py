"""An evaluation as plain json values, with the machine and the settings it was measured with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from visrt.benchmarks.evaluate import Evaluation
from visrt.benchmarks.identity import IdentityCounts
from visrt.benchmarks.machine import machine

__all__ = ["evaluation_report"]


def evaluation_report(evaluation: Evaluation, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Figures over all and by video, the counts behind them, AP and AR; null where there was nothing to measure.

    fps includes reading and decoding the pictures; 0 where no bundle ran as a stream.
    """
    report = {
        "settings": dict(settings),
        "machine": machine(),
        "figures": {**rates(evaluation.counts), "fps": evaluation.fps},
        "precision": asdict(evaluation.precision),
        "counts": asdict(evaluation.counts),
        "videos": [{**asdict(video), "figures": rates(video.counts)} for video in evaluation.videos],
    }
    return {key: without_nan(value) for key, value in report.items()}


def rates(counts: IdentityCounts) -> dict[str, float]:
    """What the counts say, as shares 0..1 and a number a frame."""
    return {
        "recall": counts.recall,
        "duplicates_a_frame": counts.duplicates_a_frame,
        "id_switch_rate": counts.switch_rate,
        "lost_id_rate": counts.lost_id_rate,
    }


def without_nan(value: Any) -> Any:
    """`value` with null for NaN, which json does not know."""
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
