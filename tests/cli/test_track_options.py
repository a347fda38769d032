"""Everyday options of `visrt track`, on short clips: what is shown, drawn, written and read; what is refused."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_bundle
from numpy.typing import NDArray
from PIL import Image as PillowImage
from typer.testing import CliRunner, Result
from written_clips import SIZE, red_square, write_clip

from visrt.cli import app
from visrt.runtime.masks import decode
from visrt.runtime.sinks.journal import read_journal
from visrt.runtime.sinks.overlay import colour_of
from visrt.runtime.sources.video import read_video

FRAMES = 20


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "red")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "street.mp4", FRAMES)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that are found by themselves lie below the present one."""
    monkeypatch.chdir(tmp_path)


def track(bundle: Path, *arguments: str | Path) -> Result:
    common = ["--bundle", str(bundle), "--threads", "1"]
    return CliRunner().invoke(app, ["track", *map(str, arguments), *common])


def done(bundle: Path, *arguments: str | Path) -> Path:
    """The folder of a run that ended well, in `out`."""
    ended = track(bundle, *arguments, "--out", "out")
    assert ended.exit_code == 0, ended.stderr
    return Path("out")


def lines(folder: Path) -> list[dict[str, Any]]:
    return list(read_journal(folder / "results.jsonl"))


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_the_folder_is_found_by_itself_and_never_an_old_one(bundle: Path, clip: Path) -> None:
    for name in ("street", "street-2", "street-3"):
        ended = track(bundle, clip, "--no-overlay", "--limit", "1")
        assert ended.exit_code == 0, ended.stderr
        assert f"runs/track/{name}" in ended.stdout
        assert summary(Path("runs/track") / name)["end"] == "complete"


def test_sources_of_one_name_find_folders_of_their_own(bundle: Path, clip: Path) -> None:
    assert track(bundle, clip, clip, "--no-overlay", "--limit", "1").exit_code == 0
    assert {path.name for path in Path("runs/track").iterdir()} == {"street", "street-2"}


def test_classes_and_score_choose_what_is_shown_and_written(bundle: Path, clip: Path) -> None:
    folder = done(bundle, clip, "--classes", "animal, vehicle", "--mot")
    assert [line["objects"] for line in lines(folder)] == [[]] * FRAMES
    assert json.loads((folder / "results.json").read_text()) == []
    assert (folder / "mot.txt").read_text() == ""
    assert summary(folder)["made_by"]["classes"] == "animal, vehicle"
    plain = [frame.image for frame in read_video(folder / "overlay.mp4")]
    assert max(np.abs(image.astype(int) - red_square(at)).mean() for at, image in enumerate(plain)) < 8

    ended = track(bundle, clip, "--classes", "person", "--score", "0.5", "--out", "people", "--no-overlay")
    assert ended.exit_code == 0, ended.stderr
    assert [len(line["objects"]) for line in lines(Path("people"))] == [1] * FRAMES
    ended = track(bundle, clip, "--score", "1", "--out", "sure", "--no-overlay")
    assert ended.exit_code == 0, ended.stderr
    assert summary(Path("sure"))["objects"] == 0


def test_a_part_keeps_the_numbers_and_times_of_its_frames(bundle: Path, clip: Path) -> None:
    folder = done(bundle, clip, "--start", "0.5", "--end", "16f", "--every", "4", "--masks", "png", "--crops")
    assert [(line["frame"], line["time_s"]) for line in lines(folder)] == [(5, 0.5), (9, 0.9), (13, 1.3)]
    assert sorted(path.name for path in (folder / "masks").iterdir()) == ["000005.png", "000009.png", "000013.png"]
    assert sorted(path.name for path in (folder / "crops/0-person").iterdir()) == [
        *("000005.jpg", "000009.jpg", "000013.jpg")
    ]
    assert [frame.time_s for frame in read_video(folder / "overlay.mp4")] == pytest.approx([0, 0.4, 0.8])
    made_by = summary(folder)["made_by"]
    assert (made_by["start"], made_by["end"], made_by["every"]) == ("0.5 s", "frame 16", 4)
    assert (summary(folder)["frames"]["processed"], summary(folder)["end"]) == (3, "complete")
    [entry] = json.loads((folder / "results.json").read_text())
    assert len(entry["segmentations"]) == 3


def test_streams_together_number_their_frames_as_alone(bundle: Path, clip: Path) -> None:
    other = write_clip(Path("other.mp4").absolute(), 13)
    folder = done(bundle, clip, other, "--streams", "2", "--every", "3", "--no-overlay")
    assert [line["frame"] for line in lines(folder / "street")] == list(range(0, FRAMES, 3))
    assert [line["frame"] for line in lines(folder / "other")] == list(range(0, 13, 3))


def test_masks_are_indexed_pictures_of_ids(bundle: Path, clip: Path) -> None:
    folder = done(bundle, clip, "--masks", "png", "--no-overlay")
    assert len(list((folder / "masks").iterdir())) == FRAMES
    for line in lines(folder):
        picture = PillowImage.open(folder / "masks" / f"{line['frame']:06}.png")
        assert picture.mode == "P"
        palette = picture.getpalette()
        assert palette is not None
        assert tuple(palette[3:6]) == colour_of(0)
        assert np.array_equal(np.asarray(picture), decode(line["objects"][0]["rle"]))


def test_crops_are_the_boxes(bundle: Path, clip: Path) -> None:
    folder = done(bundle, clip, "--crops", "--no-overlay")
    for line in lines(folder):
        crop = np.asarray(PillowImage.open(folder / "crops" / "0-person" / f"{line['frame']:06}.jpg"))
        assert [*crop.shape[1::-1]] == line["objects"][0]["box"][2:]
        assert crop[..., 0].mean() > 150 > crop[..., 1].mean()


def test_rows_of_boxes_are_in_the_form_of_motchallenge(bundle: Path, clip: Path) -> None:
    folder = done(bundle, clip, "--mot", "--no-overlay")
    rows = list(csv.reader((folder / "mot.txt").read_text().splitlines()))
    assert [row[:2] + row[7:] for row in rows] == [[str(at + 1), "1", "-1", "-1", "-1"] for at in range(FRAMES)]
    for row, line in zip(rows, lines(folder), strict=True):
        assert [int(part) for part in row[2:6]] == line["objects"][0]["box"]
        assert float(row[6]) == pytest.approx(line["objects"][0]["score"], abs=1e-4)


def test_what_is_written_as_a_wish_is_replaced_with_the_rest(bundle: Path, clip: Path) -> None:
    folder = done(bundle, clip, "--masks", "png", "--crops", "--mot", "--no-overlay")
    (folder / "masks" / "notes.png").write_text("mine")
    (folder / "crops" / "mine.jpg").write_text("mine")
    refused = track(bundle, clip, "--out", "out")
    assert refused.exit_code == 4
    assert "already holds results.jsonl, results.json, summary.json, mot.txt, crops, masks;" in refused.stderr
    assert track(bundle, clip, "--out", "out", "--overwrite", "--no-overlay", "--limit", "2").exit_code == 0
    assert [path.name for path in (folder / "masks").iterdir()] == ["notes.png"]
    assert not [path for path in (folder / "crops" / "0-person").iterdir()]
    assert (folder / "crops" / "mine.jpg").exists()
    assert not (folder / "mot.txt").exists()


def overlay(folder: Path) -> list[NDArray[np.uint8]]:
    return [frame.image for frame in read_video(folder / "overlay.mp4")]


def changed(image: NDArray[np.uint8], frame: int, by: int = 40) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.abs(image.astype(int) - red_square(frame)).max(axis=2) > by
    return found


@pytest.mark.parametrize(
    ("options", "inside", "edge", "label"),
    [
        ((), True, True, True),
        (("--no-labels",), True, True, False),
        (("--no-masks", "--no-labels"), False, False, False),
        (("--no-masks", "--boxes", "--no-labels"), False, True, False),
        (("--opacity", "0", "--no-labels"), False, True, False),
        (("--opacity", "1", "--no-labels"), True, True, False),
    ],
)
def test_the_overlay_has_what_is_wished(
    bundle: Path, clip: Path, options: tuple[str, ...], inside: bool, edge: bool, label: bool
) -> None:
    folder = done(bundle, clip, "--limit", "8", "--overlay-coding", "medium", *options)
    image, [found] = overlay(folder)[6], lines(folder)[6]["objects"]
    x, y, width, height = found["box"]
    where = changed(image, 6)
    assert (where[y + 5 : y + height - 5, x + 5 : x + width - 5].mean() > 0.5) == inside
    assert (where[y + height - 2 : y + height, x + 2 : x + width - 2].mean() > 0.3) == edge
    where[y : y + height, x : x + width] = False
    assert (where.mean() > 0.02) == label


def test_trails_show_where_objects_came_from(bundle: Path, clip: Path) -> None:
    folder = done(bundle, clip, "--trails", "--no-labels", "--no-masks", "--limit", "19")
    where = changed(overlay(folder)[18], 18, by=15)
    assert where[14:18, 10:40].any(axis=0).mean() > 0.8
    assert not where[14:18, 46:].any()
    assert not where[26:].any()


def test_a_line_counts_by_class_and_direction(bundle: Path, clip: Path) -> None:
    folder = done(bundle, clip, "--no-overlay", "--count-line", "30,0,30,48", "--count-line", "30,48,30,0")
    downwards, upwards = summary(folder)["lines"]
    assert downwards == {"line": [30, 0, 30, 48], "counts": {"person": {"to_right": 0, "to_left": 1}}}
    assert upwards == {"line": [30, 48, 30, 0], "counts": {"person": {"to_right": 1, "to_left": 0}}}
    away = done(bundle, clip, "--no-overlay", "--count-line", "0,40,64,40", "--overwrite")
    assert summary(away)["lines"] == [{"line": [0, 40, 64, 40], "counts": {}}]


def test_cuts_end_tracks_and_ids_go_on(bundle: Path) -> None:
    def scenes(index: int) -> NDArray[np.uint8]:
        blocks = np.kron(np.random.default_rng(index // 8).integers(0, 80, (6, 8, 1)), np.ones((8, 8, 3)))
        picture: NDArray[np.uint8] = (blocks * (1 + index // 8)).clip(0, 255).astype(np.uint8)
        picture[16:32, 2 * index : 2 * index + 16] = (250, 0, 0)
        return picture

    path = write_clip(Path("scenes.mp4").absolute(), 24, scenes)
    for options in (("--in-flight", "1"), ("--in-flight", "3"), ("--in-flight", "2", "--limit", "24")):
        folder = done(bundle, path, "--no-overlay", "--cuts", "--overwrite", *options)
        ids = [[shown["id"] for shown in line["objects"]] for line in lines(folder)]
        assert ids == [[at // 8] for at in range(24)]
        assert summary(folder)["events"]["cuts"] == 2
        assert summary(folder)["events"]["restarts"] == 0
    without = done(bundle, path, "--no-overlay", "--no-cuts", "--overwrite")
    assert {shown["id"] for line in lines(without) for shown in line["objects"]} == {0}


def test_remarks_of_a_source_are_in_the_summary_and_said_once(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for at in range(3):
        picture = PillowImage.fromarray(red_square(at)).convert("RGBA")
        picture.putpixel((0, 0), (0, 0, 0, 0))
        Path("frames").mkdir(exist_ok=True)
        picture.save(f"frames/{at}.png")
    folder = done(bundle, "frames", "--no-overlay")
    assert summary(folder)["remarks"] == ["what is transparent is read as white"]


def test_frames_come_from_the_standard_input(bundle: Path, clip: Path) -> None:
    program = "from visrt.cli import main; main()"
    common = ["track", "-", "--bundle", str(bundle), "--threads", "1", "--no-overlay"]
    raw = b"".join(red_square(at).tobytes() for at in range(6))
    mkv = write_clip(Path("a.mkv").absolute(), 6).read_bytes()
    for name, data, options in (
        ("raw", raw, ["--raw", f"{SIZE[1]}x{SIZE[0]}", "--raw-fps", "10"]),
        ("encoded", mkv, []),
    ):
        command = [sys.executable, "-c", program, *common, *options, "--out", name]
        ended = subprocess.run(command, input=data, capture_output=True, env=dict(os.environ))
        assert ended.returncode == 0, ended.stderr
        found = lines(Path(name))
        assert [line["time_s"] for line in found] == pytest.approx([at / 10 for at in range(6)], abs=1e-3)
        assert [len(line["objects"]) for line in found] == [1] * 6


REFUSED = [
    (("--no-overlay", "--boxes"), "--boxes is about the overlay"),
    (("--no-overlay", "--no-labels", "--opacity", "0.2"), "--no-labels is about the overlay"),
    (("--no-masks", "--opacity", "0.2"), "--opacity is that of the masks"),
    (("--raw", "64x48"), "give - as the source"),
    (("--raw-fps", "5"), "--raw WIDTHxHEIGHT says"),
    (("--overwrite",), "--overwrite needs --out"),
    (("--start", "3", "--end", "2"), "the end, 2 s, is not after the start, 3 s"),
    (("--start", "soon"), "no place in a video"),
    (("--classes", "persn,dog"), "'persn' (nearest: person); 'dog'. It has person, vehicle, animal"),
    (("--count-line", "0,0,100,10"), "100,10 outside the picture, which is 64 wide and 48 high"),
    (("--count-line", "0,0,-1,10"), "-1,10 outside the picture"),
    (("--count-line", "5,5,5,5"), "has no length"),
    (("--count-line", "5,5"), "expected x,y,x,y"),
    (("--value-range", "9,3"), "black below white"),
    (("--value-range", "dark"), "as 0,4095"),
    (("--font", "no.ttf"), "not a font file"),
    (("--list", "no.txt"), "not a list"),
    (("--bundle", "nothing"), "or a name of those that come with visrt: default"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED, ids=lambda value: " ".join(value) if value else "")
def test_what_contradicts_is_one_line_before_anything_is_run(
    bundle: Path, clip: Path, options: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_engines(*_: Any, **__: Any) -> None:
        raise AssertionError("engines are opened")

    monkeypatch.setattr("visrt.commands.track_run.Pipeline.open", open_engines)
    first = [] if "--bundle" in options else ["--bundle", str(bundle)]
    ended = CliRunner().invoke(app, ["track", str(clip), *first, *options])
    assert ended.exit_code in (2, 5), ended.output
    [line] = ended.stderr.splitlines()
    assert said in line
    assert not Path("runs").exists()


def test_no_source_is_refused() -> None:
    ended = CliRunner().invoke(app, ["track"])
    assert (ended.exit_code, "no SOURCE" in ended.stderr) == (2, True)


@pytest.mark.parametrize("verb", ["check", "convert", "draw"])
def test_the_verbs_for_sets_have_examples_and_tell_all_that_is_missing(verb: str) -> None:
    missing = CliRunner().invoke(app, ["data", verb])
    assert missing.exit_code == 2
    assert "Missing" in missing.stderr
    assert "'folder'" in missing.stderr
    assert ("'--out'" in missing.stderr) == (verb != "check")
    assert f"Example: visrt data {verb} " in CliRunner().invoke(app, ["data", verb, "--help"]).stdout


def test_all_missing_options_are_told_at_once() -> None:
    ended = CliRunner().invoke(app, ["calibrate"], env={"COLUMNS": "200"})
    assert ended.exit_code == 2
    assert "Missing '--bundle', '--source', '--out'." in ended.stderr
    one = CliRunner().invoke(app, ["build"], env={"COLUMNS": "200"})
    assert "Missing option '--bundle'" in one.stderr


def test_a_list_is_gone_on_with_and_summed_up(bundle: Path, clip: Path) -> None:
    write_clip(Path("short.mp4").absolute(), 4)
    write_clip(Path("cut.mp4").absolute(), 60, movflags="+faststart")
    whole = Path("cut.mp4").read_bytes()
    Path("cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    Path("text.mp4").write_text("no video")
    Path("all.txt").write_text(f"# clips\n{clip}\n\nshort.mp4\ncut.mp4\ntext.mp4\nmissing.mp4\n")

    first = track(bundle, "--list", "all.txt", "--no-overlay")

    assert first.exit_code == 4
    folder = Path("runs/track/all")
    assert "5 sources: 2 refused, 2 complete, 1 partial;" in first.stdout.replace("\n", " ")
    failures = (folder / "failures.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in failures) == ["cut.mp4", "missing.mp4", "text.mp4"]
    assert all(line.split("\t")[1] for line in failures)
    assert first.stdout.count("FPS, everything included") == 0

    before = (folder / "street" / "summary.json").read_bytes()
    Path("cut.mp4").write_bytes(whole)
    again = track(bundle, "--list", str(folder / "failures.txt"), "--out", str(folder), "--no-overlay")
    assert "3 sources: 2 refused, 1 complete;" in again.stdout
    assert summary(folder / "cut")["frames"]["processed"] == 60

    last = track(bundle, "--list", "all.txt", "--no-overlay")
    assert "5 sources: 3 finished before, 2 refused; 0 frames" in last.stdout
    assert (folder / "street" / "summary.json").read_bytes() == before

    Path("text.mp4").unlink()
    Path("all.txt").write_text("short.mp4\ncut.mp4\n")
    good = track(bundle, "--list", "all.txt", "--no-overlay")
    assert (good.exit_code, "2 sources: 2 finished before" in good.stdout) == (0, True)
    assert not (folder / "failures.txt").exists()


def test_a_bundle_that_comes_with_visrt_is_found_by_its_name(clip: Path) -> None:
    ended = CliRunner().invoke(app, ["track", str(clip), "--limit", "1", "--no-overlay", "--threads", "1"])
    assert ended.exit_code == 0, ended.stderr
    assert summary(Path("runs/track/street"))["categories"][0]["name"] == "person"
    named = CliRunner().invoke(app, ["inspect", "default"])
    assert named.exit_code == 0, named.stderr
