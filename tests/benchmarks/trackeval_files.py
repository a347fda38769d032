"""The files trackeval reads, and its own figures of them, for tests that compare ours."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from visrt.runtime.masks import Rle, run_lengths
from visrt.training.data.annotations import Track

CLASSES = ("dog", "car")
GROUND_TRUTH = "gt/youtube_vis_train/gt.json"
RESULTS = "found/youtube_vis_train/ours/data/r.json"
QUIET = {"PRINT_CONFIG": False}
Tracks = Mapping[int, Sequence[Track]]


def by_trackeval(
    folder: Path, truth: Tracks, found: Tracks, areas: Mapping[str, list[float]] | None = None, most: int = 100
) -> dict[str, Any]:
    """All its figures by class or combination of classes, of the tracks of each video.

    areas: ranges of mean area by name. most: tracks of a video that count.
    """
    _write(folder, truth, found)
    return figures_of_files(folder, areas, most)


def figures_of_files(folder: Path, areas: Mapping[str, list[float]] | None = None, most: int = 100) -> dict[str, Any]:
    """The same of the files at GROUND_TRUTH and RESULTS in `folder`."""
    import trackeval

    places = {"GT_FOLDER": f"{folder}/gt/", "TRACKERS_FOLDER": f"{folder}/found/", "SPLIT_TO_EVAL": "train"}
    quiet = {"PRINT_RESULTS": False, "TIME_PROGRESS": False, "OUTPUT_SUMMARY": False, **QUIET}
    quiet |= {"OUTPUT_DETAILED": False, "PLOT_CURVES": False, "OUTPUT_EMPTY_CLASSES": False}
    sizes = {"AREA_RANGES": list((areas or {}).values()), "AREA_RANGE_LABELS": list(areas or {})}
    metrics = trackeval.metrics
    with contextlib.redirect_stdout(io.StringIO()):
        data = trackeval.datasets.YouTubeVIS({**places, **QUIET})
        ap = metrics.TrackMAP(
            {"USE_AREA_RANGES": bool(areas), **sizes, "USE_TIME_RANGES": False, "MAX_DETECTIONS": most, **QUIET}
        )
        asked = [ap, metrics.HOTA(), metrics.Identity(QUIET), metrics.CLEAR(QUIET)]
        output, _ = trackeval.Evaluator(quiet).evaluate([data], asked)
    combined: dict[str, Any] = output["YouTubeVIS"]["ours"]["COMBINED_SEQ"]
    return combined


def _write(folder: Path, truth: Tracks, found: Tracks) -> None:
    size = next(mask["size"] for tracks in truth.values() for track in tracks for mask in track.masks if mask)
    sides = {"height": size[0], "width": size[1]}
    frames = next(len(track.masks) for tracks in truth.values() for track in tracks)
    names = {v: [f"v{v}/{t:05d}.jpg" for t in range(frames)] for v in truth}
    values = {
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        "videos": [{"id": v, "file_names": names[v], **sides} for v in truth],
        "annotations": [
            {
                "id": 100 * v + i,
                "video_id": v,
                "category_id": t.label + 1,
                "iscrowd": 0,
                **annotated_masks(t.masks),
                **sides,
            }
            for v, tracks in truth.items()
            for i, t in enumerate(tracks)
        ],
    }
    results: list[dict[str, Any]] = [
        {"video_id": v, "category_id": t.label + 1, "score": t.score, "segmentations": list(t.masks)}
        for v, tracks in found.items()
        for t in tracks
    ]
    # trackeval numbers tracks from 0 and takes an object matched to number 0 as free still: be it the last to choose.
    results.sort(key=lambda result: result["score"])
    for path, content in ((GROUND_TRUTH, values), (RESULTS, results)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(content))


def annotated_masks(found: Sequence[Rle | None]) -> dict[str, Any]:
    """Uncompressed masks, the form of annotations that trackeval reads."""
    masks = [None if m is None else {"size": m["size"], "counts": run_lengths(m["counts"]).tolist()} for m in found]
    areas = [None if m is None else int(coco_mask.area({**m, "counts": m["counts"].encode()})) for m in found]
    return {"segmentations": masks, "areas": areas, "bboxes": [None if m is None else [0, 0, 1, 1] for m in found]}
