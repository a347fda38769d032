"""Claims about training InsPro: pairs travel as in the runtime, each phase moves its own, what contradicts itself is
refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tiny_sets import coco_values, write_coco
from torch import Tensor, nn

from visrt.export.inspro_graphs import HeadGraph
from visrt.models.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from visrt.models.checkpoints.inspro import INSPRO
from visrt.models.efficientnet import EfficientNetLite0Settings
from visrt.models.inspro import InsPro, InsProSettings
from visrt.models.mask2former import Mask2Former, NetworkSettings
from visrt.models.resnet import ResNetSettings
from visrt.runtime.errors import CheckpointError, SettingsError
from visrt.runtime.methods.inspro_pairs import first_pairs, update_pairs
from visrt.training.data.clips import ClipSettings
from visrt.training.data.motion import CameraSettings
from visrt.training.data.sources import SourceSettings
from visrt.training.inspro_clip import TrainedPairs
from visrt.training.inspro_learner import InsProLearner, stages_of_clip
from visrt.training.inspro_settings import InsProTrainSettings, check_inspro_settings
from visrt.training.inspro_start import first_network
from visrt.training.loop import Run, train
from visrt.training.run_settings import run_settings_from_file
from visrt.training.settings import DataSettings, OptimSettings

CLASSES = ("car", "dog", "chair")
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
PROPAGATIONS: tuple[Literal["both", "queries", "proposals", "off"], ...] = ("both", "queries", "proposals", "off")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_coco(folder, coco_values(pictures=6))
    return folder


def settings_on(
    folder: Path, network: InsProSettings = NETWORK, frames: int = 3, **changes: Any
) -> InsProTrainSettings:
    camera = CameraSettings(letterbox=0.0)
    clips = ClipSettings(height_px=64, width_px=96, cache_mb=20, frames=frames, max_objects=5, camera=camera)
    data = DataSettings(
        (SourceSettings("coco", str(folder), held_out=0.4),), clips, workers=0, validation_clips=1, validation_frames=3
    )
    optim = OptimSettings(steps=2, batch=2, lr=1e-3, clip_norm=1.0, ema_decay=0.5)
    return InsProTrainSettings("inspro", network, data, optim, **{"save_every": 1, "validate_every": 9, **changes})


def lite_on(folder: Path, init: Path) -> InsProTrainSettings:
    return settings_on(folder, replace(NETWORK, lite_stages=1), frames=4, phase="lite", key_frames=2, init=str(init))


def saved_network(folder: Path, settings: InsProSettings = NETWORK) -> Path:
    torch.manual_seed(0)
    network = InsPro(settings).eval()
    with torch.no_grad():
        network.init_proposal_boxes.weight.copy_(torch.rand(settings.queries, 4).clamp(0.2, 0.8))
    save_checkpoint(network, folder / "first.safetensors", CLASSES[: settings.classes])
    return folder / "first.safetensors"


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def moved(before: dict[str, Tensor], network: nn.Module) -> set[str]:
    return {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}


def one_step(settings: InsProTrainSettings, folder: Path) -> tuple[InsPro, dict[str, Tensor], dict[str, float]]:
    """The network after a step, its weights before it, and what was lost."""
    run = Run(replace(settings, optim=replace(settings.optim, ema_decay=0.0)), folder)
    network = run.shipped()
    assert isinstance(network, InsPro)
    before = weights_of(network)
    run.resume()
    return network, before, run.advance(next(iter(run.batches())))


def test_a_run_leaves_what_export_reads_and_is_repeated_from_its_file(pictures: Path, tmp_path: Path) -> None:
    settings = settings_on(pictures)
    weights = train(settings, tmp_path / "run").weights
    checkpoint = load_checkpoint(weights, INSPRO)
    assert (checkpoint.settings, checkpoint.classes) == (settings.network, CLASSES)
    assert run_settings_from_file(tmp_path / "run" / "settings.json") == settings
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_label", "loss_l1", "loss_giou", "loss_dice", "loss_mask", "loss_dedup"} <= rows[0].keys()
    assert {"quality_recall", "quality_precision", "quality_held"} <= rows[-1].keys()


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(pictures: Path, tmp_path: Path) -> None:
    settings = settings_on(pictures)
    whole = weights_of(load_checkpoint(train(settings, tmp_path / "whole").weights, INSPRO).network())
    run = Run(settings, tmp_path / "cut")
    run.resume()
    run.advance(next(iter(run.batches())))
    run.save()
    cut = weights_of(load_checkpoint(train(settings, tmp_path / "cut").weights, INSPRO).network())
    for key, value in whole.items():
        torch.testing.assert_close(cut[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("propagation", PROPAGATIONS)
def test_pairs_travel_through_a_clip_as_they_do_in_the_runtime(
    pictures: Path, tmp_path: Path, propagation: Any
) -> None:
    """More frames than the bank holds."""
    settings = settings_on(pictures, replace(NETWORK, propagation=propagation))
    network = load_checkpoint(saved_network(tmp_path, settings.network), INSPRO).network()
    images, size = torch.randn(4, 3, 64, 96), torch.tensor([[64.0, 96.0]])
    head, entries = HeadGraph(network, 64, 96), network.settings.bank_entries
    learned = tuple(part.detach().numpy() for part in network.first_pairs())
    pairs = first_pairs(learned[0], learned[1], entries, streams=1)
    trained = TrainedPairs(network, settings).eval()
    with torch.no_grad():
        [clip] = trained(images, 4)
        for frame, last, image in zip(clip, stages_of_clip(network, images, settings), images, strict=True):
            pyramid = network(image[None]).pyramid.rows
            feeds = {role: torch.from_numpy(part) for role, part in pairs.feeds("head", box_side_min=0.0).items()}
            outputs = {role: tensor.numpy() for role, tensor in head(pyramid, size, **feeds)._asdict().items()}
            pairs = update_pairs(pairs, outputs, bank_takes_it=True)
            for stage in (frame.stages[-1], last):
                np.testing.assert_allclose(stage.boxes, outputs["boxes"][0], rtol=1e-4, atol=1e-3)
                np.testing.assert_allclose(stage.object_features, outputs["object_features"][0], rtol=1e-3, atol=1e-4)
    assert entries == (2 if propagation in ("both", "queries") else 0)
    assert np.array_equal(pairs.queries[0], learned[0]) == (propagation in ("proposals", "off"))
    assert np.array_equal(pairs.proposals[0], learned[1]) == (propagation in ("queries", "off"))


@pytest.mark.parametrize("propagation", PROPAGATIONS)
def test_intra_query_attention_learns_where_queries_travel(pictures: Path, tmp_path: Path, propagation: Any) -> None:
    settings = settings_on(pictures, replace(NETWORK, propagation=propagation))
    network, before, _ = one_step(settings, tmp_path)
    assert ("intra_query_eps.weight" in moved(before, network)) == (propagation in ("both", "queries"))
    assert "init_proposal_boxes.weight" in moved(before, network)


@pytest.mark.parametrize(
    "network",
    [
        *(replace(NETWORK, propagation=each) for each in PROPAGATIONS),
        replace(NETWORK, bank_frames=1),
        replace(NETWORK, outputs="boxes"),
    ],
    ids=[*PROPAGATIONS, "no bank", "boxes"],
)
def test_every_weight_that_is_trained_gets_a_gradient(pictures: Path, tmp_path: Path, network: InsProSettings) -> None:
    """Distributed training waits for the gradient of each."""
    settings = settings_on(pictures, network)
    [batch] = next(iter(Run(settings, tmp_path).batches()))
    learner = InsProLearner(settings)
    trained = learner.start().train()
    sum(learner.losses(trained, batch, []).values(), torch.zeros(())).backward()
    learning = {key: weight for key, weight in trained.named_parameters() if weight.requires_grad}
    assert not [key for key, weight in learning.items() if weight.grad is None]


def test_a_settings_file_of_before_propagation_moved_says_where_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"family": "inspro", "propagation": "on"}))
    with pytest.raises(SettingsError, match=r"'propagation' is 'on', but belongs into 'network' now"):
        run_settings_from_file(path)


def test_boxes_alone_are_learned_without_masks(pictures: Path, tmp_path: Path) -> None:
    network, _, losses = one_step(settings_on(pictures, replace(NETWORK, outputs="boxes")), tmp_path)
    assert "loss_giou" in losses
    assert not {"loss_dice", "loss_mask"} & losses.keys()
    assert not hasattr(network, "controller")


def test_masks_may_be_learned_at_every_stage(pictures: Path, tmp_path: Path) -> None:
    settings = settings_on(pictures)
    every = replace(settings, loss=replace(settings.loss, mask_stages="every"))
    (*_, last), (*_, all_of_them) = one_step(settings, tmp_path / "last"), one_step(every, tmp_path / "every")
    assert all_of_them["loss_dice"] > 1.2 * last["loss_dice"] > 0
    assert all_of_them["loss_l1"] == pytest.approx(last["loss_l1"], rel=1e-3)


def test_the_lite_phase_moves_the_lite_head_alone(pictures: Path, tmp_path: Path) -> None:
    """Running statistics of the mask branch stay too."""
    network, before, losses = one_step(lite_on(pictures, saved_network(tmp_path)), tmp_path / "run")
    touched = moved(before, network)
    assert touched
    assert all(key.startswith("lite_") for key in touched)
    assert any(key.startswith("lite_controller") for key in touched)
    assert losses["loss_dice"] > 0


def test_lite_stages_answer_for_the_frames_after_the_key_frames(pictures: Path, tmp_path: Path) -> None:
    settings = lite_on(pictures, saved_network(tmp_path))
    trained = InsProLearner(settings).start().train()
    [clip] = trained(torch.randn(4, 3, 64, 96), 4)
    assert [len(frame.stages) for frame in clip] == [2, 2, 1, 1]
    assert [frame.stages[-1].boxes.requires_grad for frame in clip] == [False, False, True, True]


@pytest.mark.parametrize("first_lite", ["last", "random"])
def test_a_lite_head_begins_as_the_last_stage_if_asked(pictures: Path, tmp_path: Path, first_lite: Any) -> None:
    first = saved_network(tmp_path)
    network = first_network(replace(lite_on(pictures, first), first_lite=first_lite))[0]
    pairs = [
        (network.lite_head.head_series[0], network.head.head_series[1]),
        (network.lite_controller, network.controller),
    ]
    for lite, whole in pairs:
        same = [torch.equal(a, b) for a, b in zip(lite.parameters(), whole.parameters(), strict=True)]
        assert all(same) == (first_lite == "last")


def test_a_run_without_backbone_rate_leaves_the_backbone(pictures: Path, tmp_path: Path) -> None:
    settings = settings_on(pictures)
    fixed = replace(settings, optim=replace(settings.optim, backbone_factor=0.0))
    network, before, _ = one_step(fixed, tmp_path)
    touched = moved(before, network)
    assert any(key.startswith("backbone.fpn_") for key in touched)
    assert not any(key.startswith("backbone.bottom_up.") for key in touched)


def test_a_backbone_is_taken_from_the_other_families(pictures: Path, tmp_path: Path) -> None:
    light = NetworkSettings(classes=3, queries=2, backbone=NETWORK.backbone, conv_dim=32, mask_dim=32, hidden_dim=32)
    torch.manual_seed(3)
    other = Mask2Former(replace(light, heads=2, encoder_layers=1, decoder_layers=1, pixel_decoder="fpn"))
    save_checkpoint(other, tmp_path / "other.safetensors", CLASSES)
    start: dict[str, Any] = {"init": str(tmp_path / "other.safetensors"), "init_takes": "backbone"}
    taken = first_network(settings_on(pictures, **start))[0].backbone.bottom_up.state_dict()
    assert all(torch.equal(taken[key], value) for key, value in other.backbone.state_dict().items())
    unlike = replace(NETWORK, backbone=EfficientNetLite0Settings())
    with pytest.raises(CheckpointError, match=r"its backbone is a ResNet .* network\.backbone EfficientNet-Lite0"):
        first_network(settings_on(pictures, unlike, **start))


def test_another_number_of_classes_replaces_the_classifiers_alone(pictures: Path, tmp_path: Path) -> None:
    first = saved_network(tmp_path, replace(NETWORK, classes=2))
    before = weights_of(load_checkpoint(first, INSPRO).network())
    network = first_network(settings_on(pictures, init=str(first)))[0]
    changed = moved(before, network)
    assert {key.split(".")[-2] for key in changed} == {"class_logits"}
    assert len(changed) == 2 * NETWORK.stages


def test_a_checkpoint_of_another_width_is_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="have other shapes than in the network of the settings"):
        first_network(settings_on(pictures, replace(NETWORK, dim=32), init=str(saved_network(tmp_path))))


def test_a_network_with_a_stage_more_takes_the_rest(pictures: Path, tmp_path: Path) -> None:
    _, start = first_network(settings_on(pictures, replace(NETWORK, stages=3), init=str(saved_network(tmp_path))))
    assert start is not None
    assert {key.split(".")[2] for key in start.new} == {"2"}
    assert start.lines()[1].startswith("new: head.head_series.2 (")


def test_the_lite_phase_refuses_a_checkpoint_that_leaves_more_than_the_lite_head_new(
    pictures: Path, tmp_path: Path
) -> None:
    settings = lite_on(pictures, saved_network(tmp_path))
    with pytest.raises(CheckpointError, match=r"phase 'lite' .* head\.head_series\.2"):
        first_network(replace(settings, network=replace(settings.network, stages=3)))


def with_clips(settings: InsProTrainSettings, **changes: Any) -> InsProTrainSettings:
    return replace(settings, data=replace(settings.data, clips=replace(settings.data.clips, **changes)))


GOOD = settings_on(Path("nowhere"))
LITE = lite_on(Path("nowhere"), Path("first.safetensors"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (with_clips(GOOD, frames=1), r"data\.clips\.frames is 1, but network\.propagation is 'both'"),
        (with_clips(GOOD, height_px=72), r"72 x 96 pixels; both must be divisible by 32"),
        (with_clips(GOOD, max_objects=6), r"network\.queries is 5, but a clip may hold data\.clips\.max_objects = 6"),
        (with_clips(GOOD, camera=CameraSettings()), r"data\.clips\.camera\.letterbox is 0\.25"),
        (replace(GOOD, network=LITE.network), r"network\.lite_stages is 1, but phase is 'pairs'"),
        (replace(LITE, network=NETWORK), r"network\.lite_stages is 0"),
        (replace(LITE, key_frames=4), r"no frame is left for the lite head"),
        (replace(LITE, network=replace(LITE.network, propagation="off")), r"propagation is 'off', but the lite head"),
        (
            replace(LITE, network=replace(LITE.network, propagation="queries")),
            r"propagation is 'queries', but the lite head",
        ),
        (replace(LITE, init=None), r"give the checkpoint of phase 'pairs'"),
        (replace(LITE, init_takes="backbone"), r"init_takes 'backbone'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_what_contradicts_itself_is_refused(settings: InsProTrainSettings, told: str, tmp_path: Path) -> None:
    check_inspro_settings(GOOD)
    check_inspro_settings(LITE)
    with pytest.raises(SettingsError, match=told):
        Run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_imagenet_weights_for_another_backbone_are_refused(pictures: Path) -> None:
    with pytest.raises(SettingsError, match="EfficientNet-Lite0 only"):
        first_network(settings_on(pictures, init="imagenet"))


def test_an_unknown_family_is_refused_and_names_the_known(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"family": "outpro"}))
    with pytest.raises(SettingsError, match="'family' is 'outpro'; known are: inspro"):
        run_settings_from_file(path)
    path.write_text(json.dumps({"family": "inspro", "stages": 6}))
    with pytest.raises(SettingsError, match=r"settings\.json: .*unknown setting 'stages'|setting .* is missing"):
        run_settings_from_file(path)


def test_a_grid_of_boxes_covers_the_picture_and_gives_way_to_a_checkpoint(pictures: Path, tmp_path: Path) -> None:
    settings = settings_on(pictures, replace(NETWORK, queries=24), first_boxes="grid")
    centres = first_network(settings)[0].init_proposal_boxes.weight[:, :2]
    cells = {(int(x * 4), int(y * 4)) for x, y in centres.tolist()}
    assert len(cells) == 16
    first = saved_network(tmp_path)
    boxes = first_network(settings_on(pictures, first_boxes="grid", init=str(first)))[0].init_proposal_boxes.weight
    assert torch.equal(boxes, load_checkpoint(first, INSPRO).weights["init_proposal_boxes.weight"])
