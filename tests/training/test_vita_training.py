"""Claims about the stage before GenVIS: VITA's part and the frame part, trained together over one clip."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import CLASSES, FRAME, POINTS, VIDEO
from tiny_sets import coco_values, write_coco

from visrt.models.checkpoints.checkpoint import load_checkpoint, read_weights, save_checkpoint
from visrt.models.checkpoints.genvis import GENVIS
from visrt.models.genvis import GenVis, Vita
from visrt.models.mask2former import Mask2Former
from visrt.runtime.errors import CheckpointError, SettingsError
from visrt.training.batches import clip_loader, training_clips
from visrt.training.data.clips import ClipSettings
from visrt.training.data.sources import SourceSettings
from visrt.training.genvis_learner import VitaLearner
from visrt.training.genvis_start import start_from
from visrt.training.genvis_video import TrainedVita
from visrt.training.loop import Run, train
from visrt.training.settings import DataSettings, OptimSettings, TrainSettings, check_settings

VITA = replace(VIDEO, stage="vita", clip_frames=3, new_part="random")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    """Settings of a short run, with the frame network it starts from."""
    folder = tmp_path_factory.mktemp("vita_training")
    write_coco(folder / "data", coco_values(pictures=6))
    torch.manual_seed(1)
    save_checkpoint(Mask2Former(FRAME), folder / "frame.safetensors", CLASSES)
    clips = ClipSettings(height_px=64, width_px=96, cache_mb=20, frames=3, max_objects=6)
    source = SourceSettings("coco", str(folder / "data"), held_out=0.4)
    return TrainSettings(
        FRAME,
        DataSettings((source,), clips, workers=0, validation_clips=1, validation_frames=5),
        OptimSettings(steps=2, batch=2, lr=1e-3, clip_norm=1.0),
        POINTS,
        VITA,
        init=str(folder / "frame.safetensors"),
        save_every=2,
        validate_every=2,
    )


def network(seed: int = 0) -> Vita:
    torch.manual_seed(seed)
    return Vita(VITA.network(FRAME))


def test_a_run_moves_frame_part_and_video_part_and_is_the_start_of_genvis(made: TrainSettings, tmp_path: Path) -> None:
    weights = train(made, tmp_path / "vita").weights
    trained, before = read_weights(weights)[0], read_weights(Path(made.init or ""))[0]
    moved = {key for key, value in before.items() if not torch.equal(trained[key], value)}
    assert {"backbone", "sem_seg_head"} == {key.split(".")[0] for key in moved}
    last = json.loads((tmp_path / "vita" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"quality_recall", "quality_precision", "quality_linked"} <= last.keys()

    genvis = GenVis(VITA.network(FRAME))
    start = start_from(genvis, weights)
    assert {key.split(".")[1] for key in start.new} == {
        "pre_memory_embed_k",
        "pre_memory_embed_v",
        "pre_query_embed_k",
        "pre_query_embed_v",
    }
    assert torch.equal(genvis.vita_module.query_feat.weight, trained["vita_module.query_feat.weight"])


def test_its_checkpoint_is_not_taken_for_a_genvis(made: TrainSettings, tmp_path: Path) -> None:
    save_checkpoint(network(), tmp_path / "vita.safetensors", CLASSES)
    with pytest.raises(CheckpointError, match="a VITA checkpoint, which has no memory"):
        load_checkpoint(tmp_path / "vita.safetensors", GENVIS)


def test_a_clip_is_what_genvis_says_of_its_first_clip_without_its_additions() -> None:
    vita = network().eval()
    genvis = GenVis(VITA.network(FRAME)).eval()
    genvis.load_state_dict(vita.state_dict(), strict=False)
    images = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        for name in ("weight", "bias"):
            genvis.vita_module.pre_query_embed_v.get_parameter(name).zero_()
        outputs = TrainedVita(vita, VITA)(images, 3)
        queries, mask_features = genvis(images)
        expected = genvis.clips(queries[None], genvis.first_start().base[None])
    # The last stream is the last frame layer's, the only one that GenVIS uses at test.
    torch.testing.assert_close(outputs.video.clips[0].class_logits[-1][-1:], expected.class_logits)
    torch.testing.assert_close(outputs.video.clips[0].mask_embeddings[-1][-1:], expected.mask_embeddings)
    torch.testing.assert_close(outputs.video.mask_features[0], mask_features)
    assert len(outputs.frame_layers) == FRAME.decoder_layers + 1


def test_losses_of_frames_and_of_the_clip_reach_every_weight(made: TrainSettings) -> None:
    learner = VitaLearner(made, VITA)
    trained = learner.start().train()
    batch = next(iter(clip_loader(training_clips(made), made, 0)))
    losses = learner.losses(trained, batch, learner.counts(batch))
    assert set(losses) == {"class", "mask", "dice", "similarity", "frame_class", "frame_mask", "frame_dice"}
    sum(losses.values(), start=torch.zeros(())).backward()
    without = [name for name, parameter in trained.named_parameters() if parameter.grad is None]
    assert not without
    # The losses of the clip alone reach the frame part too: its queries and maps are not cut off.
    trained.zero_grad()
    again = learner.losses(trained, batch, learner.counts(batch))
    again["class"].backward()
    gradient = trained.network.sem_seg_head.predictor.query_feat.weight.grad
    assert gradient is not None
    assert gradient.any()


def test_losses_fall_on_a_set_of_six_pictures(made: TrainSettings, tmp_path: Path) -> None:
    steps = 30
    settings = replace(
        made, init=None, optim=replace(made.optim, steps=steps, warmup_steps=1), save_every=99, validate_every=99
    )
    run = Run(settings, tmp_path)
    batch = next(run.batches())
    losses = [run.advance(batch) for _ in range(steps)]
    assert losses[-1]["loss_class"] < 0.7 * losses[0]["loss_class"]
    assert losses[-1]["loss"] < 0.8 * losses[0]["loss"]


def test_without_a_loss_of_similarity_its_heads_are_left(made: TrainSettings) -> None:
    trained = TrainedVita(network(), replace(VITA, similarity_weight=0.0))
    still = {name.split(".")[-2] for name, parameter in trained.named_parameters() if not parameter.requires_grad}
    assert still == {"sim_embed_frame", "sim_embed_clip"}


def test_it_starts_from_what_is_given(made: TrainSettings) -> None:
    def report(**changes: Any) -> list[str]:
        settings = replace(made, **changes)
        assert settings.genvis is not None
        return [line.split(" (")[0] for line in VitaLearner(settings, settings.genvis).start().start_report[1:]]

    assert report() == ["new: vita_module"]
    assert report(init="imagenet") == ["new: sem_seg_head"]
    assert report(init_takes="backbone") == ["new: sem_seg_head"]
    assert report(init=None) == []
    heads = VitaLearner(made, replace(VITA, new_part="frame_heads")).start().network
    assert torch.equal(heads.vita_module.class_embed.weight, heads.sem_seg_head.predictor.class_embed.weight)


@pytest.mark.parametrize(
    ("video", "told"),
    [
        ({"clip_frames": 1}, r"data\.clips\.frames is 3 and genvis\.clip_frames 1, .* learns from one clip of all"),
        ({"new_part": "frame_queries"}, r"made for a frame part that stays as it is"),
    ],
)
def test_what_contradicts_itself_is_refused(made: TrainSettings, video: dict[str, Any], told: str) -> None:
    check_settings(made)
    check_settings(replace(made, init=None))
    with pytest.raises(SettingsError, match=told):
        check_settings(replace(made, genvis=replace(VITA, **video)))
