"""Matching, its costs and the losses compute in float32 whatever autocast says, in every family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from visrt.models.decoder import LayerPrediction
from visrt.models.interaction import StageOutputs
from visrt.training.genvis_settings import GenVisTraining
from visrt.training.losses.genvis import ClipPrediction, VideoOutputs, video_losses
from visrt.training.losses.genvis_targets import clip_cost
from visrt.training.losses.inspro import FramePrediction, InsProLossSettings, clip_losses
from visrt.training.losses.inspro_targets import BoxCosts, BoxTargets, pairwise_costs
from visrt.training.losses.mask2former import LossSettings, association_losses, frame_losses
from visrt.training.losses.targets import FrameTargets, Matches, match_layers, pairwise_dice

HALVES = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
SIDE = 32
PUBLISHED = LossSettings()


def autocast(half: torch.dtype) -> torch.autocast:
    return torch.autocast("cpu", dtype=half)


def large_object(frames: int = 1) -> Tensor:
    """The mask [T, H, W] of an object over most of each frame."""
    mask = torch.zeros(frames, SIDE, SIDE)
    mask[:, 4:28, 4:28] = 1
    return mask


def missed_object() -> tuple[list[LayerPrediction], Tensor, list[FrameTargets]]:
    """An object that no query has found: all say -12 where it is, query 7 a little less surely."""
    queries, channels = 10, 8
    level = -12 - 0.01 * torch.arange(queries)
    level[7] = -11
    embeddings = (level / channels)[None, :, None].expand(1, queries, channels)
    prediction = LayerPrediction(torch.zeros(1, queries, 4), embeddings, torch.zeros(1, queries, 4))
    target = FrameTargets(torch.tensor([1]), large_object(), torch.tensor([0]))
    return [prediction], torch.ones(1, channels, SIDE, SIDE), [target]


@HALVES
def test_an_object_that_no_query_has_found_goes_to_the_query_of_float32(half: torch.dtype) -> None:
    [[in_float32]] = match_layers(*missed_object(), PUBLISHED.match)
    with autocast(half):
        [[pairs]] = match_layers(*missed_object(), PUBLISHED.match)
    assert in_float32.queries.tolist() == pairs.queries.tolist() == [7]


@HALVES
def test_costs_of_clips_of_three_frames_are_finite_and_those_of_float32(half: torch.dtype) -> None:
    """37,632 points: with logits of -3 the sum of their cross-entropies is above float16's 65,504, as is a mask's area
    in points twice over."""
    points = 3 * PUBLISHED.match.points
    sampled = torch.full((2, points), -3.0)
    sampled[1] = 9.0
    logits, labels, truth = torch.zeros(2, 4), torch.tensor([0]), torch.ones(1, points)
    exact = clip_cost(logits, sampled, labels, truth, PUBLISHED.match)
    with autocast(half):
        cost = clip_cost(logits, sampled, labels, truth, PUBLISHED.match)
    assert exact.isfinite().all()
    assert torch.equal(cost, exact)
    assert pairwise_dice(sampled[1:], truth).item() == pytest.approx(0, abs=1e-3), "a perfect mask"


@HALVES
def test_losses_of_frames_are_those_of_float32(half: torch.dtype) -> None:
    exact, _ = seeded(frame_losses, *missed_object(), PUBLISHED, 1.0)
    with autocast(half):
        losses, _ = seeded(frame_losses, *missed_object(), PUBLISHED, 1.0)
    assert_same(losses, exact)


@HALVES
@pytest.mark.parametrize("kind", ["hinge", "info_nce"])
def test_losses_between_frames_are_those_of_float32(kind: str, half: torch.dtype) -> None:
    """Inner products of 256 channels of this size exceed float16."""
    torch.manual_seed(0)
    clips = 30 * torch.randn(1, 3, 6, 256)
    objects = [Matches(torch.tensor([t]), torch.tensor([0])) for t in range(3)]
    settings = LossSettings(identity_weight=1.0, identity_loss=kind, contrast="latest_positives")  # type: ignore[arg-type]
    exact = association_losses(clips, objects, settings)
    with autocast(half):
        assert_same(association_losses(clips, objects, settings), exact)


def video(half: torch.dtype) -> tuple[VideoOutputs, list[FrameTargets]]:
    """Two clips of three frames with one object that slot 4 of 6 has found a little better than the others."""
    torch.manual_seed(0)
    slots, channels, frames = 6, 8, 6
    level = torch.full((slots,), -3.0)
    level[4] = -2.9
    embeddings = (level / channels)[None, :, None].expand(1, slots, channels).to(half)
    queries = torch.randn(1, 3, 5, channels)
    clip = ClipPrediction([torch.zeros(1, slots, 4)], [embeddings], queries, torch.randn(1, slots, channels))
    layers = [LayerPrediction(torch.zeros(frames, 5, 4), torch.randn(frames, 5, channels), torch.zeros(frames, 5, 8))]
    ones = torch.ones(frames, channels, SIDE, SIDE)
    target = FrameTargets(torch.tensor([1]), large_object(), torch.tensor([0]))
    return VideoOutputs([clip, clip], ones[None], layers, ones), [target] * frames


@HALVES
def test_losses_of_videos_are_those_of_float32(half: torch.dtype) -> None:
    outputs, targets = video(half)
    arguments = (targets, PUBLISHED, GenVisTraining(clip_frames=3, streams=1), [1.0, 1.0])
    exact = seeded(video_losses, _in_float32(outputs), *arguments)
    with autocast(half):
        losses = seeded(video_losses, outputs, *arguments)
    assert_same(losses, exact)


def _in_float32(outputs: VideoOutputs) -> VideoOutputs:
    clips = [clip._replace(mask_embeddings=[one.float() for one in clip.mask_embeddings]) for clip in outputs.clips]
    return outputs._replace(clips=clips)


def boxes_of_a_frame(dtype: torch.dtype) -> tuple[FramePrediction, BoxTargets]:
    """A frame of one object, class logits and masks in `dtype`; boxes are float32 in the network too."""
    torch.manual_seed(0)
    boxes = torch.tensor([[4.0, 4.0, 28.0, 28.0]]) + torch.arange(5)[:, None]
    stage = StageOutputs(torch.randn(5, 3).to(dtype), boxes, torch.zeros(5, 8))
    features, parameters = torch.randn(8, 8, 8), torch.randn(5, 169)
    masks = torch.zeros(1, 64, 64)
    masks[:, 4:28, 4:28] = 1
    target = BoxTargets(torch.tensor([1]), torch.tensor([0]), torch.tensor([[4.0, 4.0, 28.0, 28.0]]), masks, (64, 64))
    return FramePrediction([stage], [parameters.to(dtype)], features.to(dtype), 64.0), target


@HALVES
def test_costs_and_losses_of_boxes_are_those_of_float32_on_the_same_numbers(half: torch.dtype) -> None:
    frame, target = boxes_of_a_frame(half)
    [stage] = frame.stages
    exact_stage = stage._replace(class_logits=stage.class_logits.float())
    [parameters], features = frame.mask_parameters, frame.mask_features
    assert parameters is not None
    assert features is not None
    exact_frame = FramePrediction([exact_stage], [parameters.float()], features.float(), 64.0)
    exact = pairwise_costs(exact_stage, target, BoxCosts()), clip_losses([exact_frame], [target], InsProLossSettings())
    with autocast(half):
        assert torch.equal(pairwise_costs(stage, target, BoxCosts()), exact[0])
        assert_same(clip_losses([frame], [target], InsProLossSettings()), exact[1])


def seeded(function: Any, *arguments: Any) -> Any:
    """The same random points each time."""
    torch.manual_seed(3)
    return function(*arguments)


def assert_same(losses: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> None:
    assert losses.keys() == exact.keys()
    for name, loss in exact.items():
        assert loss.isfinite(), name
        assert losses[name].dtype == torch.float32
        torch.testing.assert_close(losses[name], loss, msg=name)
