"""summary.json: what one source gave, how fast, on what machine, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from visrt.runtime.sinks.outcome import SourceOutcome
from visrt.runtime.sinks.output import write_atomically

__all__ = ["summary_of", "write_summary"]


def summary_of(
    outcome: SourceOutcome,
    objects: int,
    classes: Sequence[str],
    made_by: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """The summary as plain json values; made_by: bundle, engine and options; machine: what it ran on."""
    return {
        "source": outcome.source,
        "end": outcome.end,
        "reason": outcome.reason,
        "exit_code": outcome.exit_code,
        "frames": {
            "captured": outcome.captured,
            "processed": outcome.processed,
            "dropped": outcome.dropped,
            "corrupt": outcome.corrupt,
            "skipped": outcome.skipped,
            "damaged": outcome.damaged,
        },
        "objects": objects,
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(classes)],
        "fps": round(outcome.fps, 2),
        "wall_s": round(outcome.wall_s, 3),
        "ms_a_frame": {stage: round(ms, 3) for stage, ms in outcome.ms.items()},
        "events": asdict(outcome.events),
        "made_by": dict(made_by),
        "machine": dict(machine),
    }


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    write_atomically(path, [json.dumps(summary, indent=1, ensure_ascii=False).encode(), b"\n"])
