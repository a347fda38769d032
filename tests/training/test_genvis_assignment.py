"""Which slot learns which object over the clips of a video, and the losses that follow."""

from __future__ import annotations

import pytest
import torch
from golden import Golden, golden_sets
from torch import Tensor

from visrt.training.losses.genvis import class_loss, learned, mask_losses, similarity_loss, target_classes
from visrt.training.losses.genvis_targets import (
    ClipTargets,
    Held,
    assigned_by_correspondence,
    assigned_each_clip,
    assigned_strict,
    assigned_unified,
    at_points_of_frames,
    clip_cost,
    nothing_held,
    video_targets,
)
from visrt.training.losses.targets import FrameTargets, MatchSettings


def cost_for(*pairs: tuple[int, int], slots: int = 4, objects: int = 3) -> Tensor:
    """Cost [S, N] that is low for the (slot, object) `pairs`."""
    cost = torch.full((slots, objects), 5.0)
    for slot, number in pairs:
        cost[slot, number] = 0.0
    return cost


def seen(*flags: int) -> Tensor:
    return torch.tensor(flags, dtype=torch.bool)


@pytest.mark.parametrize("golden", golden_sets("genvis", "assignment"), indirect=True)
def test_golden_genvis_assignment_and_losses_over_the_clips_of_a_video(golden: Golden) -> None:
    config = golden.config
    window, match = config["W"], MatchSettings(config["cost_class"], config["cost_mask"], config["cost_dice"])
    masks, labels = torch.from_numpy(golden["gt_masks"]).float(), torch.from_numpy(golden["gt_labels"])
    held = nothing_held(len(labels))
    for clip, name in golden.parts("clip").items():
        visible = torch.from_numpy(golden[name + "valid_inst"])
        targets = ClipTargets(labels, masks[:, clip * window : (clip + 1) * window], visible)
        logits = torch.from_numpy(golden[name + "pred_logits"])[0, 0]
        mask_logits = torch.from_numpy(golden[name + "pred_masks"])[0, 0]
        assert (visible & ~held.seen).tolist() == golden[name + "new_inst"].tolist()

        points = torch.from_numpy(golden[name + "match_points_xy01"])
        sampled = at_points_of_frames(mask_logits, points), at_points_of_frames(targets.masks, points)
        cost = clip_cost(logits, sampled[0], labels, sampled[1], match)
        held = assigned_unified(cost, visible, held)
        assert held.slots.tolist() == golden[name + "assigned_query_per_gt"].tolist()

        of_losses = torch.from_numpy(golden[name + "loss_points_xy01"])
        bce, dice = mask_losses(mask_logits[held.slots[visible]], targets.masks[visible], of_losses)
        count = int(visible.sum())
        losses = {
            "ce": class_loss(logits[None], target_classes(logits, targets, held)[None], no_object_weight=config["eos"]),
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


def test_under_strict_assignment_a_newcomer_takes_no_slot_that_was_ever_given() -> None:
    held = assigned_strict(cost_for((2, 0)), seen(1, 0, 0), nothing_held(3))
    later = assigned_strict(cost_for((2, 1)), seen(0, 1, 0), held)
    last = assigned_strict(cost_for((2, 2)), seen(0, 0, 1), later)
    assert int(later.slots[0]) == 2
    assert len(set(last.slots.tolist())) == 3
    back = assigned_strict(cost_for((0, 0)), seen(1, 1, 1), last)
    assert torch.equal(back.slots, last.slots)


def test_under_correspondence_the_first_clip_s_pairs_hold_and_newcomers_are_not_learned() -> None:
    held = assigned_by_correspondence(cost_for((2, 0)), seen(1, 0, 0), nothing_held(3))
    later = assigned_by_correspondence(cost_for((0, 0), (1, 1)), seen(1, 1, 0), held)
    targets = ClipTargets(torch.tensor([1, 0, 0]), torch.ones(3, 1, 8, 8), seen(1, 1, 0))
    assert int(later.slots[0]) == 2
    assert learned(targets, later).tolist() == [True, False, False]
    assert target_classes(torch.zeros(4, 3), targets, later).tolist() == [2, 2, 1, 2]


def test_under_correspondence_empty_clips_before_the_first_object_fix_nothing() -> None:
    empty = assigned_by_correspondence(cost_for((2, 0)), seen(0, 0, 0), nothing_held(3))
    first = assigned_by_correspondence(cost_for((1, 0), (3, 1)), seen(1, 1, 0), empty)
    assert first.slots[:2].tolist() == [1, 3]
    assert first.seen.tolist() == [True, True, False]


def test_an_object_that_comes_back_has_its_slot() -> None:
    held = assigned_unified(cost_for((2, 0)), seen(1, 0, 0), nothing_held(3))
    away = assigned_unified(cost_for((0, 1)), seen(0, 1, 0), held)
    back = assigned_unified(cost_for((1, 0), (3, 1)), seen(1, 1, 0), away)
    assert back.slots[:2].tolist() == [2, 0]
    assert back.seen.tolist() == [True, True, False]


def test_without_unified_assignment_every_clip_is_matched_by_itself() -> None:
    held = assigned_each_clip(cost_for((2, 0)), seen(1, 0, 0), nothing_held(3))
    later = assigned_each_clip(cost_for((1, 0)), seen(1, 0, 0), held)
    assert [int(held.slots[0]), int(later.slots[0])] == [2, 1]


def test_a_cost_that_is_nan_does_not_stop_the_run() -> None:
    cost = cost_for((2, 0))
    cost[0] = torch.nan
    assert assigned_unified(cost, seen(1, 1, 0), nothing_held(3)).slots[0] == 2


def test_the_slot_of_an_absent_object_learns_no_object() -> None:
    targets = ClipTargets(torch.tensor([1, 0]), torch.ones(2, 2, 32, 32), seen(1, 0))
    wanted = target_classes(torch.zeros(4, 3), targets, Held(torch.tensor([3, 0]), seen(1, 1)))
    assert wanted.tolist() == [2, 2, 2, 1]
    logits = torch.zeros(1, 4, 3)
    logits[0, 3, 1], logits[0, :3, 2] = 20, 20
    assert class_loss(logits, wanted[None], 0.1) < 1e-3


def test_the_clips_of_a_video_name_the_same_objects_in_the_same_order() -> None:
    one, two = torch.zeros(1, 4, 6), torch.zeros(2, 4, 6)
    one[:, 0], two[0, 1], two[1, 2] = 1, 1, 1
    frames = [
        FrameTargets(torch.tensor([7]), one, torch.tensor([2])),
        FrameTargets(torch.tensor([], dtype=torch.int64), one[:0], torch.tensor([], dtype=torch.int64)),
        FrameTargets(torch.tensor([5, 7]), two, torch.tensor([0, 2])),
        FrameTargets(torch.tensor([6]), one, torch.tensor([1])),
    ]
    clips = video_targets(frames, 2)
    assert [clip.labels.tolist() for clip in clips] == [[5, 6, 7]] * 2
    assert [clip.visible.tolist() for clip in clips] == [[False, False, True], [True, True, True]]
    assert torch.equal(clips[1].masks[2], torch.stack([two[1], torch.zeros(4, 6)]))
    assert clips[0].masks.shape == (3, 2, 4, 6)
    assert [len(clip.labels) for clip in video_targets(frames[1:2] * 2, 1)] == [0, 0]


def test_similarity_counts_pairs_within_a_group_only() -> None:
    alike = torch.tensor([[3.0, 0.0], [3.0, 0.0]])
    other = torch.tensor([[0.0, 3.0], [0.0, -3.0]])
    same, different = torch.tensor([4, 4]), torch.tensor([4, 5])
    assert similarity_loss([(alike, same), (other, different)]) < 1e-3
    assert similarity_loss([(alike, different)]) > 4
    assert similarity_loss([(alike[:0], same[:0])]) == 0
