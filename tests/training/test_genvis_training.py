"""Claims about GenVIS's training: what moves and what stays, what passes from clip to clip, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import CLASSES, FRAME, POINTS, VIDEO
from tiny_sets import coco_values, write_coco
from torch import Tensor

from visrt.models.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from visrt.models.checkpoints.genvis import GENVIS
from visrt.models.genvis import GenVis
from visrt.models.mask2former import Mask2Former
from visrt.runtime.errors import CheckpointError, SettingsError
from visrt.training.batches import clip_loader, training_clips
from visrt.training.data.clips import ClipSettings, ShortSideView
from visrt.training.data.sources import SourceSettings
from visrt.training.genvis_start import start_from
from visrt.training.genvis_video import TrainedVideo
from visrt.training.loop import Run, train
from visrt.training.losses.genvis import video_losses
from visrt.training.losses.genvis_targets import ASSIGNMENTS
from visrt.training.settings import DataSettings, OptimSettings, TrainSettings, check_settings

RECIPES = Path(__file__).parent.parent.parent / "training" / "recipes" / "genvis"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    """Settings of a short run, with the frame network it starts from; that has an instance-embedding head."""
    folder = tmp_path_factory.mktemp("genvis_training")
    write_coco(folder / "data", coco_values(pictures=6))
    torch.manual_seed(1)
    save_checkpoint(Mask2Former(replace(FRAME, reid_dim=16)), folder / "frame.safetensors", CLASSES)
    clips = ClipSettings(height_px=64, width_px=96, cache_mb=20, frames=4, returning=1.0, max_objects=6)
    source = SourceSettings("coco", str(folder / "data"), held_out=0.4)
    return TrainSettings(
        FRAME,
        DataSettings((source,), clips, workers=0, validation_clips=1, validation_frames=3),
        OptimSettings(steps=2, batch=2, ema_decay=0.5),
        POINTS,
        VIDEO,
        init=str(folder / "frame.safetensors"),
        save_every=1,
        validate_every=2,
    )


def trained(**changes: Any) -> TrainedVideo:
    torch.manual_seed(0)
    video = replace(VIDEO, **changes)
    return TrainedVideo(GenVis(video.network(FRAME)), video)


def losses_of(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def whole(made: TrainSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("genvis_run")
    train(made, folder)
    return folder


def test_genvis_a_run_leaves_a_checkpoint_whose_frame_part_is_the_one_it_was_given(
    made: TrainSettings, whole: Path
) -> None:
    checkpoint = load_checkpoint(whole / "model.safetensors", GENVIS)
    assert (checkpoint.settings, checkpoint.classes) == (VIDEO.network(FRAME), CLASSES)
    start = GenVis(VIDEO.network(FRAME))
    start_from(start, made.init or "")
    moved = {key for key, value in start.state_dict().items() if not torch.equal(value, checkpoint.weights[key])}
    assert "vita_module.pre_memory_embed_k.weight" in moved
    assert all(key.startswith("vita_module.") for key in moved)
    last = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"quality_recall", "quality_precision", "quality_linked"} <= last.keys()


def test_genvis_an_interrupted_run_goes_on_as_if_it_had_not_been(
    made: TrainSettings, whole: Path, tmp_path: Path
) -> None:
    run = Run(made, tmp_path)
    run.resume()
    batches = run.batches()
    run.advance(next(batches))
    run.save()
    run.advance(next(batches))
    train(made, tmp_path)
    assert losses_of(tmp_path) == pytest.approx(losses_of(whole), rel=1e-4)


def test_genvis_the_network_in_training_is_the_one_that_runs() -> None:
    """Clip after clip as `GenVis` itself is asked, of the last stream."""
    video = trained(clip_frames=2)
    network, vita = video.network.eval(), video.network.vita_module
    images = torch.randn(4, 3, 64, 96)
    with torch.no_grad():
        outputs = video(images, 4)
        queries, mask_features = network(images)
        start = network.first_start()
        first = network.clips(queries[None, :2], start.base[None])
        _, value = vita.memory_entry(first.prototypes)
        second = network.clips(queries[None, 2:], vita.next_start(first.prototypes).base + value)
    torch.testing.assert_close(outputs.clips[0].class_logits[-1][-1:], first.class_logits)
    torch.testing.assert_close(outputs.clips[1].class_logits[-1][-1:], second.class_logits)
    torch.testing.assert_close(outputs.mask_features[0], mask_features)
    assert len(outputs.clips[0].class_logits) == VIDEO.decoder_layers


def gradient(video: TrainedVideo, of: Callable[[TrainedVideo], Tensor]) -> Tensor | None:
    """Of what is said of the last clip of three."""
    video(torch.randn(3, 3, 64, 64), 3).clips[-1].class_logits[-1].square().sum().backward()
    return of(video).grad


def test_genvis_what_the_last_clip_loses_reaches_the_first_through_memory() -> None:
    def memory(video: TrainedVideo) -> Tensor:
        return video.network.vita_module.pre_memory_embed_v.weight

    told = gradient(trained(), memory)
    assert told is not None
    assert told.any()
    told = gradient(trained(memory="all_slots"), memory)
    assert told is not None
    assert told.any()
    assert gradient(trained(memory="nothing"), memory) is None


def test_genvis_reading_across_slots_differs_from_reading_one_s_own() -> None:
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        own, across, nothing = (
            trained(memory=memory).eval()(images, 3).clips for memory in ("own_slot", "all_slots", "nothing")
        )
    assert torch.equal(own[0].class_logits[-1], nothing[0].class_logits[-1])
    assert not torch.allclose(own[2].class_logits[-1], across[2].class_logits[-1])
    assert not torch.allclose(own[2].class_logits[-1], nothing[2].class_logits[-1])


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_genvis_losses_are_finite_and_reach_all_that_is_trained(made: TrainSettings, assignment: Any) -> None:
    video = replace(VIDEO, assignment=assignment)
    run = replace(made, genvis=video)
    batch = next(iter(clip_loader(training_clips(run), run, 0)))
    network = trained(assignment=assignment)
    losses = video_losses(network(batch.images, batch.frames), batch.targets, POINTS, video, [6.0] * 4)
    assert set(losses) == {"class", "mask", "dice", "similarity"}
    sum(losses.values(), start=torch.zeros(())).backward()
    asked = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert asked
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in asked)
    frame_part = [p for name, p in network.network.named_parameters() if not name.startswith("vita_module.")]
    assert all(parameter.grad is None for parameter in frame_part)


def test_genvis_starts_from_frames_with_heads_that_know_classes_and_masks(made: TrainSettings) -> None:
    network = GenVis(VIDEO.network(FRAME))
    start = start_from(network, made.init or "")
    vita, predictor = network.vita_module, network.sem_seg_head.predictor
    assert torch.equal(vita.class_embed.weight, predictor.class_embed.weight)
    assert torch.equal(vita.vita_mask_features.weight, network.sem_seg_head.pixel_decoder.mask_features.weight)
    assert "vita_module.query_feat.weight" in start.new
    assert not any("class_embed" in key for key in start.new)
    assert start.lines()[-1] == "left out: sem_seg_head.predictor.reid_embed (6)"
    assert "vita_module.class_embed.weight" in start_from(GenVis(VIDEO.network(FRAME)), made.init or "", "random").new


def test_genvis_that_starts_as_frame_queries_says_of_a_frame_what_the_frame_part_says(made: TrainSettings) -> None:
    """With places far apart: each slot then sees one frame query, where small random ones leave a rest of others."""
    network = GenVis(replace(VIDEO, instances=FRAME.queries).network(FRAME)).eval()
    start_from(network, made.init or "", "frame_queries")
    vita, images = network.vita_module, torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for place in (vita.query_embed.weight, vita.fq_pos.weight):
            place.copy_(40 * torch.eye(32)[[0, 1, 2, 3, 4]] + 40 * torch.eye(32)[[16, 17, 18, 19, 20]])
        vita.query_feat.weight.zero_()
        said = Mask2Former(FRAME).eval()
        said.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("vita_module.")})
        expected = said(images)
        queries, mask_features = network(images)
        given = network.clips(queries[:, None], network.first_start().base.expand(2, -1, -1))
    torch.testing.assert_close(given.class_logits, expected.class_logits, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(given.mask_embeddings, expected.mask_embeddings, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(mask_features, expected.mask_features)


def test_genvis_starts_from_vita_but_for_the_memory_and_from_another_number_of_classes(tmp_path: Path) -> None:
    source = GenVis(VIDEO.network(replace(FRAME, classes=2)))
    vita = {key: value for key, value in source.state_dict().items() if ".pre_" not in key}
    torch.save({"model": vita}, tmp_path / "vita.pth")
    network = GenVis(VIDEO.network(FRAME))
    kept = start_from(network, tmp_path / "vita.pth").new
    assert torch.equal(network.vita_module.query_feat.weight, source.vita_module.query_feat.weight)
    assert {key.split(".")[1] for key in kept if key.startswith("vita_module.")} == {
        "pre_memory_embed_k",
        "pre_memory_embed_v",
        "pre_query_embed_k",
        "pre_query_embed_v",
        "class_embed",
    }
    save_checkpoint(trained().network, tmp_path / "genvis.safetensors", CLASSES)
    assert start_from(network, tmp_path / "genvis.safetensors").new == ()
    assert torch.equal(
        network.vita_module.pre_query_embed_k.weight, trained().network.vita_module.pre_query_embed_k.weight
    )
    other = GenVis(VIDEO.network(replace(FRAME, queries=7)))
    with pytest.raises(CheckpointError, match=r"the frame network stays as it is, but .*predictor\.query_feat"):
        start_from(other, tmp_path / "vita.pth")


@pytest.mark.parametrize(
    ("video", "change", "told"),
    [
        ({"clip_frames": 3}, {}, r"data\.clips\.frames is 4 and genvis\.clip_frames 3; expected .* such as 15 frames"),
        ({"clip_frames": 4}, {}, "two or more whole clips"),
        ({"instances": 5}, {}, r"genvis\.instances is 5, but data\.clips\.max_objects is 6"),
        ({"streams": 3}, {}, r"genvis\.streams is 3, but the frame decoder has 2 layers"),
        ({"new_part": "frame_queries"}, {}, r"genvis\.instances 6, but there are 5 frame queries"),
        ({"heads": 5}, {}, r"genvis\.heads is 5, which does not divide network\.hidden_dim, 32"),
        ({}, {"network": replace(FRAME, reid_dim=8)}, r"network\.reid_dim is 8, but in GenVIS slots are objects"),
        ({}, {"init": "imagenet"}, "init is 'imagenet', but under genvis the frame network stays as it is"),
        ({}, {"init": None}, "init is None, but under genvis"),
        ({}, {"loss": replace(POINTS, identity_weight=1.0)}, "loss.identity_weight train the embeddings"),
    ],
)
def test_genvis_settings_that_contradict_each_other_are_refused(
    made: TrainSettings, video: dict[str, Any], change: dict[str, Any], told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        check_settings(replace(made, genvis=replace(VIDEO, **video), **change))


def test_videos_of_different_sizes_are_trained_and_validated(made: TrainSettings, tmp_path: Path) -> None:
    clips = replace(made.data.clips, view=ShortSideView("short_side", (40, 60), rotation_deg=15.0))
    train(replace(made, data=replace(made.data, clips=clips, validation_clips=3)), tmp_path / "run")
    assert '"quality_recall"' in (tmp_path / "run" / "metrics.jsonl").read_text()
