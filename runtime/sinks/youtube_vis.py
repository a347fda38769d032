"""results.json: whole tracks in the results format of YouTube-VIS, made from the journal in passes.

Of a bundle that gives boxes alone each track has `bboxes`, x, y, width and height, in place of `segmentations`.

The masks of all tracks never lie in memory together, so memory stays flat however long the video was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visrt.runtime.sinks.journal import read_journal
from visrt.runtime.sinks.output import write_atomically

__all__ = ["BUDGET_BYTES", "TrackLine", "survey", "write_youtube_vis"]

BUDGET_BYTES = 64 * 2**20
"""Masks held at once; the journal is read once more for each such portion."""

BOX_BYTES = 32
"""What a box counts for."""


@dataclass(frozen=True)
class TrackLine:
    """A track without its masks. Score and label are those of its last frame, which average over its whole life."""

    id: int
    label: int
    score: float
    bytes: int


def write_youtube_vis(journal: Path, out: Path, video_id: int = 1, budget_bytes: int = BUDGET_BYTES) -> int:
    """Writes [{video_id, category_id, score, segmentations: T RLEs or null}] to `out`; returns the number of tracks.

    category_id is the label plus one, as categories are numbered from 1; `segmentations`, or `bboxes`, has one entry a
    journal line.
    """
    frames, tracks = survey(journal)
    write_atomically(out, _json(journal, frames, tracks, video_id, budget_bytes))
    return len(tracks)


def survey(journal: Path) -> tuple[int, list[TrackLine]]:
    """Number of frames, and the tracks in order of id."""
    frames, tracks = 0, dict[int, TrackLine]()
    for frames, line in enumerate(read_journal(journal), start=1):  # noqa: B007
        for shown in line["objects"]:
            held = tracks[shown["id"]].bytes if shown["id"] in tracks else 0
            size = held + (len(shown["rle"]["counts"]) if "rle" in shown else BOX_BYTES)
            tracks[shown["id"]] = TrackLine(shown["id"], shown["label"], shown["score"], size)
    return frames, [tracks[identity] for identity in sorted(tracks)]


def _json(journal: Path, frames: int, tracks: list[TrackLine], video_id: int, budget: int) -> Iterator[bytes]:
    separator = b"[\n"
    for portion in _portions(tracks, budget):
        shapes = _shapes_of(journal, {track.id for track in portion})
        for track in portion:
            yield separator + _entry(track, shapes.pop(track.id), frames, video_id)
            separator = b",\n"
    yield b"\n]\n" if tracks else b"[]\n"


def _portions(tracks: Iterable[TrackLine], budget: int) -> Iterator[list[TrackLine]]:
    portion: list[TrackLine] = []
    for track in tracks:
        if portion and sum(held.bytes for held in portion) + track.bytes > budget:
            yield portion
            portion = []
        portion.append(track)
    if portion:
        yield portion


def _shapes_of(journal: Path, ids: set[int]) -> dict[int, dict[int, Any]]:
    """By id, the RLE, or the box where there are no masks, by position in the journal."""
    shapes: dict[int, dict[int, Any]] = {identity: {} for identity in ids}
    for position, line in enumerate(read_journal(journal)):
        for shown in line["objects"]:
            if shown["id"] in ids:
                shapes[shown["id"]][position] = shown.get("rle", shown["box"])
    return shapes


def _entry(track: TrackLine, shapes: dict[int, Any], frames: int, video_id: int) -> bytes:
    boxes = all(isinstance(shape, list) for shape in shapes.values())
    entry = {
        "video_id": video_id,
        "category_id": track.label + 1,
        "score": track.score,
        "bboxes" if boxes else "segmentations": [shapes.get(position) for position in range(frames)],
    }
    return json.dumps(entry, allow_nan=False, separators=(",", ":")).encode()
