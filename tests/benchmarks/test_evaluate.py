"""Claims about evaluating a bundle or a results file on annotated videos, and about the tools beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from annotated_sets import box_rle, set_values, write_set
from bundles import write_bundle
from fakes import colour_session, patches
from official_layouts import make_split
from typer.testing import CliRunner, Result

from visrt.benchmarks.accuracy.evaluate import evaluate_official, evaluate_session, tracks_in
from visrt.benchmarks.accuracy.tune import combinations, tune
from visrt.benchmarks.speed.memory import rss_over_frames
from visrt.cli import app
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.errors import DataError
from visrt.runtime.results import TrackedObject
from visrt.training.data.set_formats import load_annotations

HEIGHT, WIDTH, FRAMES = 64, 96, 5
CLASSES = ("person", "vehicle", "animal")


def coloured_set(folder: Path) -> Path:
    """A red person moves right, a green vehicle stands still and is gone from the last frame."""
    boxes = [((4 + 8 * t, 8, 24, 24), (60, 36, 24, 20) if t < FRAMES - 1 else None) for t in range(FRAMES)]
    names = [f"one/{t:05d}.png" for t in range(FRAMES)]
    tracks: list[list[Any]] = [[], []]
    for name, (red, green) in zip(names, boxes, strict=True):
        shown = [(0, *red), *([(1, *green)] if green else [])]
        path = folder / "JPEGImages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), patches((HEIGHT, WIDTH), *shown)[..., ::-1])
        tracks[0].append(_rle(red))
        tracks[1].append(_rle(green) if green else None)
    values = {
        "categories": [{"id": 1, "name": "pedestrian"}, {"id": 2, "name": "car"}],
        "videos": [{"id": 1, "height": HEIGHT, "width": WIDTH, "file_names": names}],
        "annotations": [
            {"id": i + 1, "video_id": 1, "category_id": i + 1, "iscrowd": 0, "segmentations": masks}
            for i, masks in enumerate(tracks)
        ],
    }
    (folder / "instances.json").write_text(json.dumps(values))
    (folder / "map.json").write_text('{"pedestrian": "person", "car": "vehicle"}')
    return folder


def _rle(box: tuple[int, int, int, int]) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    x, y, w, h = box
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + h, x : x + w] = 1
    coded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": [HEIGHT, WIDTH], "counts": coded["counts"].decode()}


def visrt(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_network_that_sees_everything_scores_everything(tmp_path: Path) -> None:
    annotated = load_annotations(coloured_set(tmp_path), CLASSES, {"pedestrian": "person", "car": "vehicle"})
    evaluation = evaluate_session(colour_session(), annotated, fps=10)
    assert evaluation.counts.recall == 1
    assert (evaluation.counts.id_switches, evaluation.counts.duplicates) == (0, 0)
    assert evaluation.precision.ap50 == pytest.approx(1)
    assert evaluation.fps > 0


def test_frames_without_a_result_still_want_their_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotated = load_annotations(coloured_set(tmp_path), CLASSES, {"pedestrian": "person", "car": "vehicle"})
    session = colour_session()
    step = session.step
    monkeypatch.setattr(session, "step", lambda *frame: [result for result in step(*frame) if result.index != 2])
    counts = evaluate_session(session, annotated, fps=10).counts
    assert (counts.frames, counts.gt, counts.tp) == (FRAMES, 2 * FRAMES - 1, 2 * FRAMES - 3)


def test_pictures_of_another_size_than_their_annotations_are_refused(tmp_path: Path) -> None:
    annotated = load_annotations(coloured_set(tmp_path), CLASSES, {"pedestrian": "person", "car": "vehicle"})
    cv2.imwrite(str(annotated.videos[0].pictures[1]), np.zeros((HEIGHT * 2, WIDTH * 2, 3), np.uint8))
    with pytest.raises(DataError, match=r"00001\.png: 128 x 192 pixels .* its annotations say 64 x 96"):
        evaluate_session(colour_session(), annotated, fps=10)


def test_the_official_rule_finds_the_same_where_all_is_clear(tmp_path: Path) -> None:
    annotated = load_annotations(coloured_set(tmp_path), CLASSES, {"pedestrian": "person", "car": "vehicle"})
    evaluation = evaluate_official(colour_session(), annotated)
    assert evaluation.precision.ap50 == pytest.approx(1)


def test_a_track_takes_the_label_of_most_score_and_the_mean_score() -> None:
    def seen(label: int, score: float) -> list[TrackedObject]:
        return [TrackedObject(3, label, score, (0, 0, 5, 5), box_rle(0, 0, 5, 5))]

    [mirrored] = tracks_in([seen(0, 0.9), [], seen(1, 0.5), seen(1, 0.6)])
    [track] = tracks_in([seen(1, 0.9), [], seen(0, 0.5), seen(0, 0.6)])
    assert (track.label, mirrored.label) == (0, 1)
    assert track.score == pytest.approx(2.0 / 3)
    assert [mask is not None for mask in track.masks] == [True, False, True, True]


def test_eval_of_a_bundle_prints_and_writes_its_figures(tmp_path: Path) -> None:
    data = coloured_set(tmp_path / "data")
    bundle = write_bundle(tmp_path / "bundle")
    ended = visrt(
        "eval", "--bundle", bundle, "--data", data, "--classes", data / "map.json", "--json", tmp_path / "o.json"
    )
    assert ended.exit_code == 0, ended.stderr
    figures = json.loads((tmp_path / "o.json").read_text())
    assert figures["counts"]["wanted"] == 2 * FRAMES - 1
    assert figures["figures"]["recall"] == pytest.approx(FRAMES / (2 * FRAMES - 1)), "it sees the red one only"
    assert figures["precision"]["by_size"]["large"]["ap"] is None, "json knows no NaN"
    assert {"cpu", "cores", "numpy", "onnxruntime", "visrt"} <= figures["machine"].keys()
    assert (figures["settings"]["bundle"], figures["settings"]["results"]) == (str(bundle), None)
    assert figures["settings"]["frame_sha256"] == open_bundle(bundle).manifest.graphs["frame"].file.sha256
    assert figures["videos"][0]["figures"]["recall"] == figures["figures"]["recall"]
    assert "AP50" in ended.stdout
    assert "nan" not in ended.stdout
    assert "not meaningful" not in ended.stdout


def test_eval_of_a_results_file_measures_it(tmp_path: Path) -> None:
    values = set_values(videos=2)
    ended = of_results(tmp_path, values, results_of(values))
    assert ended.exit_code == 0, ended.stderr
    assert json.loads((tmp_path / "o.json").read_text())["precision"]["ap"] == pytest.approx(1)


def test_that_annotations_are_partial_is_the_user_s_word_and_stands_by_the_ap(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "data", set_values())
    (tmp_path / "results.json").write_text("[]")
    ended = visrt("eval", "--results", tmp_path / "results.json", "--data", folder, "--coverage", "partial")
    assert ended.exit_code == 0, ended.stderr
    assert "not meaningful: partial annotation" in ended.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--results", "r.json", "--rule", "official"), "--results are measured as they are"),
        (("--results", "r.json", "--threads", "1"), "--results are measured as they are"),
        (("--results", "r.json", "--association", "a.json"), "--results are measured as they are"),
        (("--results", "r.json", "--preset", "ctvis"), "--results are measured as they are"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(options: tuple[str, ...], told: str, tmp_path: Path) -> None:
    ended = visrt("eval", "--data", tmp_path, *options)
    assert ended.exit_code == 2
    assert told in ended.stderr


def test_the_official_rule_takes_association_settings_only_where_they_play_a_part(tmp_path: Path) -> None:
    data = coloured_set(tmp_path / "data")
    (tmp_path / "a.json").write_text('{"nms_iou": 0.4}')
    common = ("eval", "--bundle", write_bundle(tmp_path / "bundle"), "--data", data, "--classes", data / "map.json")
    official = (*common, "--rule", "official", "--association", tmp_path / "a.json")
    refused = visrt(*official)
    assert refused.exit_code == 2
    assert "sets nms_iou, but" in refused.stderr
    assert "takes similarity only" in refused.stderr
    (tmp_path / "similarity.json").write_text('{"similarity": "matching_cost"}')
    by_cost = visrt(*common, "--rule", "official", "--association", tmp_path / "similarity.json")
    assert by_cost.exit_code == 0, by_cost.stderr
    ended = visrt(*official, "--preset", "ctvis", "--json", tmp_path / "o.json")
    assert ended.exit_code == 0, ended.stderr
    settings = json.loads((tmp_path / "o.json").read_text())["settings"]
    assert (settings["preset"], settings["association_settings"]["nms_iou"]) == ("ctvis", 0.4)


def test_a_preset_takes_the_place_of_the_bundles_association(tmp_path: Path) -> None:
    data = coloured_set(tmp_path / "data")
    common = ("eval", "--bundle", write_bundle(tmp_path / "bundle"), "--data", data, "--classes", data / "map.json")
    ended = visrt(*common, "--preset", "overlap", "--json", tmp_path / "o.json")
    assert ended.exit_code == 0, ended.stderr
    report = json.loads((tmp_path / "o.json").read_text())
    assert report["settings"]["association_settings"]["similarity"] == "mask_iou"
    assert report["counts"]["found"] > 0
    unknown = visrt(*common, "--preset", "heuristic")
    assert unknown.exit_code == 2
    assert "preset 'heuristic' is unknown; choose one of minvis, ctvis" in unknown.stderr


def test_association_settings_of_a_file_take_the_place_of_the_bundle_s(tmp_path: Path) -> None:
    data = coloured_set(tmp_path / "data")
    (tmp_path / "deaf.json").write_text('{"birth_score": 1.0}')
    common = ("eval", "--bundle", write_bundle(tmp_path / "bundle"), "--data", data, "--classes", data / "map.json")
    ended = visrt(*common, "--association", tmp_path / "deaf.json", "--json", tmp_path / "o.json")
    assert ended.exit_code == 0, ended.stderr
    assert json.loads((tmp_path / "o.json").read_text())["counts"]["found"] == 0
    (tmp_path / "deaf.json").write_text('{"birth_scroe": 1.0}')
    ended = visrt(*common, "--association", tmp_path / "deaf.json")
    assert ended.exit_code == 2
    assert "birth_scroe" in ended.stderr


def test_both_rules_stand_side_by_side_in_tables_json_and_report(tmp_path: Path) -> None:
    data = coloured_set(tmp_path / "data")
    report = tmp_path / "report"
    common = ("eval", "--bundle", write_bundle(tmp_path / "bundle"), "--data", data, "--classes", data / "map.json")
    ended = visrt(*common, "--rule", "both", "--report", report)
    assert ended.exit_code == 0, ended.stderr
    assert all(heading in ended.stdout for heading in ("causal: video", "official: video", "HOTA", "IDF1", "rule"))
    told = json.loads((report / "figures.json").read_text())
    assert told["settings"]["rule"] == "both"
    red, green = (told["tracking"]["by_class"][name] for name in ("person", "vehicle"))
    assert red["id_switches"] == 0
    assert green["hota"] == 0, "it sees the red one only"
    assert red["hota"] > 0.5
    assert told["official"]["precision"]["by_class"]["person"]["ap50"] == pytest.approx(1)
    sheets = [report / "precision_recall.png", report / "hota.png", report / "worst" / "01_one.png"]
    assert all(np.std(np.asarray(cv2.imread(str(sheet)))) > 5 for sheet in sheets)
    again = visrt(*common, "--report", report)
    assert again.exit_code == 4
    assert "give --report an empty or a new folder" in again.stderr


def of_results(folder: Path, values: dict[str, Any], results: list[dict[str, Any]]) -> Result:
    """`visrt eval` of `results` on the set `values`; o.json holds the figures."""
    data = write_set(folder / "data", values)
    (folder / "results.json").write_text(json.dumps(results))
    return visrt("eval", "--results", folder / "results.json", "--data", data, "--json", folder / "o.json")


def results_of(values: dict[str, Any]) -> list[dict[str, Any]]:
    """What is annotated, as if it had been found."""
    keys = ("video_id", "category_id", "segmentations")
    return [{**{key: a[key] for key in keys}, "score": 0.9} for a in values["annotations"]]


def test_videos_without_results_and_tracks_given_twice_are_told(tmp_path: Path) -> None:
    values = set_values(videos=3)
    found = results_of(values)[:2]
    ended = of_results(tmp_path, values, [*found, found[0]])
    assert ended.exit_code == 0, ended.stderr
    assert "nothing is reported of 2 of 3 videos: video2, video3" in ended.stderr
    assert "1 tracks are reported twice" in ended.stderr
    assert len(json.loads((tmp_path / "o.json").read_text())["remarks"]) == 2


def test_without_annotated_objects_nothing_is_measured_and_that_is_told(tmp_path: Path) -> None:
    values = set_values()
    found = results_of(values)
    ended = of_results(tmp_path, {**values, "annotations": []}, found)
    assert ended.exit_code == 0, ended.stderr
    assert "no object is annotated" in ended.stderr
    told = json.loads((tmp_path / "o.json").read_text())
    assert (told["precision"]["ap"], told["tracking"]["hota"], told["counts"]["spurious"]) == (None, None, 6)


def test_an_empty_results_file_scores_zero(tmp_path: Path) -> None:
    assert of_results(tmp_path, set_values(), []).exit_code == 0
    told = json.loads((tmp_path / "o.json").read_text())
    assert (told["precision"]["ap"], told["tracking"]["hota"], told["figures"]["recall"]) == (0, 0, 0)


def test_videos_of_one_frame_are_measured(tmp_path: Path) -> None:
    values = set_values(videos=2, frames=1)
    assert of_results(tmp_path, values, results_of(values)).exit_code == 0
    told = json.loads((tmp_path / "o.json").read_text())
    assert (told["precision"]["ap"], told["tracking"]["hota"], told["tracking"]["idf1"]) == pytest.approx((1, 1, 1))


def test_three_hundred_objects_in_a_frame_are_measured(tmp_path: Path) -> None:
    values = set_values(frames=2)
    boxes = [[box_rle(3 * (i % 20), 3 * (i // 20), 3, 3)] * 2 for i in range(300)]
    values["annotations"] = [
        {"id": i, "video_id": 1, "category_id": 2, "segmentations": boxes[i]} for i in range(len(boxes))
    ]
    assert of_results(tmp_path, values, results_of(values)).exit_code == 0
    told = json.loads((tmp_path / "o.json").read_text())
    assert told["counts"]["found"] == 600
    assert told["tracking"]["hota"] == pytest.approx(1)
    assert told["precision"]["ar100"] == pytest.approx(1 / 3), "a hundred of a video and class count"


def test_eval_takes_a_split_of_a_public_set(tmp_path: Path) -> None:
    folder = make_split(tmp_path, "ytvis19", "train", frames=2).folder
    make_split(tmp_path, "ytvis19", "valid", annotated=False, frames=2)
    (tmp_path / "results.json").write_text("[]")
    measured = ("eval", "--results", tmp_path / "results.json", "--data", folder)
    assert "holds 2 sets; give one of" in visrt(*measured).stderr
    assert visrt(*measured, "--split", "train").exit_code == 0
    kept_back = visrt(*measured, "--split", "valid")
    assert kept_back.exit_code == 2
    assert "valid.json: lists 2 videos without annotations" in kept_back.stderr


def test_results_of_another_set_are_refused(tmp_path: Path) -> None:
    ended = of_results(tmp_path, set_values(), results_of(set_values(videos=3)))
    assert ended.exit_code == 2
    assert "results.json: [2].video_id: 2 is none of the annotations'; these are results of another set" in ended.stderr
    assert not (tmp_path / "o.json").exists()


def test_an_absent_backend_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    data = coloured_set(tmp_path / "data")
    common = ("eval", "--bundle", write_bundle(tmp_path / "bundle"), "--data", data, "--classes", data / "map.json")
    ended = visrt(*common, "--engine", "cuda")
    assert ended.exit_code == 5
    assert "CUDAExecutionProvider" in ended.stderr


def test_without_trackeval_the_extra_that_brings_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "visrt.benchmarks.accuracy.hota", raising=False)
    monkeypatch.delitem(sys.modules, "visrt.benchmarks.accuracy.scores", raising=False)
    monkeypatch.delitem(sys.modules, "visrt.benchmarks.accuracy.report", raising=False)
    monkeypatch.delitem(sys.modules, "visrt.benchmarks.accuracy.eval_plots", raising=False)
    monkeypatch.setitem(sys.modules, "trackeval.metrics", None)
    ended = visrt("eval", "--data", tmp_path, "--results", tmp_path / "r.json")
    assert ended.exit_code == 1
    assert "eval needs trackeval, which is not installed; run pip install '.[eval]'" in ended.stderr


def test_eval_wants_a_bundle_or_a_results_file(tmp_path: Path) -> None:
    ended = visrt("eval", "--data", tmp_path)
    assert ended.exit_code == 2
    assert "either --bundle to run or --results" in ended.stderr


def test_eval_of_a_folder_without_annotations_is_one_line_and_exit_2(tmp_path: Path) -> None:
    ended = visrt("eval", "--bundle", write_bundle(tmp_path / "bundle"), "--data", tmp_path)
    assert ended.exit_code == 2
    assert "looks like no annotated set: it holds neither instances.json" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_the_tuner_tries_every_combination(tmp_path: Path) -> None:
    grid = {"nms_iou": [0.5, 1.0], "birth_score": [0.3, 1.0]}
    assert len(list(combinations(grid))) == 4
    annotated = load_annotations(coloured_set(tmp_path / "data"), CLASSES, {"pedestrian": "person", "car": "vehicle"})
    bundle = open_bundle(write_bundle(tmp_path / "bundle"))
    found = {c["birth_score"]: e["d"].counts.tp for c, e in tune(bundle, {"d": annotated}, grid, fps=10)}
    assert found == {0.3: FRAMES, 1.0: 0}, "no score reaches a birth score of 1"
    kept = tmp_path / "kept"
    for _ in ("records", "replays"):
        again = {c["birth_score"]: e["d"].counts.tp for c, e in tune(bundle, {"d": annotated}, grid, 10, kept)}
        assert again == found
    assert len(list(kept.glob("frame-*.npz"))) == FRAMES


def test_memory_is_read_along_a_looped_clip(tmp_path: Path) -> None:
    from written_clips import write_clip

    clip = write_clip(tmp_path / "clip.mp4", 10)
    found = rss_over_frames(write_bundle(tmp_path / "bundle"), clip, frames=30, every=15)
    assert list(found) == [15, 30]
    assert all(megabytes > 20 for megabytes in found.values())
