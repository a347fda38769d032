"""Claims about the measure of re-identification, and about the comparison of CTVIS's training with MinVIS's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from annotated_sets import box_rle, write_set
from torch import Tensor

from visrt.benchmarks.experiments.reid_training import arm_settings, paired
from visrt.benchmarks.experiments.reidentification import COMPARED, found_again
from visrt.models.decoder import LayerPrediction
from visrt.runtime.errors import DataError, SettingsError
from visrt.runtime.settings import settings_from_file
from visrt.training.data.annotations import AnnotatedSet
from visrt.training.data.set_formats import load_annotations
from visrt.training.settings import TrainSettings

ROOT = Path(__file__).parents[3]
SIZE = (64, 96)
FRAMES = 5
RED, GREEN = (30, 30, 230), (30, 230, 30)


def moving(y: int, gone: tuple[int, ...] = ()) -> list[Any]:
    return [None if t in gone else box_rle(8 + 8 * t, y, 32, 16, SIZE) for t in range(FRAMES)]


@pytest.fixture
def annotated(tmp_path: Path) -> AnnotatedSet:
    """A red and a green box that move right; the green one is gone from frame 2."""
    names = [f"one/{t}.png" for t in range(FRAMES)]
    tracks = [moving(8), moving(40, gone=(2,))]
    values = {
        "categories": [{"id": 1, "name": "box"}],
        "videos": [{"id": 1, "height": SIZE[0], "width": SIZE[1], "file_names": names}],
        "annotations": [
            {"id": i + 1, "iscrowd": 0, "video_id": 1, "category_id": 1, "segmentations": rles}
            for i, rles in enumerate(tracks)
        ],
    }
    write_set(tmp_path, values)
    for t, name in enumerate(names):
        picture = np.full((*SIZE, 3), 120, np.uint8)
        for rles, y, colour in ((tracks[0], 8, RED), (tracks[1], 40, GREEN)):
            if rles[t] is not None:
                picture[y : y + 16, 8 + 8 * t : 40 + 8 * t] = colour
        cv2.imwrite(str(tmp_path / "JPEGImages" / name), picture)
    return load_annotations(tmp_path)


class ColourNetwork:
    """Query 0 finds red, query 1 green, query 2 nothing. Its embeddings are one-hot by `embedding_of[frame][query]`."""

    class settings:  # noqa: N801 - stands for an instance
        pixel_mean, pixel_std = (120.0, 120.0, 120.0), (1.0, 1.0, 1.0)

    def __init__(self, *embedding_of: tuple[int, int, int]) -> None:
        self.embedding_of, self.frame = embedding_of, 0

    def layers(self, images: Tensor) -> tuple[list[LayerPrediction], Tensor]:
        small = torch.nn.functional.avg_pool2d(images, 4)
        masks = torch.stack((small[:, 0] - small[:, 1], small[:, 1] - small[:, 0], -torch.ones_like(small[:, 0])), 1)
        order = self.embedding_of[self.frame % len(self.embedding_of)]
        self.frame += 1
        queries = torch.eye(3)[list(order)][None]
        logits = torch.tensor([[[5.0, 0.0], [5.0, 0.0], [0.0, 5.0]]])
        return [LayerPrediction(logits, torch.eye(3)[None], queries)], masks - 20

    def embeddings(self, queries: Tensor) -> Tensor:
        return 2 * queries


def rates(network: ColourNetwork, annotated: AnnotatedSet, distance: int) -> set[tuple[int, int]]:
    found = found_again(network, annotated, [distance])  # type: ignore[arg-type]  # a stand-in
    assert set(found) == set(COMPARED)
    return {(found[name][distance].right, found[name][distance].wanted) for name in COMPARED}


def test_steady_embeddings_find_every_object_that_is_in_both_frames(annotated: AnnotatedSet) -> None:
    assert rates(ColourNetwork((0, 1, 2)), annotated, 1) == {(6, 6)}
    assert rates(ColourNetwork((0, 1, 2)), annotated, 2) == {(4, 4)}
    assert rates(ColourNetwork((0, 1, 2)), annotated, 9) == {(0, 0)}


def test_embeddings_that_swap_find_the_other_object_or_the_background(annotated: AnnotatedSet) -> None:
    assert rates(ColourNetwork((0, 1, 2), (1, 0, 2)), annotated, 1) == {(0, 6)}
    assert rates(ColourNetwork((0, 1, 2), (1, 0, 2)), annotated, 2) == {(4, 4)}
    # Red and background change places: green alone is found, in the two pairs of frames it is in.
    assert rates(ColourNetwork((0, 1, 2), (2, 1, 0)), annotated, 1) == {(2, 6)}


def test_pictures_that_do_not_fit_the_network_are_refused(tmp_path: Path) -> None:
    values = {
        "categories": [{"id": 1, "name": "box"}],
        "videos": [{"id": 1, "height": 48, "width": 64, "file_names": ["one/0.png"]}],
        "annotations": [],
    }
    with pytest.raises(DataError, match="multiples of 32"):
        found_again(ColourNetwork((0, 1, 2)), load_annotations(write_set(tmp_path, values)), [1])  # type: ignore[arg-type]


def test_the_arms_differ_in_the_losses_over_frames_only() -> None:
    settings = settings_from_file(TrainSettings, ROOT / "training" / "recipes" / "ctvis" / "small.json")
    ctvis, minvis = (arm_settings(settings, arm, 3) for arm in ("ctvis", "minvis"))
    assert ctvis.loss.contrast == "released"
    assert (minvis.loss.contrast, minvis.loss.identity_weight) == ("off", 0.0)
    assert (ctvis.seed, ctvis.data, ctvis.optim, ctvis.init) == (minvis.seed, minvis.data, minvis.optim, minvis.init)
    with pytest.raises(SettingsError, match="contrast"):
        arm_settings(minvis, "ctvis", 0)


def test_differences_are_taken_seed_by_seed() -> None:
    table = paired({"ctvis": [{"a": 3.0}, {"a": 5.0}], "minvis": [{"a": 1.0}, {"a": 4.0}]})
    assert table["a"]["ctvis_less_minvis"]["seeds"] == [2.0, 1.0]
    assert table["a"]["ctvis_less_minvis"]["mean"] == 1.5
    assert table["a"]["minvis"]["stdev"] == pytest.approx(4.5**0.5)


def test_a_share_of_nothing_counts_in_no_mean() -> None:
    nothing = float("nan")
    table = paired({"ctvis": [{"a": 3.0}, {"a": 5.0}], "minvis": [{"a": nothing}, {"a": 4.0}]})
    assert table["a"]["minvis"] == {"seeds": [None, 4.0], "mean": 4.0, "stdev": None}
    assert table["a"]["ctvis_less_minvis"]["mean"] == 1.0
