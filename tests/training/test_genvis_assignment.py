"""Which slot learns which object over the clips of a video, and the losses that follow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden import golden_sets, load_golden
from torch import Tensor

from visrt.training.genvis_losses import class_loss, loss_points, mask_losses
from visrt.training.genvis_targets import (
    ClipTargets,
    Held,
    assigned_anew,
    assigned_unified,
    clip_cost,
    nothing_held,
)
from visrt.training.targets import MatchSettings

SETS = golden_sets("genvis_uvla_*")


def cost_for(*pairs: tuple[int, int], slots: int = 4, objects: int = 3) -> Tensor:
    """Cost [S, N] that is low for the (slot, object) `pairs`."""
    cost = torch.full((slots, objects), 5.0)
    for slot, number in pairs:
        cost[slot, number] = 0.0
    return cost


def seen(*flags: int) -> Tensor:
    return torch.tensor(flags, dtype=torch.bool)


@pytest.mark.parametrize("path", SETS)
def test_golden_genvis_assignment_and_losses_over_the_clips_of_a_video(path: Path) -> None:
    golden = load_golden(path)
    masks, labels = torch.from_numpy(golden["gt_masks"]).float(), torch.from_numpy(golden["gt_labels"])
    held = nothing_held(len(labels))
    for clip in range(len(golden["vis_per_clip"])):
        name = f"clip{clip}/"
        visible = torch.from_numpy(golden[name + "valid_inst"])
        targets = ClipTargets(labels, masks[:, clip : clip + 1], visible)
        logits = torch.from_numpy(golden[name + "pred_logits"])[0, 0]
        mask_logits = torch.from_numpy(golden[name + "pred_masks"])[0, 0]
        assert (visible & ~held.seen).tolist() == golden[name + "new_inst"].tolist()

        points = torch.from_numpy(golden[name + "match_points_xy01"])
        held = assigned_unified(clip_cost(logits, mask_logits, targets, points, MatchSettings()), visible, held)
        assert held.slots.tolist() == golden[name + "assigned_query_per_gt"].tolist()

        sampled = torch.from_numpy(golden[name + "loss_points_xy01"])
        bce, dice = mask_losses(mask_logits, targets, held, sampled)
        count = int(visible.sum())
        losses = {
            "ce": class_loss(logits, targets, held, no_object_weight=0.1),
            "mask": bce / count,
            "dice": dice / count,
        }
        for kind, loss in losses.items():
            torch.testing.assert_close(
                loss, torch.from_numpy(golden[f"{name}loss_genvis_{kind}_unweighted"]), rtol=1e-5, atol=1e-5
            )


def test_an_object_keeps_its_slot_even_where_another_fits_better_now() -> None:
    held = assigned_unified(cost_for((2, 0), (1, 1)), seen(1, 1, 0), nothing_held(3))
    later = assigned_unified(cost_for((0, 0), (3, 1)), seen(1, 1, 0), held)
    assert held.slots[:2].tolist() == later.slots[:2].tolist() == [2, 1]


def test_a_newcomer_takes_no_slot_whose_object_is_visible() -> None:
    held = assigned_unified(cost_for((2, 0)), seen(1, 0, 0), nothing_held(3))
    later = assigned_unified(cost_for((2, 1)), seen(1, 1, 0), held)
    assert int(later.slots[0]) == 2
    assert int(later.slots[1]) != 2


def test_a_newcomer_may_take_the_slot_of_an_object_that_is_away() -> None:
    held = assigned_unified(cost_for((2, 0)), seen(1, 0, 0), nothing_held(3))
    later = assigned_unified(cost_for((2, 1)), seen(0, 1, 0), held)
    assert later.slots[:2].tolist() == [2, 2]


def test_an_object_that_comes_back_has_its_slot() -> None:
    held = assigned_unified(cost_for((2, 0)), seen(1, 0, 0), nothing_held(3))
    away = assigned_unified(cost_for((0, 1)), seen(0, 1, 0), held)
    back = assigned_unified(cost_for((1, 0), (3, 1)), seen(1, 1, 0), away)
    assert back.slots[:2].tolist() == [2, 0]
    assert back.seen.tolist() == [True, True, False]


def test_without_unified_assignment_every_clip_is_matched_by_itself() -> None:
    held = assigned_anew(cost_for((2, 0)), seen(1, 0, 0), nothing_held(3))
    later = assigned_anew(cost_for((1, 0)), seen(1, 0, 0), held)
    assert [int(held.slots[0]), int(later.slots[0])] == [2, 1]


def test_a_cost_that_is_nan_does_not_stop_the_run() -> None:
    cost = cost_for((2, 0))
    cost[0] = torch.nan
    assert assigned_unified(cost, seen(1, 1, 0), nothing_held(3)).slots[0] == 2


def test_the_slot_of_an_absent_object_learns_no_object_and_no_mask() -> None:
    masks = torch.rand(4, 2, 8, 8, requires_grad=True)
    targets = ClipTargets(torch.tensor([1, 0]), torch.ones(2, 2, 32, 32), seen(1, 0))
    held = Held(torch.tensor([3, 0]), seen(1, 1))
    points = loss_points(masks, targets, held, 20, 3.0, 0.75)
    assert points.shape == (2, 20, 2)
    bce, dice = mask_losses(masks, targets, held, points)
    (bce + dice).backward()
    assert masks.grad is not None
    assert masks.grad[3].any()
    assert not masks.grad[:3].any()
    logits = torch.zeros(4, 3)
    logits[3, 1], logits[:3, 2] = 20, 20
    assert class_loss(logits, targets, held, 0.1) < 1e-3


def test_a_clip_without_objects_costs_no_mask_loss() -> None:
    masks = torch.rand(4, 1, 8, 8)
    targets = ClipTargets(torch.tensor([1]), torch.zeros(1, 1, 32, 32), seen(0))
    assert sum(mask_losses(masks, targets, nothing_held(1), torch.zeros(0, 9, 2))) == 0
