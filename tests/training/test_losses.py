"""Claims about matching and losses."""

from dataclasses import replace

import pytest
import torch

from visrt.models.decoder import LayerPrediction
from visrt.runtime.methods.matching_cost import Predictions, matching_cost
from visrt.training.losses.mask2former import LossSettings, association_losses, frame_losses, identity_loss
from visrt.training.losses.points import at_points, random_points, uncertain_points
from visrt.training.losses.targets import (
    FrameTargets,
    Matches,
    MatchSettings,
    match_layers,
    pairwise_bce,
    pairwise_dice,
)

SETTINGS = LossSettings(points=64, match=MatchSettings(points=256))
INFO_NCE = LossSettings(identity_weight=1.0)
HINGE = LossSettings(identity_weight=1.0, identity_loss="hinge")
NEAR = replace(INFO_NCE, identity_range_frames=1)


def perfect(
    masks: torch.Tensor, labels: list[int], classes: int, order: list[int]
) -> tuple[LayerPrediction, torch.Tensor]:
    """A prediction whose query `order[j]` is object j exactly; features are the masks themselves as +-10."""
    queries = 6
    features = (masks * 20 - 10)[None]
    embeddings = torch.zeros(1, queries, len(masks))
    logits = torch.zeros(1, queries, classes + 1)
    logits[..., -1] = 12
    for j, query in enumerate(order):
        embeddings[0, query, j] = 1
        logits[0, query] = torch.nn.functional.one_hot(torch.tensor(labels[j]), classes + 1) * 12.0
    for query in set(range(queries)) - set(order):
        embeddings[0, query] = -1
    return LayerPrediction(logits, embeddings, torch.zeros(1, queries, 4)), features


@pytest.fixture
def scene() -> tuple[torch.Tensor, FrameTargets]:
    masks = torch.zeros(3, 16, 24)
    masks[0, :8, :8] = 1
    masks[1, 4:14, 12:20] = 1
    masks[2, 10:, :6] = 1
    return masks, FrameTargets(torch.tensor([0, 2, 0]), masks, torch.tensor([0, 1, 2]))


def test_each_object_is_matched_to_the_query_that_drew_it(scene: tuple[torch.Tensor, FrameTargets]) -> None:
    masks, target = scene
    prediction, features = perfect(masks, [0, 2, 0], 3, order=[4, 1, 5])
    [[match]] = match_layers([prediction], features, [target], SETTINGS.match)
    assert dict(zip(match.objects.tolist(), match.queries.tolist(), strict=True)) == {0: 4, 1: 1, 2: 5}


def test_a_perfect_prediction_costs_nearly_nothing_and_a_wrong_class_costs(
    scene: tuple[torch.Tensor, FrameTargets],
) -> None:
    masks, target = scene
    good, features = perfect(masks, [0, 2, 0], 3, order=[4, 1, 5])
    bad, _ = perfect(masks, [1, 2, 0], 3, order=[4, 1, 5])
    losses, _ = frame_losses([good], features, [target], SETTINGS, mask_count=3)
    worse, _ = frame_losses([bad], features, [target], SETTINGS, mask_count=3)
    assert losses["class"] < 1e-3
    assert worse["class"] > 1


def test_a_displaced_mask_costs_far_more_than_the_right_one(scene: tuple[torch.Tensor, FrameTargets]) -> None:
    masks, target = scene
    torch.manual_seed(0)
    right, _ = frame_losses(*_drawn(masks), [target], SETTINGS, mask_count=3)
    displaced, _ = frame_losses(*_drawn(masks.roll(6, dims=2)), [target], SETTINGS, mask_count=3)
    # Not zero: most points lie on the edges, where the logits pass through zero.
    assert displaced["mask"] > 4 * right["mask"]
    assert displaced["dice"] > 2 * right["dice"]


def _drawn(masks: torch.Tensor) -> tuple[list[LayerPrediction], torch.Tensor]:
    prediction, features = perfect(masks, [0, 2, 0], 3, order=[4, 1, 5])
    return [prediction], features


def test_every_layer_is_supervised(scene: tuple[torch.Tensor, FrameTargets]) -> None:
    masks, target = scene
    prediction, features = perfect(masks, [0, 2, 1], 3, order=[4, 1, 5])
    once, _ = frame_losses([prediction], features, [target], SETTINGS, mask_count=3)
    thrice, _ = frame_losses([prediction] * 3, features, [target], SETTINGS, mask_count=3)
    torch.testing.assert_close(thrice["class"], 3 * once["class"])


def test_a_frame_without_objects_teaches_no_object_and_nothing_else(scene: tuple[torch.Tensor, FrameTargets]) -> None:
    masks, _ = scene
    prediction, features = perfect(masks, [0, 2, 0], 3, order=[4, 1, 5])
    empty = FrameTargets(torch.empty(0, dtype=torch.int64), masks[:0], torch.empty(0, dtype=torch.int64))
    losses, matches = frame_losses([prediction], features.requires_grad_(), [empty], SETTINGS, mask_count=1)
    assert losses["mask"] == 0
    assert losses["dice"] == 0
    assert losses["class"] > 1
    assert len(matches[0].queries) == 0
    sum(losses.values(), start=torch.zeros(())).backward()


def test_pairwise_costs_equal_the_pairs_computed_one_by_one() -> None:
    torch.manual_seed(0)
    logits, wanted = torch.randn(4, 50), (torch.rand(3, 50) > 0.5).float()
    bce, dice = pairwise_bce(logits, wanted), pairwise_dice(logits, wanted)
    for q in range(4):
        for n in range(3):
            expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[q], wanted[n])
            torch.testing.assert_close(bce[q, n], expected)
            p = logits[q].sigmoid()
            torch.testing.assert_close(
                dice[q, n], 1 - (2 * (p * wanted[n]).sum() + 1) / (p.sum() + wanted[n].sum() + 1)
            )


def test_the_runtime_s_matching_cost_is_that_of_training_at_every_cell() -> None:
    torch.manual_seed(0)
    last, now = torch.randn(4, 3), torch.randn(5, 3)
    then, masks = 30 * torch.randn(4, 6, 7), 30 * torch.randn(5, 6, 7)
    truth, logits = (then > 0).float().flatten(1), masks.flatten(1)
    probabilities = now.softmax(1)[:, last.argmax(1)]
    expected = -2 * probabilities + 5 * pairwise_bce(logits, truth) + 5 * pairwise_dice(logits, truth)
    cost = matching_cost(Predictions(last.numpy(), then.numpy()), Predictions(now.numpy(), masks.numpy()))
    torch.testing.assert_close(torch.from_numpy(cost), expected.T, rtol=1e-5, atol=1e-5)


def test_uncertain_points_lie_where_the_logits_are_near_zero() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(-10, 10, 64)[None, None].expand(1, 64, 64)
    points = uncertain_points(ramp, 200, oversample=3.0, importance=1.0)
    assert (
        at_points(ramp[:, None], points).abs().mean()
        < at_points(ramp[:, None], random_points(1, 200, ramp.device)).abs().mean() / 2
    )
    assert points.shape == (1, 200, 2)


def test_identity_loss_falls_when_an_object_looks_alike_in_both_frames() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(1, 2, 5, 8)
    matches = [Matches(torch.tensor([0, 1]), torch.tensor([7, 9])), Matches(torch.tensor([3, 2]), torch.tensor([9, 7]))]
    apart = identity_loss(embeddings, matches, INFO_NCE)
    embeddings[0, 1, 2], embeddings[0, 1, 3] = embeddings[0, 0, 0], embeddings[0, 0, 1]
    alike = identity_loss(embeddings, matches, INFO_NCE)
    assert alike < 0.1 < apart


def test_identity_loss_of_clips_without_common_objects_is_zero_and_has_a_gradient() -> None:
    embeddings = torch.randn(1, 2, 5, 8, requires_grad=True)
    nothing = Matches(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    loss = identity_loss(embeddings, [nothing, Matches(torch.tensor([1]), torch.tensor([4]))], INFO_NCE)
    loss.backward()
    assert loss == 0
    assert embeddings.grad is not None


def spread(frames: int) -> tuple[torch.Tensor, list[Matches]]:
    """Clip [1, T, 5, 8] in which object 3 is query t % 5 of frame t and looks the same in all frames but the last."""
    torch.manual_seed(0)
    clips = torch.randn(1, frames, 5, 8)
    for t in range(frames - 1):
        clips[0, t, t % 5] = clips[0, 0, 0]
    return clips, [Matches(torch.tensor([t % 5]), torch.tensor([3])) for t in range(frames)]


def test_identity_loss_of_a_longer_clip_is_the_mean_over_its_pairs_of_frames() -> None:
    clips, objects = spread(3)
    pairs = [(0, 1), (0, 2), (1, 2)]
    alone = [identity_loss(clips[:, list(pair)], [objects[t] for t in pair], INFO_NCE) for pair in pairs]
    torch.testing.assert_close(identity_loss(clips, objects, INFO_NCE), torch.stack(alone).mean())


def test_a_limited_range_leaves_out_frames_far_apart() -> None:
    clips, objects = spread(4)
    near = identity_loss(clips, objects, NEAR)
    pairs = [(0, 1), (1, 2), (2, 3)]
    alone = [identity_loss(clips[:, list(pair)], [objects[t] for t in pair], INFO_NCE) for pair in pairs]
    torch.testing.assert_close(near, torch.stack(alone).mean())
    torch.testing.assert_close(
        identity_loss(clips, objects, replace(INFO_NCE, identity_range_frames=3)),
        identity_loss(clips, objects, INFO_NCE),
    )
    assert near < identity_loss(clips, objects, INFO_NCE)


def test_hinge_loss_is_the_shortfall_of_each_other_query_s_inner_product_from_the_right_one() -> None:
    """Products of query 0 with those of the other frame: 2 (right), 1.5, -3; of the right one with the others: 2.5."""
    clips = torch.tensor([[[[1.0, 0.0], [1.25, 0.0], [0.0, 1.0]], [[2.0, 0.0], [1.5, 0.0], [-3.0, 0.0]]]])
    objects = [Matches(torch.tensor([0]), torch.tensor([7]))] * 2
    # Forward: 1 - 2 + 1.5 and none. Backward: 1 - 2 + 2.5, and none for an inner product of 0. The mean of four.
    assert identity_loss(clips, objects, HINGE).item() == pytest.approx((0.5 + 0 + 1.5 + 0) / 4)
    wider = replace(HINGE, identity_margin=6.0)
    assert identity_loss(clips, objects, wider).item() == pytest.approx((5.5 + 1 + 6.5 + 4) / 4)


def test_hinge_loss_is_zero_once_every_other_query_is_less_like_the_object_by_the_margin() -> None:
    frames = 2 * torch.eye(4)[None, None].repeat(1, 3, 1, 1)
    objects = [Matches(torch.tensor([0, 2]), torch.tensor([5, 6]))] * 3
    assert identity_loss(frames, objects, HINGE) == 0
    assert identity_loss(frames, objects, replace(HINGE, identity_margin=4.5)) == pytest.approx(0.5)


@pytest.mark.parametrize("settings", [HINGE, replace(HINGE, identity_range_frames=1), INFO_NCE])
def test_descent_on_a_loss_between_frames_makes_an_object_most_like_itself(settings: LossSettings) -> None:
    torch.manual_seed(0)
    clips = torch.randn(1, 3, 5, 8, requires_grad=True)
    objects = [Matches(torch.tensor([t, t + 1]), torch.tensor([0, 1])) for t in range(3)]
    optimizer = torch.optim.SGD([clips], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        identity_loss(clips, objects, settings).backward()
        optimizer.step()
    for s, t in ((0, 1), (1, 2)):
        assert (clips[0, s, [s, s + 1]] @ clips[0, t].T).argmax(1).tolist() == [t, t + 1]


def test_supervised_matching_is_weighted_and_limited_by_its_settings() -> None:
    clips, objects = spread(4)
    settings = LossSettings(identity_weight=2.0, identity_range_frames=1)
    losses = association_losses(clips, objects, settings)
    assert losses.keys() == {"identity"}
    torch.testing.assert_close(losses["identity"], 2 * identity_loss(clips, objects, NEAR))
    assert association_losses(clips, objects, LossSettings()) == {}
