"""The everyday options of `visrt track`: what contradicts is refused before anything is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.errors import UsageError
from visrt.runtime.results import Shown, labels_of
from visrt.runtime.sinks.line_count import Line, line
from visrt.runtime.sinks.overlay import OverlayStyle
from visrt.runtime.sources.source import VideoSettings, moment, raw_format

__all__ = ["Wishes", "drawing", "refuse_contradictions", "shown_by", "value_range", "video_settings", "wishes"]


@dataclass(frozen=True)
class Wishes:
    """What is shown and written beside the usual files. classes: names with commas between, None for all."""

    classes: str | None = None
    score: float = 0.0
    masks: bool = False
    crops: bool = False
    mot: bool = False
    lines: tuple[Line, ...] = ()


def refuse_contradictions(sources: Sequence[str], has_list: bool, given: Mapping[str, Any]) -> None:
    """Raises UsageError that names every pair of options that contradict each other; `given` by option."""
    drawn = ("--boxes", "--no-masks", "--labels", "--trails", "--opacity", "--font", "--overlay-coding")
    on = {name for name, value in given.items() if value is not None and value is not False}
    named = {name: f"--no-{name[2:]}" if value is False else name for name, value in given.items()}
    faults = [
        f"{named[name]} is about the overlay, which --no-overlay leaves out"
        for name in drawn
        if given.get("--overlay") is False and given.get(name) is not None
    ]
    if {"--no-masks", "--opacity"} <= on:
        faults.append("--opacity is that of the masks, which --no-masks leaves out")
    if "--raw-fps" in on and "--raw" not in on:
        faults.append("--raw-fps is of raw frames; --raw WIDTHxHEIGHT says how they look")
    if "--raw" in on and "-" not in sources:
        faults.append("--raw is about frames on the standard input; give - as the source")
    if sources.count("-") > 1:
        faults.append("the standard input can be read once; give - once")
    if "--overwrite" in on and "--out" not in on and not has_list:
        faults.append("--overwrite needs --out: a folder that is found by itself is always a new one")
    if "--overwrite" in on and has_list:
        faults.append("--list goes on where it was and replaces what is not finished; leave --overwrite out")
    if not sources and not has_list:
        faults.append("no SOURCE: give a video, a folder of images, a camera or -, or a --list of them")
    if faults:
        raise UsageError("; ".join(faults))


def drawing(given: Mapping[str, Any]) -> OverlayStyle:
    """The style of the overlay; what is None in `given` is as usual."""
    chosen = {
        "boxes": given["--boxes"],
        "labels": given["--labels"],
        "trails": given["--trails"],
        "opacity": given["--opacity"],
        "font": None if given["--font"] is None else str(given["--font"]),
        "masks": False if given["--no-masks"] else None,
    }
    return OverlayStyle(**{name: value for name, value in chosen.items() if value is not None})


def value_range(text: str | None) -> tuple[float, float] | None:
    """Black and white of "0,4095"."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--value-range {text!r} is not understood; expected black and white, as 0,4095") from None
    return low, high


def wishes(classes: str | None, score: float, masks: bool, crops: bool, mot: bool, lines: Sequence[str]) -> Wishes:
    return Wishes(classes, score, masks, crops, mot, tuple(line(text) for text in lines))


def video_settings(
    start: str | None, end: str | None, raw: str | None, raw_fps: float | None, **others: Any
) -> VideoSettings:
    return VideoSettings(
        start=None if start is None else moment(start),
        end=None if end is None else moment(end),
        raw=None if raw is None else raw_format(raw, raw_fps or 25.0),
        **others,
    )


def shown_by(wishes: Wishes, manifest: Manifest) -> Shown:
    """What is shown of a bundle's results. Raises UsageError for classes it lacks, and for masks where it has none."""
    if wishes.masks and "masks" not in manifest.graphs:
        raise UsageError(f"--masks png: {manifest.name} gives boxes alone; leave it out, or --crops writes the boxes")
    return Shown(tuple(manifest.classes), labels_of(manifest.classes, wishes.classes), wishes.score)
