"""The published InsPro network by size, and what holds for any InsPro network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from inspro_networks import CLASSES, SMALL, SMALL_LITE, small

from visrt.models.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from visrt.models.checkpoints.inspro import INSPRO
from visrt.models.condinst import dynamic_masks, parameter_count, placed
from visrt.models.efficientnet import EfficientNetLite0Settings
from visrt.models.inspro import (
    INSPRO_R50,
    INSPRO_R50_LITE,
    INSPRO_VID_R101,
    InsPro,
    InsProSettings,
    Pairs,
    entries_that_count,
)
from visrt.models.interaction import moved_boxes
from visrt.models.mask2former import Mask2Former, NetworkSettings
from visrt.runtime.errors import CheckpointError, UsageError

SIZES = torch.tensor([[60, 90]], dtype=torch.int32)


def images(batch: int = 1) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, 3, 64, 96)


def first(network: InsPro) -> Pairs:
    return Pairs(*(part[None] for part in network.first_pairs()))


def shapeless(settings: InsProSettings) -> InsPro:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return InsPro(settings)


def test_inspro_r50_has_the_parameters_of_its_parts() -> None:
    """Sparse R-CNN, CondInst's branch and a linear weight generator. The paper's 106.1 million agree with these if its
    count leaves out packed attention weights and embeddings, as usual counters do."""
    network = shapeless(replace(INSPRO_R50, bank_frames=1))
    assert sum(parameter.numel() for parameter in network.parameters()) == 107_696_905


def test_inspro_vid_is_inspro_on_resnet_101_without_masks_and_known_by_its_weights() -> None:
    """17 bottlenecks of 1024 channels more, and neither mask branch nor weight generator."""
    like = replace(INSPRO_R50, classes=30)
    masks = [part for name, part in shapeless(like).named_children() if name in ("mask_branch", "controller")]
    of_masks = sum(p.numel() for part in masks for p in part.parameters())
    network = shapeless(INSPRO_VID_R101)
    count = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in shapeless(like).parameters())
    assert count == 17 * (2 * 1024 * 256 + 9 * 256 * 256) - of_masks
    read = INSPRO.settings_from_weights(network.state_dict(), "weights")
    assert replace(read, bank_frames=18) == INSPRO_VID_R101


def test_inspro_lite_adds_one_stage_and_a_weight_generator() -> None:
    full, lite = (sum(p.numel() for p in shapeless(s).parameters()) for s in (INSPRO_R50, INSPRO_R50_LITE))
    stage = sum(p.numel() for p in shapeless(INSPRO_R50).head.head_series[0].parameters())
    assert lite - full == stage + 256 * 169 + 169


@torch.inference_mode()
def test_inspro_slots_are_permuted_with_their_pairs() -> None:
    network, order = small(), torch.tensor([3, 0, 4, 1, 2])
    pyramid, pairs = network(images()).pyramid, first(network)
    before = network.stages(pyramid, pairs, SIZES)[-1]
    after = network.stages(pyramid, Pairs(pairs.queries[:, order], pairs.proposals[:, order]), SIZES)[-1]
    torch.testing.assert_close(after.class_logits, before.class_logits[:, order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.boxes, before.boxes[:, order], atol=1e-3, rtol=1e-4)


@torch.inference_mode()
def test_inspro_pictures_in_a_batch_do_not_see_each_other() -> None:
    network, both = small(), images(2)
    pairs = Pairs(*(part.expand(2, -1, -1) for part in network.first_pairs()))
    together = network.stages(network(both).pyramid, pairs, SIZES.expand(2, -1))[-1]
    alone = network.stages(network(both[1:]).pyramid, first(network), SIZES)[-1]
    torch.testing.assert_close(together.boxes[1:], alone.boxes, atol=1e-3, rtol=1e-4)


@torch.inference_mode()
def test_inspro_proposals_mean_the_same_at_any_size() -> None:
    """They are parts of the picture, so they outlive a change of its size."""
    network = small()
    boxes = torch.rand(1, 5, 4).cumsum(dim=-1) * 10
    doubled = network.next_proposals(2 * boxes, 2 * SIZES)
    torch.testing.assert_close(network.next_proposals(boxes, SIZES), doubled)


@torch.inference_mode()
def test_inspro_proposals_are_clipped_to_the_picture_or_not_at_all() -> None:
    boxes = torch.tensor([[[-30.0, 6.0, 120.0, 90.0]]])
    assert small().next_proposals(boxes, SIZES).tolist() == [[[0, pytest.approx(0.1), 1, 1]]]
    beyond = small(proposal_clip="off").next_proposals(boxes, SIZES)
    torch.testing.assert_close(beyond, torch.tensor([[[-1 / 3, 0.1, 4 / 3, 1.5]]]))


@pytest.mark.parametrize("importance", ["scalar", "channel"])
@torch.inference_mode()
def test_inspro_a_query_sees_the_filled_part_of_its_own_past_only(importance: str) -> None:
    network = small(importance=importance)
    now, past = torch.randn(1, 5, 32), torch.randn(1, 5, 3, 32)
    counts = entries_that_count(torch.tensor([[3, 2, 1]]), torch.tensor([[0, 1, 2, 3, 3]]))
    queries = network.next_queries(now, past, counts)
    torch.testing.assert_close(queries[:, 0], 2 * now[:, 0], msg="without a past the mean is the query itself")
    changed = past.clone()
    changed[0, 2, 0] = 100.0
    changed[0, 3] = 100.0
    after = network.next_queries(now, changed, counts)
    same = torch.tensor([0, 1, 2, 4])
    torch.testing.assert_close(after[:, same], queries[:, same])
    assert not torch.allclose(after[:, 3], queries[:, 3])


def test_inspro_without_a_bank_queries_go_on_as_they_are() -> None:
    now = torch.randn(1, 5, 32)
    network = small(bank_frames=1)
    assert torch.equal(network.next_queries(now, torch.zeros(1, 5, 0, 32), torch.zeros(1, 5, 0)), now)


@torch.inference_mode()
def test_inspro_past_frames_count_alike_wherever_the_ring_keeps_them() -> None:
    network = small()
    now, past = torch.randn(2, 5, 32), torch.randn(2, 5, 3, 32)
    ages = torch.tensor([[1, 3, 2], [0, 0, 1]])
    fill = torch.tensor([[3, 2, 1, 0, 3], [1, 0, 1, 1, 1]])
    order = torch.tensor([2, 0, 1])
    queries = network.next_queries(now, past, entries_that_count(ages, fill))
    turned = network.next_queries(now, past[:, :, order], entries_that_count(ages[:, order], fill))
    torch.testing.assert_close(turned, queries)


@torch.inference_mode()
def test_inspro_masks_of_pictures_in_a_batch_are_those_of_each() -> None:
    torch.manual_seed(0)
    parameters, features = torch.randn(2, 4, parameter_count(8)), torch.randn(2, 8, 6, 10)
    both = dynamic_masks(parameters, features, 64.0)
    assert both.shape == (2, 4, 12, 20)
    torch.testing.assert_close(both[1], dynamic_masks(parameters[1], features[1], 64.0))


@torch.inference_mode()
def test_inspro_a_box_keeps_its_place_under_no_change_and_grows_at_most_so_far() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    torch.testing.assert_close(moved_boxes(boxes, torch.zeros(1, 4)), boxes)
    shifted = moved_boxes(boxes, torch.tensor([[2.0, -2.0, 0.0, 0.0]]))
    torch.testing.assert_close(shifted, torch.tensor([[30.0, -20.0, 50.0, 20.0]]))
    assert moved_boxes(boxes, torch.full((1, 4), 1e4)).isfinite().all()


@torch.inference_mode()
def test_inspro_a_mask_moves_with_its_box() -> None:
    """Features all alike: the mask of a box moved by eight pixels is moved by one pixel of stride 8."""
    torch.manual_seed(0)
    parameters, features = torch.randn(1, parameter_count(8)), torch.ones(8, 12, 16)
    boxes = torch.tensor([[20.0, 20.0, 60.0, 60.0]])
    here, there = (
        dynamic_masks(placed(parameters, box, 64.0), features, 64.0)[0]
        for box in (boxes, boxes + torch.tensor([8.0, 0.0, 8.0, 0.0]))
    )
    torch.testing.assert_close(there[:, 4:], here[:, 2:-2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        SMALL,
        SMALL_LITE,
        replace(SMALL_LITE, lite_masks="shared", importance="channel", outside="zero"),
        replace(SMALL, outputs="boxes", bank_frames=1),
        replace(SMALL, backbone=EfficientNetLite0Settings()),
    ],
    ids=["full", "lite", "other_choices", "boxes_only", "light_backbone"],
)
def test_inspro_what_is_saved_comes_back(settings: InsProSettings, tmp_path: Path) -> None:
    network = small(settings)
    save_checkpoint(network, tmp_path / "model.safetensors", CLASSES, {"step": "7"})
    checkpoint = load_checkpoint(tmp_path / "model.safetensors", INSPRO)
    assert (checkpoint.settings, checkpoint.classes, checkpoint.notes["step"]) == (settings, CLASSES, "7")
    again = checkpoint.network()
    with torch.inference_mode():
        ours, theirs = again(images()), network(images())
        torch.testing.assert_close(ours.pyramid.rows, theirs.pyramid.rows)
        assert (ours.mask_features is None) == (settings.outputs == "boxes")
        last = again.stages(ours.pyramid, first(again), SIZES)[-1]
        torch.testing.assert_close(last.boxes, network.stages(theirs.pyramid, first(network), SIZES)[-1].boxes)


def test_inspro_settings_are_read_from_weights_alone(tmp_path: Path) -> None:
    network = small(SMALL_LITE, importance="channel")
    torch.save({"model": network.state_dict()}, tmp_path / "model.pth")
    read = load_checkpoint(tmp_path / "model.pth", INSPRO, settings={"heads": 4, "bank_frames": 4})
    assert read.settings == network.settings
    with pytest.raises(UsageError, match="stages: the weights tell it; given can be heads, propagation, bank_frames"):
        load_checkpoint(tmp_path / "model.pth", INSPRO, settings={"stages": 2})


def test_inspro_checkpoints_of_other_families_are_refused(tmp_path: Path) -> None:
    other = Mask2Former(NetworkSettings(classes=2, backbone=SMALL.backbone, decoder_layers=1, encoder_layers=1))
    torch.save(other.state_dict(), tmp_path / "minvis.pth")
    with pytest.raises(CheckpointError, match=r"holds no init_proposal_features\.weight; expected an InsPro network"):
        load_checkpoint(tmp_path / "minvis.pth", INSPRO)


def test_inspro_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    state = small().state_dict()
    del state["head.head_series.1.norm2.bias"]
    state["controller.weight"] = torch.zeros(100, 32)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="gives 100 numbers a mask; expected 169"):
        load_checkpoint(tmp_path / "odd.pth", INSPRO, settings={"heads": 4})
    state["controller.weight"] = torch.zeros(169, 32)
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: head\.head_series\.1\.norm2\.bias"):
        load_checkpoint(tmp_path / "broken.pth", INSPRO, settings={"heads": 4}).network()
