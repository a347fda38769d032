"""Claims about the measurement of InsPro: what an arm changes, what forgetting means, what figures of boxes say."""

from __future__ import annotations

from dataclasses import replace
from math import nan
from pathlib import Path

import numpy as np
import pytest
import torch

from visrt.benchmarks.experiments import inspro_free_boxes
from visrt.benchmarks.experiments.inspro_free_boxes import RINGS, LaidBoxes, free_boxes, ring_densities
from visrt.benchmarks.experiments.inspro_lite import bound_by_macs, in_turns
from visrt.benchmarks.experiments.inspro_slots import fitting_slots
from visrt.benchmarks.experiments.inspro_training import DEDUP_ARMS, arm_settings, over_seeds
from visrt.models.inspro import InsPro
from visrt.models.interaction import StageOutputs
from visrt.runtime.errors import SettingsError
from visrt.runtime.settings import settings_from_file
from visrt.training.inspro_settings import InsProTrainSettings
from visrt.training.losses.inspro_targets import BoxTargets

RECIPE = Path(__file__).parents[3] / "training" / "recipes" / "inspro" / "small.json"
SETTINGS = settings_from_file(InsProTrainSettings, RECIPE)


def test_arms_differ_from_the_settings_in_one_thing() -> None:
    assert arm_settings(SETTINGS, "travelling", 2) == replace(SETTINGS, seed=2)
    alone = replace(SETTINGS.network, propagation="off")
    assert arm_settings(SETTINGS, "alone", 2) == replace(SETTINGS, seed=2, network=alone)
    for arm, weight in DEDUP_ARMS.items():
        other = arm_settings(SETTINGS, arm, 2)
        assert other.loss == replace(SETTINGS.loss, dedup=weight)
        assert replace(other, loss=SETTINGS.loss) == replace(SETTINGS, seed=2)


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, network=replace(SETTINGS.network, propagation="off")),
        replace(SETTINGS, phase="lite"),
        replace(SETTINGS, init=None),
    ],
)
def test_settings_that_have_no_two_arms_are_refused(settings: InsProTrainSettings) -> None:
    with pytest.raises(SettingsError, match="where all arms start"):
        arm_settings(settings, "alone", 0)


def test_a_share_of_nothing_counts_in_no_mean() -> None:
    told = over_seeds([{"rate": 0.5}, {"rate": nan}, {"rate": 0.7}])["rate"]
    assert told["seeds"] == [0.5, None, 0.7]
    assert told["mean"] == pytest.approx(0.6)
    assert over_seeds([{"rate": nan}])["rate"] == {"seeds": [None], "mean": None, "stdev": None}


def test_boxes_that_spread_are_farther_and_overlap_less(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = torch.tensor([[20.0, 10, 50, 50]])
    shifts = torch.tensor([[0.0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [-1, 0, -1, 0], [0, -1, 0, -1], [1, 1, 1, 1]])
    told = []
    for step in (1.0, 15.0):
        laid = LaidBoxes((64, 96), objects, objects, objects + step * shifts + step)
        monkeypatch.setattr(inspro_free_boxes, "laid_boxes", lambda *_, laid=laid: [laid])
        told.append(free_boxes(InsPro.__new__(InsPro), SETTINGS))
    crowded, spread = told
    assert crowded["centres_within_the_margin"] == 6 > spread["centres_within_the_margin"]
    assert crowded["covering_an_object"] == 6 > spread["covering_an_object"]
    assert spread["nearest_centres_diagonals"] == pytest.approx(15 * crowded["nearest_centres_diagonals"], rel=1e-4)
    assert spread["largest_iou"] < crowded["largest_iou"]
    assert spread["iou_between_them"] < crowded["iou_between_them"]


def test_densities_of_rings_count_free_centres_in_diagonals_of_the_object() -> None:
    objects = torch.tensor([[0.0, 0, 30, 40], [100, 100, 106, 108]])
    # Centres 0 and 20 pixels from the large object's (diagonal 50), far from the small one's.
    free = torch.tensor([[10.0, 15, 20, 25], [30, 15, 40, 25]])
    laid = LaidBoxes((64, 96), objects, objects, free)
    densities = ring_densities([laid, laid])
    areas = np.pi * np.diff(RINGS**2)
    expected = np.zeros(len(areas))
    expected[[0, 5]] = 0.5 / areas[[0, 5]]
    np.testing.assert_allclose(densities, expected)


def test_a_slot_fits_an_object_if_its_box_is_the_object_s() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 0, 90, 30]])
    last = StageOutputs(torch.zeros(3, 3), boxes, torch.zeros(3, 4))
    wanted = torch.tensor([[51.0, 1, 90, 30], [19, 20, 40, 41], [0, 30, 5, 60]])
    truth = BoxTargets(torch.tensor([0, 1, 2]), torch.tensor([7, 8, 9]), wanted, None, (64, 96))
    assert fitting_slots(last, truth, SETTINGS.loss) == {7: 2, 8: 1}


def test_the_bound_is_one_for_key_frames_alone_and_ends_at_the_backbone() -> None:
    macs = {"frame": 80, "head": 20, "head_lite": 0, "masks": 5}
    assert bound_by_macs(macs, 1) == 1
    assert bound_by_macs(macs, 10) == pytest.approx(100 / 82)


def test_calls_take_turns_and_the_first_round_is_warm_up() -> None:
    order: list[str] = []
    taken = in_turns({name: lambda name=name: order.append(name) for name in "ab"}, 2)  # type: ignore[misc]
    assert order == ["a", "b"] * 3
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 2, "b": 2}
