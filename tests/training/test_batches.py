"""Claims about batches of clips of different sizes: padding changes nothing inside a clip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_sets import coco_values, write_coco

from visrt.models.inspro import InsPro, InsProSettings
from visrt.models.resnet import ResNetSettings
from visrt.training.batches import clip_batch
from visrt.training.data.clips import Clip, ClipDataset, ClipSettings, ShortSideView
from visrt.training.data.sources import SourceSettings
from visrt.training.inspro_clip import TrainedPairs
from visrt.training.inspro_learner import InsProLearner, box_targets, slot_quality
from visrt.training.inspro_settings import InsProTrainSettings, check_inspro_settings
from visrt.training.loop import train
from visrt.training.quality import pairs_of
from visrt.training.settings import DataSettings, OptimSettings

Sizes = tuple[tuple[int, int], tuple[int, int]]
MEAN, STD = (124.0, 116.0, 104.0), (58.0, 57.0, 57.0)
NETWORK = InsProSettings(
    classes=3,
    queries=5,
    backbone=ResNetSettings(blocks=(1, 1, 1, 1), width=4, stem_width=6),
    dim=16,
    heads=2,
    stages=2,
    feedforward_dim=16,
    dynamic_dim=4,
    box_layers=1,
    mask_channels=8,
    mask_convolutions=1,
    bank_frames=3,
)


def clip_of(height: int, width: int, seed: int, frames: int = 2) -> Clip:
    """Noise with two objects, the second of which is gone from the last frame."""
    frames_rgb = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    masks = np.zeros((2, frames, height, width), bool)
    masks[0, :, height // 4 : height // 2, : width // 2] = True
    masks[1, :-1, -height // 4 :, -width // 4 :] = True
    return Clip(frames_rgb, masks, np.array([2, 0]))


LANDSCAPE, PORTRAIT = clip_of(50, 90, 0), clip_of(100, 60, 1)


def test_a_batch_of_two_shapes_holds_each_as_it_is_alone() -> None:
    both = clip_batch([LANDSCAPE, PORTRAIT], MEAN, STD)
    assert both.images.shape == (4, 3, 128, 96)
    assert both.sizes == ((50, 90), (100, 60))
    for i, clip in enumerate((LANDSCAPE, PORTRAIT)):
        (h, w), alone = both.sizes[i], clip_batch([clip], MEAN, STD)
        images = both.images[2 * i : 2 * i + 2]
        torch.testing.assert_close(images[..., :h, :w], alone.images[..., :h, :w])
        assert images.count_nonzero() == images[..., :h, :w].count_nonzero()
        for padded, target in zip(both.targets[2 * i : 2 * i + 2], alone.targets, strict=True):
            assert padded.masks.shape[1:] == (128, 96)
            assert torch.equal(padded.masks[:, :h, :w], target.masks[:, :h, :w])
            assert padded.masks.sum() == target.masks.sum()
            assert torch.equal(padded.labels, target.labels)
            assert torch.equal(padded.ids, target.ids)


def test_the_padding_is_zero_after_normalising_and_the_picture_is_not() -> None:
    batch = clip_batch([LANDSCAPE], MEAN, STD)
    assert batch.images.shape[2:] == (64, 96)
    assert not batch.images[:, :, 50:].any()
    assert not batch.images[..., 90:].any()
    pixel = (LANDSCAPE.frames[1, 49, 89] - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(batch.images[1, :, 49, 89], pixel, rtol=1e-5)


def test_objects_are_found_in_the_picture_inside_the_padding() -> None:
    """A query whose mask is the object's, at a quarter of the padded image, is right."""
    batch = clip_batch([LANDSCAPE, PORTRAIT], MEAN, STD)
    for i, clip in enumerate((LANDSCAPE, PORTRAIT)):
        features = torch.nn.functional.interpolate(batch.targets[2 * i].masks[None], scale_factor=0.25)[0] * 8 - 4
        logits = torch.tensor([[0.0, 0, 9, 0], [9.0, 0, 0, 0]])
        pairs = pairs_of(logits, torch.eye(2), features, clip, 0, batch.images.shape[2:])
        assert (pairs.query_of, pairs.reported, pairs.gt) == ({0: 0, 1: 1}, 2, 2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_coco(folder, coco_values(pictures=6))
    return folder


def inspro_settings(folder: Path) -> InsProTrainSettings:
    view = ShortSideView("short_side", (40, 60), longest_px=80)
    clips = ClipSettings(cache_mb=20, frames=2, max_objects=5, min_area_px=0, min_visible=0.0, view=view)
    data = DataSettings(
        (SourceSettings("coco", str(folder), held_out=0.4),), clips, workers=0, validation_clips=2, validation_frames=2
    )
    optim = OptimSettings(steps=2, batch=2, lr=1e-3, clip_norm=1.0)
    return InsProTrainSettings("inspro", NETWORK, data, optim, save_every=9, validate_every=9)


def test_views_need_no_divisible_frames_and_no_switched_off_letterbox(pictures: Path) -> None:
    check_inspro_settings(inspro_settings(pictures))


def test_boxes_are_parts_of_the_picture_not_of_the_padding() -> None:
    batch = clip_batch([LANDSCAPE, PORTRAIT], MEAN, STD)
    targets = box_targets(batch.targets[0], batch.sizes[0])
    assert targets.size == (50, 90)
    assert targets.boxes.tolist() == [[0, 12, 45, 25], [67, 37, 90, 50]]
    assert targets.masks is not None
    assert targets.masks.shape[1:] == (56, 96)  # the cells of the mask features, 8 pixels each


def network_of(settings: InsProTrainSettings) -> InsPro:
    torch.manual_seed(0)
    network = InsPro(settings.network)
    with torch.no_grad():
        network.init_proposal_boxes.weight.copy_(torch.tensor([0.5, 0.5, 0.6, 0.6]))
    return network.eval()


@pytest.mark.parametrize("sizes", [((64, 128), (128, 64)), ((50, 90), (100, 60))])
def test_the_losses_of_a_batch_are_those_of_its_clips_alone(sizes: Sizes, pictures: Path) -> None:
    """To 1 %: convolutions look across the edge of a picture, where a batch has more padding. Boxes as parts of the
    padded image would be 4 to 15 % off.
    """
    settings = inspro_settings(pictures)
    learner, trained = InsProLearner(settings), TrainedPairs(network_of(settings), settings).eval()
    clips = [clip_of(*size, seed) for seed, size in enumerate(sizes)]
    with torch.no_grad():
        both = learner.losses(trained, clip_batch(clips, MEAN, STD), [])
        alone = [learner.losses(trained, clip_batch([clip], MEAN, STD), []) for clip in clips]
    for name, loss in both.items():
        expected = torch.stack([one[name] for one in alone]).mean()
        assert loss.item() == pytest.approx(expected.item(), rel=0.01, abs=1e-3), name


def test_first_boxes_are_parts_of_each_picture(pictures: Path) -> None:
    settings = inspro_settings(pictures)
    seen = []

    class Watched(InsPro):
        def stages(self, pyramid, pairs, sizes):  # type: ignore[no-untyped-def]
            seen.append(sizes.tolist())
            return super().stages(pyramid, pairs, sizes)

    batch = clip_batch([LANDSCAPE, PORTRAIT], MEAN, STD)
    with torch.no_grad():
        TrainedPairs(Watched(settings.network), settings).eval()(batch.images, 2, batch.sizes)
    assert seen == [[[50, 90], [100, 60]]] * 2


def test_quality_is_of_the_picture_whatever_the_padding(pictures: Path) -> None:
    settings = inspro_settings(pictures)
    quality = slot_quality(network_of(settings), settings, [LANDSCAPE, PORTRAIT], torch.device("cpu"))
    assert set(quality) == {"recall", "precision", "held"}


def test_a_run_with_a_view_trains_and_validates(pictures: Path, tmp_path: Path) -> None:
    """Photos of 96 x 160 in batches of 40 x 67 and 48 x 80."""
    settings = inspro_settings(pictures)
    clips = ClipDataset(settings.data.sources, settings.data.clips, 20, 0)
    assert {clips[i].frames.shape[1:3] for i in range(20)} == {(40, 67), (48, 80)}
    assert train(replace(settings, seed=1), tmp_path / "run").weights.exists()
    assert '"quality_recall"' in (tmp_path / "run" / "metrics.jsonl").read_text()
