"""Claims about measuring boxes: AP in single frames as COCO has it, tracks whose masks are filled, bundles of boxes."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from annotated_sets import box_rle, set_values, write_set
from fakes import patches
from fakes_inspro import inspro_session
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from typer.testing import CliRunner, Result

from visrt.benchmarks.accuracy.ap import frame_ap50
from visrt.benchmarks.accuracy.evaluate import (
    Reported,
    as_boxes,
    evaluate_official,
    evaluate_reports,
    evaluate_session,
    filled,
    official_report,
    streamed_report,
)
from visrt.benchmarks.accuracy.run_folder import Form, open_run
from visrt.benchmarks.video_level.tracks import FrameBoxes
from visrt.cli import app
from visrt.runtime.masks import decode, rectangle
from visrt.training.data.annotations import Track
from visrt.training.data.segmentations import box_px
from visrt.training.data.set_formats import load_annotations

CLASSES = ("dog", "car", "cat")


def boxes_of(rows: list[tuple[int, float, list[float], bool]]) -> FrameBoxes:
    """Of (label, score, x y width height, crowd)."""
    return FrameBoxes(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.float32),
        np.array([row[2] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[3] for row in rows], bool),
    )


def random_frames(seed: int, frames: int = 8) -> list[tuple[FrameBoxes, FrameBoxes]]:
    """Annotated boxes, some of them crowds, and boxes near them, some doubled, some of the wrong class."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(frames):
        truth: list[Any] = []
        found: list[Any] = []
        for _ in range(int(rng.integers(0, 5))):
            box, label = [*rng.integers(0, 60, 2), *rng.integers(8, 40, 2)], int(rng.integers(2))
            truth.append((label, 1.0, box, bool(rng.random() < 0.2)))
            for _ in range(int(rng.integers(0, 3))):
                moved = [side + float(rng.normal(0, 3)) for side in box]
                found.append((label ^ int(rng.random() < 0.1), round(float(rng.random()), 4), moved, False))
        made.append((boxes_of(truth), boxes_of(found)))
    return made


def by_pycocotools(frames: list[tuple[FrameBoxes, FrameBoxes]]) -> float:
    """AP at IoU 0.5 with each frame as a picture."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (truth, found) in enumerate(frames, start=1):
        for label, box, crowd in zip(truth.labels, truth.boxes, truth.crowd, strict=True):
            one = {"image_id": image, "category_id": int(label) + 1, "bbox": box.tolist(), "iscrowd": int(crowd)}
            annotations.append({**one, "id": len(annotations) + 1, "area": float(box[2] * box[3])})
        for label, score, box in zip(found.labels, found.scores, found.boxes, strict=True):
            one = {"image_id": image, "category_id": int(label) + 1, "bbox": box.tolist(), "score": float(score)}
            results.append(one)
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i + 1, "height": 200, "width": 200} for i in range(len(frames))],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, 2]
    return float(precision[precision > -1].mean())


@pytest.mark.parametrize("seed", range(12))
def test_the_ap_of_frames_is_that_of_pycocotools(seed: int) -> None:
    frames = random_frames(seed)
    mean, by_class = frame_ap50(frames, CLASSES)
    assert mean == pytest.approx(by_pycocotools(frames), abs=1e-9)
    assert np.isnan(by_class["cat"]), "nothing of it is annotated"


def test_a_box_in_the_wrong_frame_is_a_miss_and_a_false_box() -> None:
    box = boxes_of([(0, 0.9, [4, 4, 20, 20], False)])
    none = boxes_of([])
    assert frame_ap50([(box, box), (none, none)], CLASSES)[0] == pytest.approx(1)
    assert frame_ap50([(box, none), (none, box)], CLASSES)[0] == 0
    assert np.isnan(frame_ap50([(none, box)], CLASSES)[0])


def test_a_filled_track_covers_the_box_of_each_mask() -> None:
    corner = decode(box_rle(10, 10, 20, 16)) & ~decode(box_rle(14, 14, 30, 30))
    from pycocotools import mask as coco_mask

    coded = coco_mask.encode(np.asfortranarray(corner.astype(np.uint8)))
    bent: Any = {"size": list(corner.shape), "counts": coded["counts"].decode()}
    track = filled(Track(1, (bent, None, box_rle(0, 0, 0, 0)), 0.4))
    assert track.masks[0] == box_rle(10, 10, 20, 16)
    assert track.masks[1] is None
    assert track.masks[2] is not None
    assert not decode(track.masks[2]).any()
    assert (track.label, track.score) == (1, 0.4)


def of_results(folder: Path, values: dict[str, Any], results: list[dict[str, Any]]) -> Result:
    data = write_set(folder / "data", values)
    (folder / "results.json").write_text(json.dumps(results))
    given = ("eval", "--results", folder / "results.json", "--data", data, "--json", folder / "o.json")
    return CliRunner().invoke(app, [str(one) for one in given])


BOXES = {2: [[2, 4, 20, 16], [4, 4, 20, 16], [6, 4, 20, 16]], 5: [[30, 24, 16, 20], [32, 24, 16, 20], None]}
"""Those of `set_values` by category, but for the last car."""


def results_of_boxes() -> list[dict[str, Any]]:
    return [{"video_id": 1, "category_id": number, "score": 0.9, "bboxes": boxes} for number, boxes in BOXES.items()]


def test_a_results_file_of_boxes_is_measured_by_boxes(tmp_path: Path) -> None:
    ended = of_results(tmp_path, set_values(), results_of_boxes())
    assert ended.exit_code == 0, ended.stderr
    assert "boxes of single frames" in ended.stdout
    assert "boxes are measured" in ended.stderr
    told = json.loads((tmp_path / "o.json").read_text())
    assert told["precision"]["by_class"]["dog"]["ap"] == pytest.approx(1)
    assert told["precision"]["by_class"]["car"]["ap75"] == 0, "two of its three boxes are there"
    by_frame = told["boxes_of_frames"]["by_class"]
    assert by_frame["dog"] == pytest.approx(1)
    assert by_frame["car"] == pytest.approx(67 / 101), "recall ends at two thirds"


@pytest.mark.parametrize(
    ("bboxes", "told"),
    [
        ([[2, 4, 20, 16]], r"[0].bboxes: expected one entry for each of 3 frames; found 1 entries"),
        ("none", r"[0].bboxes: expected one entry for each of 3 frames"),
        ([[2, 4, 20], None, None], r"[0].bboxes[0]: expected x, y, width and height of a box"),
        ([[2, 4, -20, 16], None, None], r"[0].bboxes[0]: a box of -20 x 16 pixels"),
    ],
)
def test_boxes_that_are_none_are_refused_with_their_place(tmp_path: Path, bboxes: Any, told: str) -> None:
    first, second = results_of_boxes()
    ended = of_results(tmp_path, set_values(), [{**first, "bboxes": bboxes}, second])
    assert ended.exit_code == 2, ended.stderr
    assert told in " ".join(ended.stderr.split())


def test_boxes_and_masks_in_one_results_file_are_refused(tmp_path: Path) -> None:
    values = set_values()
    masks = {**values["annotations"][0], "score": 0.5}
    ended = of_results(tmp_path, values, [masks, results_of_boxes()[1]])
    assert ended.exit_code == 2
    assert "[1] has bboxes alone, others segmentations; expected one kind in a file" in " ".join(ended.stderr.split())


def standing_set(folder: Path) -> Path:
    """A red person fills the box that the fake network has learned."""
    box, frames = (10, 13, 57, 38), 3
    names = [f"one/{t:05d}.png" for t in range(frames)]
    for name in names:
        path = folder / "JPEGImages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), patches((64, 96), (0, *box))[..., ::-1])
    masks = [box_rle(*box, (64, 96))] * frames
    values = {
        "categories": [{"id": 1, "name": "person"}],
        "videos": [{"id": 1, "height": 64, "width": 96, "file_names": names}],
        "annotations": [{"id": 1, "video_id": 1, "category_id": 1, "iscrowd": 0, "segmentations": masks}],
    }
    (folder / "instances.json").write_text(json.dumps(values))
    return folder


def test_a_bundle_of_boxes_is_measured_as_a_stream_and_by_its_official_rule(tmp_path: Path) -> None:
    annotated = as_boxes(load_annotations(standing_set(tmp_path)))
    session = inspro_session(outputs="boxes")
    causal, official = evaluate_session(session, annotated, 24.0), evaluate_official(session, annotated)
    for evaluation in (causal, official):
        assert evaluation.precision.by_class["person"].ap75 == pytest.approx(1)
        assert evaluation.frame_ap50 is not None
        assert evaluation.frame_ap50[0] == pytest.approx(1)
    assert (causal.counts.tp, causal.counts.fp) == (3, 0)
    boxes = official.reported[1].boxes
    assert boxes is not None
    assert [len(of_frame.labels) for of_frame in boxes] == [15] * 3, "all slots with all classes, up to 100"
    np.testing.assert_allclose(boxes[0].boxes[0], [9.6, 12.8, 57.6, 38.4], rtol=1e-4)


@pytest.mark.parametrize("report", [partial(streamed_report, fps=24.0), official_report], ids=["causal", "official"])
def test_a_bundle_of_boxes_is_kept_exactly_and_written_as_boxes(
    report: Callable[..., Reported], tmp_path: Path
) -> None:
    annotated = as_boxes(load_annotations(standing_set(tmp_path)))
    [video] = annotated.videos
    made = report(inspro_session(outputs="boxes"), video)
    with open_run(tmp_path / "out", {"rule": "one of both"}) as run:
        run.keep(video, made)
        kept = run.load(video)
        run.finish([video], Form({0: 1}, boxes=True))
    assert list(kept.tracks) == list(made.tracks)
    assert [list(objects) for objects in kept.frames] == [list(objects) for objects in made.frames]
    assert evaluate_reports(annotated, {1: kept}).frame_ap50 == evaluate_reports(annotated, {1: made}).frame_ap50
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    persons = [track for track in made.tracks if track.label == 0]
    assert [one["bboxes"] for one in results] == [[mask and list(box_px(mask)) for mask in t.masks] for t in persons]
    measured = of_results(tmp_path / "again", json.loads((tmp_path / "instances.json").read_text()), results)
    assert measured.exit_code == 0, measured.stderr


def test_masks_are_measured_as_masks_where_both_have_them(tmp_path: Path) -> None:
    evaluation = evaluate_session(inspro_session(), load_annotations(standing_set(tmp_path)), 24.0)
    assert evaluation.frame_ap50 is None


def test_on_a_set_of_boxes_masks_count_as_their_boxes(tmp_path: Path) -> None:
    annotated = as_boxes(load_annotations(standing_set(tmp_path)))
    evaluation = evaluate_session(inspro_session(), annotated, 24.0)
    assert evaluation.frame_ap50 is not None
    shown = [one for frame in evaluation.reported[1].frames for one in frame]
    assert len(shown) == 3
    assert all(one.rle == rectangle(one.box, (64, 96)) for one in shown)
