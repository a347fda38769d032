"""Claims about `visrt data`: checking, converting and drawing annotated sets."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from annotated_sets import SIZE, box_rle, set_values, write_set
from official_layouts import make_split
from typer.testing import CliRunner, Result

from visrt.cli import app
from visrt.training.data.set_formats import load_annotations


def data(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["data", *(str(argument) for argument in arguments)])


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if line.startswith("│")]


def test_check_counts_what_a_set_holds(tmp_path: Path) -> None:
    values = set_values(videos=2)
    values["annotations"][3]["iscrowd"] = 1
    values["annotations"][0]["segmentations"][1] = None
    ended = data("check", write_set(tmp_path, values))
    assert ended.exit_code == 0, ended.stderr
    summary, dog, car = rows(ended.stdout)
    assert summary == ["youtube-vis", "2", "6", "48 x 64 (2)"]
    assert (dog, car) == (["dog", "2", "2", "5", "0"], ["car", "1", "1", "3", "1"])
    assert ended.stderr == ""


def test_check_takes_a_split_of_a_public_set_and_leaves_out_what_is_not_on_disk(tmp_path: Path) -> None:
    root = make_split(tmp_path, "ytvis19", "train", frames=2).folder
    make_split(tmp_path, "ytvis19", "valid", frames=2)
    (root / "valid" / "JPEGImages" / "video2" / "00001.jpg").unlink()

    assert "2 sets; give one of" in data("check", root).stderr
    refused = data("check", root, "--split", "valid")
    assert refused.exit_code == 2
    assert "1 of 2 videos are not, or not whole, below" in refused.stderr
    assert "video2 (1 of 2 frames, the first 00001.jpg)" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1

    ended = data("check", root, "--split", "valid", "--skip-missing")
    assert ended.exit_code == 0, ended.stderr
    assert rows(ended.stdout)[0] == ["youtube-vis", "1", "2", "72 x 128 (1)"]
    assert "video2 (1 of 2 frames, the first 00001.jpg), and left out" in ended.stderr


def test_check_says_what_a_set_without_annotations_serves_for(tmp_path: Path) -> None:
    places = make_split(tmp_path, "ovis", "valid", annotated=False, frames=2)
    ended = data("check", places.folder / places.images)
    assert ended.exit_code == 0, ended.stderr
    assert "no annotations, as in files for evaluation servers: this set serves for `visrt eval" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert data("draw", places.folder / places.images, "--out", tmp_path / "sheet.png").exit_code == 0


def test_a_set_without_annotations_stays_one_where_the_format_can_say_so(tmp_path: Path) -> None:
    folder = make_split(tmp_path, "ytvis21", "valid", annotated=False, frames=2).folder
    for form in ("youtube-vis", "coco"):
        out = tmp_path / form
        assert data("convert", folder, "--to", form, "--out", out).exit_code == 0
        assert not load_annotations(out).annotated
    refused = data("convert", folder, "--to", "davis", "--out", tmp_path / "davis")
    assert refused.exit_code == 2
    assert "the format davis needs annotations" in refused.stderr
    assert not (tmp_path / "davis").exists()


@pytest.mark.parametrize("name", ["uvo", "burst"])
def test_sets_of_other_forms_convert_to_the_one_that_everything_reads(name: str, tmp_path: Path) -> None:
    places = make_split(tmp_path, name, "valid", frames=4)
    ended = data("convert", places.folder, "--out", tmp_path / "out")
    assert ended.exit_code == 0, ended.stderr
    before, after = load_annotations(places.folder), load_annotations(tmp_path / "out")
    assert [[t.masks for t in v.tracks] for v in before.videos] == [[t.masks for t in v.tracks] for v in after.videos]


def test_check_counts_the_chosen_classes_and_says_what_is_left_out(tmp_path: Path) -> None:
    ended = data("check", write_set(tmp_path, set_values(videos=2)), "--classes", "car")
    assert ended.exit_code == 0, ended.stderr
    assert rows(ended.stdout)[1:] == [["car", "2", "2", "6", "0"]]
    assert f"{tmp_path}/instances.json: the class map leaves out 2 annotated objects: 2 dog" in ended.stderr


def odd_set() -> dict[str, Any]:
    values = set_values(videos=3)
    values["categories"].append({"id": 9, "name": "bird"})
    values["annotations"] = values["annotations"][:4]
    values["annotations"][1]["segmentations"] = [None] * 3
    values["annotations"][2]["segmentations"][1] = box_rle(0, 0, 0, 0)
    values["annotations"].append({**values["annotations"][3], "id": 77})
    return values


def test_check_names_what_looks_wrong_with_its_first_place(tmp_path: Path) -> None:
    ended = data("check", write_set(tmp_path, odd_set()))
    assert ended.exit_code == 0, ended.stderr
    assert ended.stderr.splitlines() == [
        "visrt: 1 objects that are in no frame, the first: object 1 of video1",
        "visrt: 1 masks given without a pixel, the first: object 0 of video2",
        "visrt: 1 videos without an object, the first: video3",
        "visrt: 1 objects given twice, the first: of video2",
        "visrt: 1 classes without an object, the first: bird",
    ]


def test_check_refuses_pictures_of_another_size_than_their_annotations(tmp_path: Path) -> None:
    folder = write_set(tmp_path, set_values())
    cv2.imwrite(str(folder / "JPEGImages/video1/00001.png"), np.zeros((10, 20, 3), np.uint8))
    ended = data("check", folder)
    assert ended.exit_code == 2
    assert "1 pictures cannot be used: " in ended.stderr
    assert "00001.png: 10 x 20 pixels (height x width), its annotations say 48 x 64" in ended.stderr


def test_a_torn_picture_shows_when_it_is_decoded(tmp_path: Path) -> None:
    folder = write_set(tmp_path, set_values())
    torn = folder / "JPEGImages/video1/00002.png"
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3)).astype(np.uint8)
    torn.write_bytes(cv2.imencode(".jpg", noise)[1].tobytes()[:-400])
    assert data("check", folder).exit_code == 0
    ended = data("check", folder, "--pictures", "decode")
    assert ended.exit_code == 2
    assert "00002.png: not a readable image" in ended.stderr


@pytest.mark.parametrize("look", ["headers", "decode"])
@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_giant_picture_is_refused_before_it_is_decoded(side: int, look: str, tmp_path: Path) -> None:
    folder = write_set(tmp_path, set_values())
    path = folder / "JPEGImages/video1/00001.png"
    content = bytearray(path.read_bytes())
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    ended = data("check", folder, "--pictures", look)
    assert ended.exit_code == 2
    assert "00001.png: " in ended.stderr
    assert str(2**26) in ended.stderr


def test_a_picture_held_upright_by_its_exif_has_the_size_the_evaluation_sees(tmp_path: Path) -> None:
    from PIL import ExifTags, Image

    folder = write_set(tmp_path, set_values())
    turned = Image.new("RGB", SIZE)
    exif = turned.getexif()
    exif[ExifTags.Base.Orientation] = 6
    turned.save(folder / "JPEGImages/video1/00000.png", exif=exif)
    assert data("check", folder).exit_code == 0
    assert data("check", folder, "--pictures", "decode").exit_code == 0


def test_check_tells_the_json_path_of_a_fault_in_one_line(tmp_path: Path) -> None:
    values = set_values()
    values["annotations"][1]["segmentations"].pop()
    ended = data("check", write_set(tmp_path, values))
    assert ended.exit_code == 2
    assert "instances.json: annotations[1].segmentations: expected one entry for each of 3 frames" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["coco", "davis", "mots"])
def test_convert_there_and_back_keeps_every_mask(name: str, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", set_values(videos=2))
    there = data("convert", folder, "--out", tmp_path / name, "--to", name, "--pictures", "link")
    assert there.exit_code == 0, there.stderr
    assert f"{name}, 2 videos, 4 objects, read again without a fault" in there.stdout
    back = data("convert", tmp_path / name, "--from", name, "--out", tmp_path / "back")
    assert back.exit_code == 0, back.stderr
    before, after = load_annotations(folder), load_annotations(tmp_path / "back")
    for one, other in zip(before.videos, after.videos, strict=True):
        masks = {(before.classes[track.label], str(track.masks)) for track in one.tracks}
        assert masks == {(after.classes[track.label], str(track.masks)) for track in other.tracks}


def test_convert_writes_over_nothing(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", set_values())
    ended = data("convert", folder, "--out", folder)
    assert ended.exit_code == 4
    assert "give --out an empty or a new folder" in ended.stderr
    assert json.loads((folder / "instances.json").read_text()) == set_values()


def test_convert_takes_annotations_and_pictures_from_elsewhere(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", set_values())
    (folder / "JPEGImages").rename(tmp_path / "pictures")
    (folder / "instances.json").rename(folder / "train.json")
    places = ("--annotations", folder / "train.json", "--images", tmp_path / "pictures")
    ended = data("convert", folder, *places, "--out", tmp_path / "out")
    assert ended.exit_code == 0, ended.stderr
    assert len(load_annotations(tmp_path / "out").videos[0].tracks) == 2


def test_draw_shows_the_sample_its_seed_draws(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", set_values(videos=4))

    def drawn(*options: str) -> Any:
        ended = data("draw", folder, "--out", tmp_path / "sheet.png", *options)
        assert ended.exit_code == 0, ended.stderr
        return cv2.imread(str(tmp_path / "sheet.png"))

    one, six = drawn("--videos", "1"), drawn("--videos", "6", "--frames", "2")
    assert six.shape[0] == 4 * one.shape[0], "a row for each of the four videos"
    assert six.shape[1] * 3 == one.shape[1] * 2, "as many columns as frames are asked for"
    assert np.array_equal(one, drawn("--videos", "1"))
    assert len(np.unique(one.reshape(-1, 3), axis=0)) > 20, "masks and labels are drawn over the grey picture"


def test_photos_share_a_row(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", set_values(videos=5, frames=1))
    ended = data("draw", folder, "--out", tmp_path / "sheet.png", "--frames", "3")
    assert ended.exit_code == 0, ended.stderr
    height, width = np.asarray(cv2.imread(str(tmp_path / "sheet.png"))).shape[:2]
    tile = round(480 * SIZE[0] / SIZE[1])
    assert 2 * tile < height < 3 * tile
    assert 3 * 480 <= width < 4 * 480


def test_a_sheet_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", set_values())
    ended = data("draw", folder, "--out", tmp_path / "no" / "sheet.png")
    assert ended.exit_code == 2
    assert f"sheet.png: there is no folder {tmp_path}/no; make it first" in ended.stderr
