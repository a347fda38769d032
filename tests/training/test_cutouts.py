from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_sets import BLUE, HEIGHT, RED, WIDTH, box_mask, picture, rle, write_cutouts

from visrt.runtime.errors import DataError
from visrt.runtime.masks import Rle
from visrt.training.data.cutouts import CutoutFile, cut, cutout_files, cuttable, read_cutout
from visrt.training.data.frames import AnnotatedFrame, AnnotatedObject
from visrt.training.data.pictures import Picture, halvings


def scene(*boxes: tuple[int, int, int, int]) -> Picture:
    """A picture with an object for each box, later ones in front; textured, because flat objects are not cut out."""
    grain = np.random.default_rng(0).integers(0, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image = np.minimum(picture(dict.fromkeys(boxes, RED)).astype(int) + grain, 255).astype(np.uint8)
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for k, box in enumerate(boxes):
        ids[box_mask(*box)] = k + 1
    count = len(boxes)
    return Picture(halvings(image), ids, (0,) * count, tuple(range(count)))


def test_an_object_is_cut_along_its_mask() -> None:
    cutout = cut(scene((20, 30, 60, 40)), 0, 2)
    assert cutout is not None
    assert cutout.label == 2
    assert (cutout.levels[0][..., 3] > 0).sum() == 60 * 40
    assert not cutout.levels[0][[0, -1], :, 3].any()
    assert not cutout.levels[0][:, [0, -1], 3].any()


def test_pieces_of_hidden_objects_are_not_cut_out() -> None:
    split = scene((20, 40, 60, 20), (45, 10, 10, 80))  # a pole in front of the middle
    assert cut(split, 0, 0) is None
    assert cut(split, 1, 0) is not None


def test_black_and_flat_objects_are_not_cut_out() -> None:
    whole = scene((20, 30, 60, 40))
    flat = Picture(halvings(picture({(20, 30, 60, 40): RED})), whole.ids, whole.labels, whole.tracks)
    assert cut(flat, 0, 0) is None


def test_objects_cut_by_a_border_or_too_small_are_left(tmp_path: Path) -> None:
    boxes = {"inside": (20, 30, 60, 40), "left": (0, 30, 60, 40), "top": (20, 0, 60, 40), "small": (20, 30, 10, 10)}
    boxes["bottom"] = (20, HEIGHT - 40, 60, 40)
    objects = tuple(AnnotatedObject(0, i, _as_rle(box)) for i, box in enumerate(boxes.values()))
    frame = AnnotatedFrame(tmp_path, HEIGHT, WIDTH, objects)
    assert [list(boxes)[i] for i in cuttable(frame, 1600)] == ["inside", "bottom"]


def _as_rle(box: tuple[int, int, int, int]) -> Rle:
    coded = rle(box_mask(*box))
    return {"size": coded["size"], "counts": coded["counts"]}


def test_a_png_keeps_its_colours_inside_and_spreads_them_outside(tmp_path: Path) -> None:
    path = write_cutouts(tmp_path, dog="animal")
    (file,) = cutout_files(tmp_path / "cutouts", path)
    assert file.class_name == "animal"
    rgba = read_cutout(file, 1).levels[0]
    assert np.abs(rgba[rgba[..., 3] > 127][:, :3].astype(int) - BLUE).max() <= 1
    near_edge = (rgba[..., 3] == 0) & (cv2.dilate(rgba[..., 3], np.ones((3, 3), np.uint8)) > 0)
    assert np.abs(rgba[near_edge][:, :3].astype(int) - BLUE).max() < 60


@pytest.mark.parametrize(
    ("patterns", "told"),
    [({"cat*": "animal"}, "no pattern fits dog.png"), ({"*.png": "animal", "cat*": "animal"}, "'cat\\*' fits no PNG")],
)
def test_a_map_must_fit_the_folder_both_ways(tmp_path: Path, patterns: dict[str, str], told: str) -> None:
    path = write_cutouts(tmp_path, dog="animal")
    path.write_text(json.dumps(patterns))
    with pytest.raises(DataError, match=told):
        cutout_files(tmp_path / "cutouts", path)


def test_a_png_without_alpha_is_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "flat.png"), picture({}))
    with pytest.raises(DataError, match="alpha"):
        read_cutout(CutoutFile(tmp_path / "flat.png", "animal"), 0)
