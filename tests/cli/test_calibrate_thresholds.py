"""`visrt calibrate --thresholds` on labelled clips and images, to a bundle that tracks with what was fitted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bundles import write_bundle
from genvis_bundles import exported_genvis
from inspro_bundles import exported_inspro
from tiny_sets import coco_values, video_values, write_coco, write_video
from typer.testing import CliRunner, Result

from visrt.benchmarks.accuracy import recorded_outputs
from visrt.benchmarks.accuracy.evaluate import evaluate_session
from visrt.benchmarks.accuracy.fit_thresholds import ThresholdFit, fit_thresholds
from visrt.benchmarks.accuracy.recorded_outputs import recorded
from visrt.benchmarks.accuracy.thresholds import FLOORS, Criterion
from visrt.cli import app
from visrt.commands.calibrate import prices_from
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.engines.engine import Engine
from visrt.runtime.errors import UsageError
from visrt.runtime.methods.genvis import GenVisSettings
from visrt.runtime.methods.inspro import InsProSettings
from visrt.runtime.session import Session
from visrt.runtime.sources.image_folder import read_image
from visrt.training.data.set_formats import load_annotations

MAP: dict[str, str | None] = {"car": "person", "dog": None, "chair": None}
TOO_HIGH = {"birth_score": 1.0, "keep_score": 1.0}
"""The bundle sees what is red with a score of 0.997, so that these let nothing in."""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["calibrate", "--thresholds", *map(str, arguments)])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", TOO_HIGH)


@pytest.fixture
def class_map(tmp_path: Path) -> Path:
    (tmp_path / "map.json").write_text(json.dumps(MAP))
    return tmp_path / "map.json"


def labelled(frames: int = 4) -> dict[str, Any]:
    """A red car in all frames but the last."""
    values = video_values(frames)
    values["annotations"][0]["id"] = 1
    return values


def ids_seen(bundle: Path, pictures: list[Path]) -> list[list[int]]:
    with Session.open(bundle) as session:
        results = [result for path in pictures for result in session.step(read_image(path, 10**6))]
    return [[found.id for found in result.objects] for result in results]


def test_a_labelled_clip_lowers_floors_that_let_nothing_in(bundle: Path, class_map: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "clip", labelled(frames=5))
    out = tmp_path / "out"
    ended = run("--bundle", bundle, "--source", tmp_path / "clip", "--classes", class_map, "--out", out, "--fps", 5)
    assert ended.exit_code == 0, ended.output
    assert "chosen" in ended.output
    told = json.loads((out / "thresholds.json").read_text())
    assert told["before"]["counts"]["found"] == 0
    assert told["chosen"]["counts"]["found"] == told["chosen"]["counts"]["wanted"] == 4
    assert told["data"] == {"folder": "clip", "videos": 1, "frames": 5, "fps": 5.0}
    pictures = sorted((tmp_path / "clip" / "JPEGImages" / "one").glob("*.png"))
    assert ids_seen(bundle, pictures) == [[]] * 5
    assert ids_seen(out, pictures) == [[0]] * 4 + [[]]


def test_fitted_thresholds_are_those_of_every_size(class_map: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "upright", TOO_HIGH, other_sizes=[(96, 64)])
    write_video(tmp_path / "clip", labelled(frames=5))
    out = tmp_path / "out"
    ended = run("--bundle", bundle, "--source", tmp_path / "clip", "--classes", class_map, "--out", out, "--fps", 5)
    assert ended.exit_code == 0, ended.output
    sizes = open_bundle(out).manifest.sizes
    assert [size.input.text for size in sizes] == ["64x96", "96x64"]
    assert all(size.association["birth_score"] < 1 and size.thresholds is not None for size in sizes)


def test_of_labelled_images_pseudo_videos_are_made(bundle: Path, class_map: Path, tmp_path: Path) -> None:
    file = write_coco(tmp_path / "images_set", coco_values(3))
    (tmp_path / "images_set" / "annotations").mkdir()  # as COCO is downloaded
    file.rename(file.parent / "annotations" / "instances_val2017.json")
    (file.parent / "images").rename(file.parent / "val2017")
    out = tmp_path / "out"
    wanted = ThresholdFit(bundle, out, tmp_path / "images_set", class_map, videos=2, frames=5)
    fitted = fit_thresholds(wanted)
    assert fitted.best.value > fitted.before.value
    assert open_bundle(out).manifest.association["birth_score"] < 1
    told = json.loads((out / "thresholds.json").read_text())
    assert told["data"]["pseudo_videos"] == {"frames": 5, "seed": 5}
    assert (told["data"]["videos"], told["data"]["fps"]) == (2, 24.0)


@pytest.mark.parametrize("family", ["genvis", "inspro_lite"])
def test_counts_of_every_trial_are_those_of_a_run_of_the_network_with_its_thresholds(
    family: str,
    class_map: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """State goes from frame to frame through these networks. Their weights are random: what they see is spurious."""
    exported = exported_genvis(tmp_path_factory) if family == "genvis" else exported_inspro(tmp_path_factory, family)
    for settings in (GenVisSettings, InsProSettings):
        values = {"birth_score": (0.0, 0.3, 0.5), "keep_score": (0.0, 0.3), "lost_s": (0.1, None)}
        monkeypatch.setitem(FLOORS, settings, values)
    write_video(tmp_path / "clip", labelled(frames=7))
    out = tmp_path / "out"
    given = ("--bundle", exported.folder, "--source", tmp_path / "clip", "--classes", class_map, "--out", out)
    ended = run(*given, "--fps", 5, "--price", "spurious=0.01")
    assert ended.exit_code == 0, ended.output
    assert "never" in ended.output, "an object is never lost before"
    told = json.loads((out / "thresholds.json").read_text())
    assert told["before"]["floors"] == {"birth_score": 0.0, "keep_score": 0.0, "lost_s": None}
    assert told["before"]["counts"]["spurious"] > told["chosen"]["counts"]["spurious"]
    annotated = load_annotations(tmp_path / "clip", open_bundle(out).manifest.classes, MAP)
    for trial in [told["before"], *told["tried"][1::3]]:
        with Session.open(exported.folder, association=trial["floors"]) as session:
            counts = evaluate_session(session, annotated, 5).counts.as_json()
        assert {name: counts[name] for name in trial["counts"]} == trial["counts"]
    with Session.open(out) as session:
        counts = evaluate_session(session, annotated, 5).counts.as_json()
    assert {name: counts[name] for name in told["chosen"]["counts"]} == told["chosen"]["counts"]


def test_of_a_bundle_of_several_sizes_a_video_is_seen_at_its_own_as_the_fitted_bundle_sees_it(
    class_map: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def noted(manifest: Manifest, *given: Any) -> dict[str, Engine]:
        opened.append(manifest.input.height)
        return recorded(manifest, *given)

    monkeypatch.setattr(recorded_outputs, "recorded", noted)
    bundle = write_bundle(tmp_path / "bundle", TOO_HIGH, other_sizes=[(96, 64), (192, 320)])
    write_video(tmp_path / "clip", labelled(frames=5))
    out = tmp_path / "out"
    ended = run("--bundle", bundle, "--source", tmp_path / "clip", "--classes", class_map, "--out", out, "--fps", 5)
    assert ended.exit_code == 0, ended.output
    told = json.loads((out / "thresholds.json").read_text())
    assert told["chosen"]["counts"]["found"] == 4
    assert opened == [192], "the largest of its aspect, and no other"
    fitted = open_bundle(out)
    assert [size.manifest.input.height for size in fitted.sizes] == [64, 96, 192]
    annotated = load_annotations(tmp_path / "clip", fitted.manifest.classes, MAP)
    with Session.open(fitted) as session:
        counts = evaluate_session(session, annotated, 5).counts.as_json()
    assert {name: counts[name] for name in told["chosen"]["counts"]} == told["chosen"]["counts"]


def test_prices_are_read_from_the_command() -> None:
    assert prices_from(["changed_id=5", "spurious=0"], Criterion()) == Criterion(1.0, 0.0, 5.0)
    with pytest.raises(UsageError, match="expected one of duplicate, spurious, changed_id"):
        prices_from(["recall=2"], Criterion())
    with pytest.raises(UsageError, match="has no number"):
        prices_from(["spurious=much"], Criterion())


class TestBadInput:
    def test_a_clip_without_a_labelled_object(self, bundle: Path, class_map: Path, tmp_path: Path) -> None:
        values = {**labelled(), "annotations": []}
        assert "no labelled object" in error(values, bundle, tmp_path, "--classes", class_map)

    def test_a_set_whose_annotations_are_kept_back(self, bundle: Path, class_map: Path, tmp_path: Path) -> None:
        values = labelled()
        del values["annotations"]
        message = "lists 1 videos without annotations, as the files for evaluation servers do; fitting thresholds needs"
        assert message in error(values, bundle, tmp_path, "--classes", class_map)

    def test_a_class_map_that_leaves_out_everything(self, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "none.json").write_text(json.dumps(dict.fromkeys(MAP)))
        message = "the class map leaves out every category; name a class for at least one of: car, chair, dog"
        assert message in error(labelled(), bundle, tmp_path, "--classes", tmp_path / "none.json")

    def test_a_class_map_to_other_classes(self, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "other.json").write_text(json.dumps({"car": "lorry"}))
        message = "lorry are none of the classes person, vehicle, animal; give a class map"
        assert message in error(labelled(), bundle, tmp_path, "--classes", tmp_path / "other.json")

    def test_an_object_that_is_never_in_sight(self, bundle: Path, class_map: Path, tmp_path: Path) -> None:
        values = labelled()
        values["annotations"][0]["segmentations"] = [None] * 4
        assert "no labelled object" in error(values, bundle, tmp_path, "--classes", class_map)

    def test_labels_of_other_classes(self, bundle: Path, tmp_path: Path) -> None:
        assert "none of the classes person, vehicle, animal" in error(labelled(), bundle, tmp_path)

    def test_an_empty_set(self, bundle: Path, class_map: Path, tmp_path: Path) -> None:
        write_video(tmp_path / "clip", labelled())
        (tmp_path / "clip" / "instances.json").write_text(json.dumps({**labelled(), "videos": []}))
        assert "expected a list of at least one" in told(bundle, tmp_path, "--classes", class_map)

    def test_images_of_other_classes(self, bundle: Path, tmp_path: Path) -> None:
        write_coco(tmp_path / "clip", coco_values(2))
        assert "car, chair, dog are none of the classes person, vehicle, animal" in told(bundle, tmp_path)

    def test_images_without_objects(self, bundle: Path, class_map: Path, tmp_path: Path) -> None:
        write_coco(tmp_path / "clip", {**coco_values(2), "annotations": []})
        assert "no labelled object" in told(bundle, tmp_path, "--classes", class_map)

    def test_a_set_without_annotations(self, bundle: Path, class_map: Path, tmp_path: Path) -> None:
        values = {**labelled(), "annotations": None}
        assert "fitting thresholds needs annotations" in error(values, bundle, tmp_path, "--classes", class_map)

    def test_no_folder(self, bundle: Path, tmp_path: Path) -> None:
        assert "clip: there is no such folder; give the one that holds the set" in told(bundle, tmp_path)

    def test_a_bundle_that_is_there(self, bundle: Path, tmp_path: Path) -> None:
        ended = run("--bundle", bundle, "--source", tmp_path, "--out", bundle)
        assert "holds a bundle already" in said(ended)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--thresholds", "--frames", 8), "--frames does not go with --thresholds"),
            (("--thresholds", "--floor", "iou=0.9"), "--floor does not go with --thresholds"),
            (("--fps", 8), "--fps goes with --thresholds"),
            (("--price", "changed_id=8"), "--price goes with --thresholds"),
            (("--thresholds", "--source", "b"), "2 sources were given"),
        ],
    )
    def test_options_of_the_other_way(self, arguments: tuple[object, ...], message: str) -> None:
        given = ["calibrate", "--bundle", "x", "--source", "a", "--out", "y", *map(str, arguments)]
        assert message in said(CliRunner().invoke(app, given))


def error(values: dict[str, Any], bundle: Path, tmp_path: Path, *options: object) -> str:
    write_video(tmp_path / "clip", values)
    return told(bundle, tmp_path, *options)


def told(bundle: Path, tmp_path: Path, *options: object) -> str:
    """The error that the command ends with; it leaves nothing behind."""
    ended = run("--bundle", bundle, "--source", tmp_path / "clip", "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
    return said(ended)


def said(ended: Result) -> str:
    """The one line of a refusal."""
    assert ended.exit_code in (2, 4), "refused input or refused output"
    assert "Traceback" not in ended.output
    return " ".join(ended.output.split())
