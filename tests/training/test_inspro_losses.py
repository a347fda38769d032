"""InsPro's matching over a clip and its losses: an object keeps its query, free boxes keep off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from visrt.models.interaction import StageOutputs
from visrt.training.losses.boxes import boxes_of_masks, pairwise_giou, pairwise_iou
from visrt.training.losses.inspro import (
    FramePrediction,
    InsProLossSettings,
    clip_losses,
    dedup_loss,
    focal_loss,
    matches_of_clip,
)
from visrt.training.losses.inspro_targets import BoxCosts, BoxTargets, consistent_matches, pairwise_costs
from visrt.training.losses.targets import Matches

SIZE = (64, 96)
CLASSES, QUERIES = 3, 6


def target(ids: list[int], boxes: list[list[float]] | None = None) -> BoxTargets:
    """Objects of class id % 3; object i is a square of 16 pixels at 12 i by default."""
    placed = torch.tensor(boxes or [[12 * i, 8, 12 * i + 16, 24] for i in ids]).float().reshape(-1, 4)
    masks = torch.zeros(len(ids), *SIZE)
    for mask, (x1, y1, x2, y2) in zip(masks, placed.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return BoxTargets(
        torch.tensor([i % CLASSES for i in ids], dtype=torch.int64), torch.tensor(ids), placed, masks, SIZE
    )


def stage(boxes: Tensor, labels: dict[int, int] | None = None) -> StageOutputs:
    """A stage with these boxes whose queries in `labels` are sure of a class."""
    logits = torch.full((len(boxes), CLASSES), -6.0)
    for query, label in (labels or {}).items():
        logits[query, label] = 6.0
    return StageOutputs(logits.requires_grad_(), boxes.clone().requires_grad_(), torch.zeros(len(boxes), 8))


def prediction(*stages: StageOutputs, masks: bool = True) -> FramePrediction:
    torch.manual_seed(0)
    parameters = torch.randn(QUERIES, 169).requires_grad_()
    return FramePrediction(
        stages, [None] * (len(stages) - 1) + [parameters if masks else None], torch.randn(8, 8, 12), 64.0
    )


def scattered(seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    low = torch.rand(QUERIES, 2) * torch.tensor([60.0, 40.0])
    return torch.cat((low, low + 8 + torch.rand(QUERIES, 2) * 24), dim=-1)


def pairs(matches: Matches, truth: BoxTargets) -> dict[int, int]:
    """Query by object id."""
    return dict(zip(truth.ids[matches.objects].tolist(), matches.queries.tolist(), strict=True))


def test_costs_are_those_of_sparse_rcnn() -> None:
    seen, truth = stage(scattered(), {0: 1}), target([1, 4])
    cost = pairwise_costs(seen, truth, BoxCosts()).numpy()
    chance = torch.sigmoid(torch.tensor(6.0)).item()
    focal = 0.25 * (1 - chance) ** 2 * -np.log(chance + 1e-8) - 0.75 * chance**2 * -np.log(1 - chance + 1e-8)
    boxes, one = seen.boxes[0].detach().numpy(), truth.boxes[0].numpy()
    l1 = np.abs((boxes - one) / np.array([96, 64, 96, 64])).sum()
    giou = pairwise_giou(seen.boxes[:1].detach(), truth.boxes[:1]).item()
    assert cost[0, 0] == pytest.approx(2 * focal + 5 * l1 - 2 * giou, rel=1e-5)


def test_giou_of_known_boxes() -> None:
    one = torch.tensor([[0.0, 0, 2, 2]])
    others = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [4, 0, 6, 2], [1, 1, 1, 1]])
    np.testing.assert_allclose(pairwise_iou(one, others)[0], [1, 1 / 3, 0, 0], atol=1e-6)
    np.testing.assert_allclose(pairwise_giou(one, others)[0], [1, 1 / 3, -1 / 3, 0], atol=1e-6)


def test_boxes_of_masks_are_tight() -> None:
    truth = target([0, 2], [[3, 5, 20, 30], [90, 60, 96, 64]])
    assert truth.masks is not None
    torch.testing.assert_close(boxes_of_masks(truth.masks), truth.boxes)
    assert boxes_of_masks(torch.zeros(1, 4, 4)).tolist() == [[0, 0, 0, 0]]


@given(st.lists(st.sets(st.integers(0, 3), max_size=4), min_size=1, max_size=5), st.integers(0, 99))
def test_an_object_keeps_its_query_and_a_query_its_object(visible: list[set[int]], seed: int) -> None:
    frames = [prediction(stage(scattered(seed + t))) for t in range(len(visible))]
    targets = [target(sorted(ids)) for ids in visible]
    queries: dict[int, int] = {}
    for truth, found in zip(targets, matches_of_clip(frames, targets, InsProLossSettings()), strict=True):
        matched = pairs(found[0], truth)
        assert set(matched) == set(truth.ids.tolist())
        assert all(queries.setdefault(one, query) == query for one, query in matched.items())
    assert len(set(queries.values())) == len(queries)


def test_the_query_of_an_object_that_is_gone_is_not_given_away() -> None:
    """Object 1 lies just where object 0 was, and would take its query if it could."""
    frames, where = [prediction(stage(scattered()))] * 2, scattered()[2].tolist()
    targets = [target([0], [where]), target([1], [where])]
    first, second = (found[0] for found in matches_of_clip(frames, targets, InsProLossSettings()))
    assert pairs(first, targets[0]) == {0: 2}
    assert pairs(second, targets[1])[1] != 2


@pytest.mark.parametrize(("over_time", "then"), [("consistent", {0: 0, 1: 1}), ("each_frame", {0: 1, 1: 0})])
def test_without_consistent_matching_each_frame_is_matched_for_itself(over_time: Any, then: dict[int, int]) -> None:
    """The boxes of queries 0 and 1 change places, the objects stay where they are."""
    first, second = scattered(), scattered()
    second[:2] = first[[1, 0]]
    frames = [prediction(stage(first)), prediction(stage(second))]
    targets = [target([0, 1], first[:2].tolist())] * 2
    found = matches_of_clip(frames, targets, InsProLossSettings(matching_over_time=over_time))
    assert [pairs(of_frame[0], targets[0]) for of_frame in found] == [{0: 0, 1: 1}, then]


def test_more_new_objects_than_free_queries_leave_the_dearest_out() -> None:
    cost = torch.tensor([[0.0, 5.0, 1.0], [9.0, 9.0, 9.0]])
    matches, held = consistent_matches(cost, torch.tensor([7, 8, 9]), {3: 1})
    assert held == {3: 1, 7: 0}
    assert (matches.queries.tolist(), matches.objects.tolist()) == ([0], [0])


def test_a_cost_of_nan_does_not_end_the_run() -> None:
    matches, _ = consistent_matches(torch.full((4, 2), torch.nan), torch.tensor([0, 1]), {})
    assert len(matches.queries) == 2


def test_stages_may_match_on_their_own_and_stay_consistent() -> None:
    first, last = scattered(), scattered().flip(0)
    frames = [prediction(stage(first), stage(last))] * 2
    targets = [target([0, 1], [scattered()[0].tolist(), scattered()[1].tolist()])] * 2
    own = matches_of_clip(frames, targets, InsProLossSettings(matching="own"))
    shared = matches_of_clip(frames, targets, InsProLossSettings(matching="last"))
    assert [pairs(found, targets[0]) for found in own[1]] == [{0: 0, 1: 1}, {0: 5, 1: 4}]
    assert [pairs(found, targets[0]) for found in shared[1]] == [{0: 5, 1: 4}] * 2


@pytest.mark.parametrize("matching", ["last", "own"])
def test_the_lite_head_goes_on_with_the_queries_of_the_last_stage(matching: Any) -> None:
    """Its one stage would choose others."""
    truth = target([0, 1], [scattered()[0].tolist(), scattered()[1].tolist()])
    key, lite = prediction(stage(scattered(1)), stage(scattered())), prediction(stage(scattered().flip(0)))
    found = matches_of_clip([key, lite], [truth] * 2, InsProLossSettings(matching=matching))
    assert pairs(found[1][0], truth) == {0: 0, 1: 1}


def test_frames_before_the_learned_ones_cost_nothing_but_decide_the_queries() -> None:
    truth = target([0, 1], [scattered()[0].tolist(), scattered()[1].tolist()])
    key, lite = prediction(stage(scattered())), prediction(stage(scattered().flip(0)))
    losses = clip_losses([key, lite], [truth] * 2, InsProLossSettings(), learned_from=1)
    torch.stack(list(losses.values())).sum().backward()
    assert key.stages[0].boxes.grad is None
    assert losses["l1"] > clip_losses([lite], [truth], InsProLossSettings())["l1"]


def test_focal_loss_is_its_formula_and_cross_entropy_without_focus() -> None:
    logits, wanted = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 0.0, 0.0])
    probabilities = logits.sigmoid().numpy()
    expected = [
        -0.25 * (1 - probabilities[0]) ** 2 * np.log(probabilities[0]),
        -0.75 * probabilities[1] ** 2 * np.log(1 - probabilities[1]),
        -0.75 * probabilities[2] ** 2 * np.log(1 - probabilities[2]),
    ]
    np.testing.assert_allclose(focal_loss(logits, wanted, 0.25, 2.0), expected, rtol=1e-5)
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    torch.testing.assert_close(focal_loss(logits, wanted, 0.5, 0.0), plain / 2)


def test_right_boxes_and_classes_cost_next_to_nothing() -> None:
    truth = target([0, 1])
    boxes = scattered()
    boxes[:2] = truth.boxes
    right = clip_losses([prediction(stage(boxes, {0: 0, 1: 1}), masks=False)], [truth], InsProLossSettings())
    wrong = clip_losses([prediction(stage(boxes + 9, {0: 2, 1: 2}), masks=False)], [truth], InsProLossSettings())
    for name in ("label", "l1", "giou"):
        assert right[name] < 0.05 * wrong[name]
    assert right["l1"] == 0


def test_losses_are_a_mean_over_frames_and_an_object() -> None:
    truth, frame = target([0, 1]), prediction(stage(scattered()))
    one = clip_losses([frame], [truth], InsProLossSettings())
    three = clip_losses([frame] * 3, [truth] * 3, InsProLossSettings())
    for name, loss in one.items():
        torch.testing.assert_close(three[name], loss)


@pytest.mark.parametrize("ids", [[0, 1], []], ids=["objects", "an empty frame"])
def test_every_loss_reaches_what_it_teaches(ids: list[int]) -> None:
    last = stage(scattered())
    frame = prediction(stage(scattered(1)), last)
    losses = clip_losses([frame], [target(ids)], InsProLossSettings())
    assert set(losses) == {"label", "l1", "giou", "dedup", "dice", "mask"}
    torch.stack(list(losses.values())).sum().backward()
    for tensor in (last.class_logits, last.boxes, frame.mask_parameters[1]):
        assert isinstance(tensor, Tensor)
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert bool(tensor.grad.any()) == bool(ids) or tensor is last.class_logits


def test_boxes_alone_learn_without_masks() -> None:
    truth = replace(target([0, 1]), masks=None)
    losses = clip_losses([prediction(stage(scattered()))], [truth], InsProLossSettings())
    assert set(losses) == {"label", "l1", "giou", "dedup"}


def test_deduplication_is_its_formula() -> None:
    truth = torch.tensor([[0.0, 0, 30, 40]])
    boxes = torch.tensor([[0.0, 0, 30, 40], [3, 4, 33, 44], [0, 0, 30, 40], [200, 0, 230, 40]])
    matched = Matches(torch.tensor([0]), torch.tensor([0]))
    near, same = 0.1 - 25 / 2500, 0.1
    assert dedup_loss(boxes, truth, matched, 0.1, 2).item() == pytest.approx((near + same) / 2)
    assert dedup_loss(boxes, truth, matched, 0.1, 5).item() == pytest.approx((near + same + 0) / 3)


def test_deduplication_spreads_the_free_boxes_and_leaves_the_matched_one() -> None:
    truth = torch.tensor([[30.0, 20, 60, 60]])
    torch.manual_seed(0)
    boxes = (truth + torch.randn(QUERIES, 4)).requires_grad_()
    matched = Matches(torch.tensor([0]), torch.tensor([0]))
    start = boxes.detach().clone()
    optimizer = torch.optim.SGD([boxes], lr=2000.0)
    for _ in range(60):
        optimizer.zero_grad()
        dedup_loss(boxes, truth, matched, 0.1, 5).backward()
        optimizer.step()
    assert torch.equal(boxes[0], start[0])
    before, after = (pairwise_iou(where[1:], truth) for where in (start, boxes.detach()))
    assert after.max() < 0.5 < 0.7 < before.min()
