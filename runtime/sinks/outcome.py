"""The account of one source: its frames, its time, how it ended; and summary.json, which holds it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from visrt.runtime.errors import INTERRUPTED, PARTIAL, VisrtError
from visrt.runtime.results import SessionEvents
from visrt.runtime.sinks.output import write_atomically
from visrt.runtime.sources.source import Source, SourceReport

__all__ = ["End", "RunAccount", "SourceOutcome", "outcome_of", "summary_of", "write_summary"]

End = Literal["complete", "partial", "failed", "interrupted"]


@dataclass(frozen=True)
class SourceOutcome:
    """The account of one source. captured = processed + dropped + corrupt + skipped; ms are means a processed frame.
    inputs: sizes (height, width) of the network input in which frames were seen, in order of their first use. remarks:
    what of the source was read in part, or changed to be shown.

    Decoding, resizing (preprocess, masks) and writing run at the same time as the network, so the stages may add up to
    more than 1000 / fps.
    """

    source: str
    end: End
    reason: str
    exit_code: int
    processed: int = 0
    dropped: int = 0
    corrupt: int = 0
    skipped: int = 0
    damaged: int = 0
    wall_s: float = 0.0
    events: SessionEvents = field(default_factory=SessionEvents)
    ms: Mapping[str, float] = field(default_factory=dict)
    inputs: tuple[tuple[int, int], ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def captured(self) -> int:
        return self.processed + self.dropped + self.corrupt + self.skipped

    @property
    def fps(self) -> float:
        """End-to-end frames per second, from the request of the first frame to the last result on disk."""
        return self.processed / self.wall_s if self.wall_s else 0.0


@dataclass(frozen=True)
class RunAccount:
    """The counts and times of a run over one source. full: the limit of frames was reached; seconds: by stage, over all
    frames; inputs: as of the outcome."""

    processed: int
    dropped: int
    full: bool
    events: SessionEvents
    seconds: Mapping[str, float]
    wall_s: float
    inputs: tuple[tuple[int, int], ...] = ()


def outcome_of(source: Source, run: RunAccount, errors: Sequence[VisrtError], interrupted: bool) -> SourceOutcome:
    """The outcome of a run that is over; the first of its `errors` is the reason."""
    report = source.report
    end, reason, code = _end(report, run, errors, interrupted)
    return SourceOutcome(
        source=source.info.name,
        end=end,
        reason=reason,
        exit_code=code,
        processed=run.processed,
        dropped=run.dropped,
        corrupt=report.corrupt,
        skipped=report.skipped,
        damaged=report.damaged,
        wall_s=run.wall_s,
        events=run.events,
        ms={stage: 1e3 * seconds / max(run.processed, 1) for stage, seconds in run.seconds.items()},
        inputs=run.inputs,
        remarks=report.remarks,
    )


def _end(
    report: SourceReport, run: RunAccount, errors: Sequence[VisrtError], interrupted: bool
) -> tuple[End, str, int]:
    if errors:
        return "failed", str(errors[0]), errors[0].exit_code
    if interrupted:
        return "interrupted", f"interrupted after {run.processed} frames", INTERRUPTED
    if run.full:
        return "complete", f"stopped at the limit of {run.processed} frames", 0
    bad = run.events.bad_frames
    reasons = [report.reason, f"the network gave NaN or infinity in {bad} frames" if bad else ""]
    if report.end == "complete" and not bad:
        return "complete", "", 0
    return "partial", "; ".join(reason for reason in reasons if reason), PARTIAL


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
        "remarks": list(outcome.remarks),
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
