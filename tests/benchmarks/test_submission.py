"""Claims about results for evaluation servers: their form, their figures, and runs that were interrupted."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from annotated_sets import SIZE
from bundles import write_bundle
from fakes import fake_manifest
from official_layouts import make_split
from pycocotools import mask as coco_mask
from red_videos import CLASS_MAP, red_videos
from trackeval_files import GROUND_TRUTH, RESULTS, annotated_masks, figures_of_files
from typer.testing import CliRunner, Result

from visrt.benchmarks.accuracy.bundle_run import BundleRun, Progress
from visrt.benchmarks.accuracy.report import evaluation_report
from visrt.benchmarks.accuracy.run_folder import open_run
from visrt.benchmarks.accuracy.scores import Measured, evaluate
from visrt.cli import app
from visrt.commands.eval_progress import ProgressLines
from visrt.runtime.errors import DataError, OutputError, UsageError
from visrt.runtime.methods.genvis import GenVis
from visrt.runtime.methods.registry import method_of
from visrt.training.data.annotations import AnnotatedSet
from visrt.training.data.set_formats import SetPlaces

OFFICIAL = ("official",)
FILES = ("results.json", "results.zip")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "red")


def run_of(bundle: Path, data: Path, out: Path | None, **options: Any) -> Measured:
    """The official results of `bundle`, written to `out`."""
    run = BundleRun(**{"threads": 1, "rules": OFFICIAL, "write_results": out, **options})
    return evaluate(bundle, data, CLASS_MAP, run)


def command(bundle: Path, data: Path, out: Path, *more: str) -> list[str]:
    """The arguments of `visrt` for the same."""
    (data / "map.json").write_text(json.dumps(CLASS_MAP))
    where = ["--bundle", str(bundle), "--data", str(data), "--classes", str(data / "map.json")]
    return ["eval", *where, "--rule", "official", "--write-results", str(out), "--threads", "1", *more]


def visrt(arguments: Sequence[str]) -> Result:
    return CliRunner().invoke(app, list(arguments))


def bytes_in(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in FILES]


def results_in(out: Path) -> list[dict[str, Any]]:
    values: list[dict[str, Any]] = json.loads((out / "results.json").read_text())
    return values


def renumbered(data: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The set in `data` with its file changed."""
    path = data / "instances.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return data


def with_other_ids(values: dict[str, Any]) -> None:
    """Videos 1, 2, ... become 70, 69, ..."""
    for video in values["videos"]:
        video["id"] = 71 - video["id"]
    for one in values["annotations"]:
        one["video_id"] = 71 - one["video_id"]


def test_results_are_the_set_s_ids_with_a_mask_or_null_a_frame_and_the_zip_holds_them_at_its_root(
    bundle: Path, tmp_path: Path
) -> None:
    data = renumbered(red_videos(tmp_path / "data", 3, 4, gone=(2,)), with_other_ids)
    run_of(bundle, data, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == list(FILES), "nothing else is left"
    found = results_in(tmp_path / "out")
    assert list(dict.fromkeys(one["video_id"] for one in found)) == [70, 69, 68], "in the order of the file"
    assert {one["category_id"] for one in found} == {2}, "the dog's; the other classes have no category"
    for one in found:
        assert one.keys() == {"video_id", "category_id", "score", "segmentations"}
        assert 0 <= one["score"] <= 1
        assert len(one["segmentations"]) == 4
        for mask in filter(None, one["segmentations"]):
            assert (mask["size"], type(mask["counts"])) == (list(SIZE), str)
    best = max(found, key=lambda one: float(one["score"]))
    assert [mask is not None for mask in best["segmentations"]] == [True, True, False, True]
    with zipfile.ZipFile(tmp_path / "out" / "results.zip") as archive:
        assert archive.namelist() == ["results.json"]
        assert archive.read("results.json") == (tmp_path / "out" / "results.json").read_bytes()


def load_results(values: dict[str, Any], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As the official evaluator of YouTube-VIS takes results: each gets its areas, their mean, boxes and an id."""
    assert isinstance(results, list)
    assert {one["video_id"] for one in results} <= {video["id"] for video in values["videos"]}
    loaded = []
    for number, one in enumerate(results, start=1):
        areas = [int(coco_mask.area(mask)) if mask else None for mask in one["segmentations"]]
        boxes = [coco_mask.toBbox(mask).tolist() if mask else None for mask in one["segmentations"]]
        known = [area for area in areas if area]
        mean = sum(known) / len(known) if known else 0
        loaded.append({**one, "id": number, "areas": areas, "avg_area": mean, "bboxes": boxes, "iscrowd": 0})
    return loaded


def test_results_load_as_the_official_evaluator_takes_them(bundle: Path, tmp_path: Path) -> None:
    data = red_videos(tmp_path / "data", 2, 4, gone=(2,))
    run_of(bundle, data, tmp_path / "out")
    loaded = load_results(json.loads((data / "instances.json").read_text()), results_in(tmp_path / "out"))
    best = max(loaded, key=lambda one: float(one["score"]))
    assert best["avg_area"] == pytest.approx(20 * 16, rel=0.3), "the dog is 20 x 16 pixels"
    assert best["bboxes"][2] is None


def test_figures_of_the_written_results_are_those_of_the_run_by_our_reader_and_by_trackeval(
    bundle: Path, tmp_path: Path
) -> None:
    data = renumbered(red_videos(tmp_path / "data", 3, 5, gone=(2,)), _without_the_car)
    measured = run_of(bundle, data, tmp_path / "out").scores["official"]
    figures, results = str(tmp_path / "o.json"), str(tmp_path / "out" / "results.json")
    again = visrt(["eval", "--results", results, "--data", str(data), "--json", figures])
    assert again.exit_code == 0, again.stderr
    ours = json.loads((tmp_path / "o.json").read_text())
    of_class = measured.evaluation.precision.by_class["person"]
    assert 0.3 < of_class.ap < 1, "neither nothing nor everything, so that figures can differ"
    read = ours["precision"]["by_class"]["dog"]
    assert (read["ap"], read["ap50"], read["ar10"]) == (of_class.ap, of_class.ap50, of_class.ar10)
    assert ours["tracking"]["by_class"]["dog"]["hota"] == pytest.approx(measured.by_class["person"].hota, abs=1e-12)
    assert ours["tracking"]["by_class"]["dog"]["idf1"] == pytest.approx(measured.by_class["person"].idf1, abs=1e-12)

    for path, source in ((GROUND_TRUTH, data / "instances.json"), (RESULTS, tmp_path / "out" / "results.json")):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(source.read_text())
    renumbered_for_trackeval(tmp_path / GROUND_TRUTH)
    theirs = figures_of_files(tmp_path)["dog"]
    assert np.mean(theirs["TrackMAP"]["AP_all"]) == pytest.approx(of_class.ap, abs=1e-6)
    assert np.mean(theirs["HOTA"]["HOTA"]) == pytest.approx(measured.by_class["person"].hota, abs=1e-9)
    assert theirs["Identity"]["IDF1"] == pytest.approx(measured.by_class["person"].idf1, abs=1e-9)


def _without_the_car(values: dict[str, Any]) -> None:
    values["categories"] = values["categories"][:1]
    values["annotations"] = [one for one in values["annotations"] if one["category_id"] == 2]
    for i, one in enumerate(values["annotations"]):  # not all as found, so that no figure is 1
        if i == 1:
            one["segmentations"][3:] = [None, None]


def renumbered_for_trackeval(path: Path) -> None:
    """Its masks and sizes as trackeval reads them."""
    values = json.loads(path.read_text())
    for one in values["annotations"]:
        one |= {**annotated_masks(one["segmentations"]), "height": SIZE[0], "width": SIZE[1]}
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("rule", ["causal", "official"])
def test_figures_are_the_same_with_and_without_results_written(rule: str, bundle: Path, tmp_path: Path) -> None:
    data = red_videos(tmp_path / "data", 2, 4, gone=(2,))
    plain = run_of(bundle, data, None, rules=(rule,))
    written = run_of(bundle, data, tmp_path / "out", rules=(rule,), jobs=1)
    assert figures_of(written) == figures_of(plain)
    assert results_in(tmp_path / "out")


def figures_of(measured: Measured) -> dict[str, Any]:
    """Everything but times."""
    report = evaluation_report(measured.annotated, measured.scores, {})
    for video in report["videos"]:
        del video["seconds"]
    del report["figures"]["fps"], report["remarks"]
    return report


def test_videos_at_a_time_change_no_byte_where_each_has_as_many_threads(bundle: Path, tmp_path: Path) -> None:
    data = red_videos(tmp_path / "data", 6, 3)
    run_of(bundle, data, tmp_path / "one", threads=1, jobs=1)
    run_of(bundle, data, tmp_path / "three", threads=3, jobs=3)
    assert bytes_in(tmp_path / "one") == bytes_in(tmp_path / "three")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on_and_writes_the_bytes_of_one_that_was_not(
    number: signal.Signals, bundle: Path, tmp_path: Path
) -> None:
    data, out = red_videos(tmp_path / "data", 60, 3), tmp_path / "out"
    arguments = command(bundle, data, out, "--jobs", "2")
    with subprocess.Popen([sys.executable, "-m", "visrt", *arguments], stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: len(list((out / "videos").glob("*.json"))) > 2, process)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "videos").glob("*.json")}
    assert 2 < len(kept) < 60
    assert not (out / "results.json").exists()
    if number is signal.SIGINT:
        assert process.returncode == 130
        assert f"the videos that are done are kept in {out}: the same command goes on" in said
    done: list[Progress] = []
    run = BundleRun(threads=1, jobs=2, rules=OFFICIAL, write_results=out)
    evaluate(bundle, data, CLASS_MAP, run, done.append)
    assert [one.done for one in done] == list(range(len(kept), 61)), "those that were kept did not run again"
    run_of(bundle, data, tmp_path / "whole")
    assert bytes_in(out) == bytes_in(tmp_path / "whole")


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until it has, while `process` runs."""
    ends = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < ends
        time.sleep(0.002)


def unfinished(bundle: Path, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """A run of `data` in `out` that the full disk ended after its first video."""
    write, written = os.replace, iter(range(100))

    def full(source: Any, target: Any) -> None:
        if "videos" in Path(target).parts and next(written) == 1:
            raise OSError(28, os.strerror(28))
        write(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OutputError, match="no space left; what was written before"):
            run_of(bundle, data, out, **options)
    assert [path.name for path in (out / "videos").glob("*")] == ["1.json"]


def test_a_full_disk_loses_no_video_that_was_done(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = red_videos(tmp_path / "data", 3, 3), tmp_path / "out"
    unfinished(bundle, data, out, monkeypatch)
    run_of(bundle, data, out)
    run_of(bundle, data, tmp_path / "whole")
    assert bytes_in(out) == bytes_in(tmp_path / "whole")


def test_a_file_too_large_for_the_disk_leaves_the_videos(bundle: Path, tmp_path: Path) -> None:
    data, out = red_videos(tmp_path / "data", 3, 3), tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        run_of(bundle, data, tmp_path / "whole")
        size = (tmp_path / "whole" / "results.json").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size * 3 // 4, hard))  # more than a video, less than all three
        with pytest.raises(OutputError, match=r"results\.json: no space left; what was written before is kept"):
            run_of(bundle, data, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in out.iterdir()) == ["run.json", "videos"]
    run_of(bundle, data, out)
    assert bytes_in(out) == bytes_in(tmp_path / "whole")


OTHER_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "rule": ({"rules": ("causal",)}, "rule was 'official' and is 'causal'"),
    "top_k": ({"top_k": 3}, "top_k was None and is 3"),
    "preset": ({"preset": "ctvis"}, "preset was None and is 'ctvis'"),
    "association": (
        {"association": {"similarity": "matching_cost"}},
        "association.similarity was 'cosine' and is 'matching_cost'",
    ),
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_a_run_of_other_settings_is_refused_with_the_difference(
    name: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = red_videos(tmp_path / "data", 2, 3), tmp_path / "out"
    unfinished(bundle, data, out, monkeypatch)
    options, named = OTHER_SETTINGS[name]
    with pytest.raises(OutputError, match=f"an unfinished run of other settings: .*{named}"):
        run_of(bundle, data, out, **options)
    assert (out / "videos" / "1.json").exists()
    run_of(bundle, data, out, existing="replace", **options)
    assert results_in(out)


def test_another_bundle_or_another_annotation_file_is_another_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = red_videos(tmp_path / "data", 2, 3), tmp_path / "out"
    unfinished(bundle, data, out, monkeypatch)
    other = write_bundle(tmp_path / "other", {"birth_score": 0.9})
    with pytest.raises(OutputError, match="other settings: bundle was"):
        run_of(other, data, out)
    renumbered(data, lambda values: values["annotations"].pop())
    with pytest.raises(OutputError, match="other settings: annotations was"):
        run_of(bundle, data, out)


def test_finished_results_are_replaced_only_with_overwrite(bundle: Path, tmp_path: Path) -> None:
    data, out = red_videos(tmp_path / "data", 2, 3), tmp_path / "out"
    arguments = command(bundle, data, out)
    assert visrt(arguments).exit_code == 0
    (out / "results.zip").write_bytes(b"mine")
    refused = visrt(arguments)
    assert refused.exit_code == 4
    assert f"{out}: already holds results.json, results.zip; choose another folder" in refused.stderr
    assert (out / "results.zip").read_bytes() == b"mine"
    replaced = visrt([*arguments, "--overwrite"])
    assert replaced.exit_code == 0, replaced.stderr
    assert f"{out}/results.zip: results.json of 2 videos, for the evaluation server" in replaced.stdout
    assert zipfile.is_zipfile(out / "results.zip")


@pytest.mark.parametrize("existing", ["refuse", "replace"])
def test_files_that_no_run_wrote_are_left_alone(existing: str, bundle: Path, tmp_path: Path) -> None:
    data, out = red_videos(tmp_path / "data", 1, 3), tmp_path / "out"
    (out / "videos").mkdir(parents=True)
    (out / "videos" / "1.json").write_text("mine")
    with pytest.raises(OutputError, match=r"videos: is there already, and of no run"):
        run_of(bundle, data, out, existing=existing)
    (out / "run.json").write_text('{"mine": 1}')
    with pytest.raises(OutputError, match=r"run\.json: does not hold what the results"):
        run_of(bundle, data, out, existing=existing)
    assert (out / "videos" / "1.json").read_text() == "mine"


def test_a_run_that_ended_while_it_tidied_up_is_a_finished_one(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = red_videos(tmp_path / "data", 3, 3), tmp_path / "out"
    unlink, removed = Path.unlink, iter(range(100))

    def fails_once(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == "videos" and not path.name.startswith(".") and next(removed) == 1:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fails_once)
        with pytest.raises(KeyboardInterrupt):
            run_of(bundle, data, out)
    assert len(list((out / "videos").iterdir())) == 2
    with pytest.raises(OutputError, match=r"already holds results\.json, results\.zip"):
        run_of(bundle, data, out)
    assert sorted(path.name for path in out.iterdir()) == list(FILES)


def test_two_runs_do_not_work_in_one_folder(bundle: Path, tmp_path: Path) -> None:
    data, out = red_videos(tmp_path / "data", 1, 3), tmp_path / "out"
    with open_run(out, {"rule": "official"}), pytest.raises(OutputError, match="another visrt eval is at work in it"):
        run_of(bundle, data, out, existing="replace")
    run_of(bundle, data, out, existing="replace")


def test_a_bad_video_is_named_and_the_others_are_kept(bundle: Path, tmp_path: Path) -> None:
    data, out = red_videos(tmp_path / "data", 4, 3), tmp_path / "out"
    torn, grown = (data / "JPEGImages" / name / "00001.png" for name in ("video2", "video3"))
    whole = torn.read_bytes(), grown.read_bytes()
    torn.write_bytes(whole[0][:60])
    cv2.imwrite(str(grown), np.zeros((96, 128, 3), np.uint8))
    ended = visrt(command(bundle, data, out))
    said = " ".join(ended.stderr.split())
    assert ended.exit_code == 2
    assert "no results are written, as 2 of 4 videos failed: video2: " in said
    assert "00001.png: 96 x 128 pixels (height x width), its annotations say 48 x 64" in said
    assert not any((out / name).exists() for name in FILES)
    assert {path.name for path in (out / "videos").iterdir()} == {"1.json", "4.json"}
    torn.write_bytes(whole[0])
    grown.write_bytes(whole[1])
    done: list[Progress] = []
    evaluate(bundle, data, CLASS_MAP, BundleRun(threads=1, rules=OFFICIAL, write_results=out), done.append)
    assert [one.done for one in done] == [2, 3, 4]
    run_of(bundle, data, tmp_path / "whole")
    assert bytes_in(out) == bytes_in(tmp_path / "whole")


def test_a_bad_video_can_be_left_out_with_what_is_missing(bundle: Path, tmp_path: Path) -> None:
    data, out = red_videos(tmp_path / "data", 3, 3), tmp_path / "out"
    torn = data / "JPEGImages" / "video2" / "00001.png"
    torn.write_bytes(b"torn")
    assert visrt(command(bundle, data, out)).exit_code == 2
    torn.unlink()
    ended = visrt(command(bundle, data, out, "--skip-missing"))
    assert ended.exit_code == 0, ended.stderr
    assert "video2" in ended.stderr
    assert {one["video_id"] for one in results_in(out)} == {1, 3}


def without_annotations(values: dict[str, Any]) -> None:
    del values["annotations"]


def test_a_set_without_annotations_is_written_and_not_measured(bundle: Path, tmp_path: Path) -> None:
    data = red_videos(tmp_path / "data", 2, 3)
    run_of(bundle, data, tmp_path / "annotated")
    renumbered(data, without_annotations)
    ended = visrt(command(bundle, data, tmp_path / "out", "--json", str(tmp_path / "o.json")))
    assert ended.exit_code == 0, ended.stderr
    assert "the set has no annotations, so nothing is measured" in ended.stderr
    assert "AP" not in ended.stdout
    assert json.loads((tmp_path / "o.json").read_text()).keys() == {"settings", "machine", "remarks"}
    assert bytes_in(tmp_path / "out") == bytes_in(tmp_path / "annotated"), "annotations play no part in results"
    arguments = command(bundle, data, tmp_path / "out")
    refused = visrt([one for one in arguments if one not in ("--write-results", str(tmp_path / "out"))])
    assert refused.exit_code == 2
    assert "lists 2 videos without annotations" in refused.stderr


def test_a_split_as_it_is_downloaded_is_run_whole_at_the_frame_rate_of_the_set(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "two sizes", other_sizes=((96, 64),))
    places = make_split(tmp_path, "ovis", "valid", annotated=False, frames=3)
    (tmp_path / "map.json").write_text('{"Person": "person"}')
    out, figures = tmp_path / "out", tmp_path / "o.json"
    where = ["--data", str(places.folder), "--split", "valid", "--classes", str(tmp_path / "map.json")]
    rule = ["--rule", "official", "--write-results", str(out), "--json", str(figures), "--threads", "1"]
    ended = visrt(["eval", "--bundle", str(bundle), *where, *rule])
    assert ended.exit_code == 0, ended.stderr
    videos = json.loads((places.folder / places.annotations).read_text())["videos"]
    sizes = {video["id"]: [video["height"], video["width"]] for video in videos}
    assert len({tuple(size) for size in sizes.values()}) == 2, "one of them is upright"
    found = results_in(out)
    assert {one["video_id"] for one in found} == sizes.keys()
    assert {one["category_id"] for one in found} == {1}, "Person"
    for one in found:
        assert all(mask["size"] == sizes[one["video_id"]] for mask in one["segmentations"] if mask)
    assert json.loads(figures.read_text())["settings"]["fps_of_videos"] == 6
    run = BundleRun(rules=OFFICIAL, threads=2, jobs=2, write_results=tmp_path / "again")
    evaluate(bundle, SetPlaces(places.folder, split="valid"), {"Person": "person"}, run)
    assert bytes_in(tmp_path / "again") == bytes_in(out)


def test_two_categories_of_one_class_are_refused_by_name(bundle: Path, tmp_path: Path) -> None:
    data = red_videos(tmp_path / "data", 1, 3)
    run = BundleRun(rules=OFFICIAL, write_results=tmp_path / "out")
    with pytest.raises(DataError, match=r"dog and car are both the class person of the bundle; .* leaves one of them"):
        evaluate(bundle, data, {"dog": "person", "car": "person"}, run)
    assert not (tmp_path / "out").exists()


def test_classes_without_a_category_are_named(bundle: Path, tmp_path: Path) -> None:
    measured = run_of(bundle, red_videos(tmp_path / "data", 1, 3), tmp_path / "out")
    assert "the set has no category for vehicle, animal: their tracks are not in the results" in (
        measured.annotated.remarks
    )


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "both rules": ({"rules": ("causal", "official")}, "takes the results of one rule; give --rule official"),
    "tracks of a stream": ({"rules": ("causal",), "top_k": 5}, "--top-k is the number of tracks of an official result"),
    "no video at a time": ({"jobs": 0}, "jobs is 0; expected 1 or more"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_options_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    options, named = UNFIT[name]
    with pytest.raises(UsageError, match=named):
        BundleRun(**{"rules": OFFICIAL, "write_results": tmp_path, **options})


def test_the_number_of_tracks_and_the_frame_rate_are_those_of_the_set(bundle: Path, tmp_path: Path) -> None:
    ovis = AnnotatedSet((), ("dog",), {}, official="ovis", fps=6.0)
    minvis, genvis = method_of(fake_manifest()), GenVis()
    assert BundleRun(rules=OFFICIAL).on(ovis, genvis) == BundleRun(rules=OFFICIAL, fps=6.0, top_k=20)
    assert BundleRun(rules=OFFICIAL).on(ovis, minvis) == BundleRun(rules=OFFICIAL, fps=6.0), "the rule's own ten"
    assert BundleRun(rules=OFFICIAL, top_k=7, fps=30.0).on(ovis, genvis) == BundleRun(
        rules=OFFICIAL, top_k=7, fps=30.0
    ), "what is given holds"
    assert BundleRun().on(replace(ovis, official=None, fps=None), genvis) == BundleRun(fps=24.0)
    data = red_videos(tmp_path / "data", 1, 3)
    run_of(bundle, data, tmp_path / "out", top_k=1)
    assert len(results_in(tmp_path / "out")) == 1


def test_lines_of_progress_come_now_and_then_and_name_what_failed() -> None:
    lines: list[str] = []
    now = [0.0]
    report = ProgressLines(lines.append, lambda: now[0])
    report(Progress("official", 2, 6, 0, 80))
    for seconds, done, fault in ((10.0, 3, ""), (40.0, 4, ""), (50.0, 5, "video5: torn"), (60.0, 6, "")):
        now[0] = seconds
        report(Progress("official", done, 6, 20 * (done - 2), 80, fault))
    assert lines == [
        "official: 2 of 6 videos are done",
        "official: 4 of 6 videos, 1.0 frames a second, 40 s left",
        "video5: torn",
    ]


@pytest.mark.parametrize("name", ["results.json", "results.zip"])
def test_the_name_of_a_file_for_the_results_is_refused_before_anything_is_run(name: str, tmp_path: Path) -> None:
    refused = visrt(["eval", "--bundle", "none", "--data", "none", "--write-results", str(tmp_path / name)])
    assert refused.exit_code == 2
    assert "takes a folder, for results.json, results.zip" in refused.stderr
    assert refused.stderr.strip().endswith(f"give {tmp_path / 'results'}")
