"""Claims about the start of a training: what a network takes from a file, what is new, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from inspro_networks import SMALL as INSPRO
from torch import Tensor, nn

from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.checkpoints.start import Start, Takes, start_from_init
from visrt.models.efficientnet import EfficientNetLite0Settings
from visrt.models.inspro import InsPro
from visrt.models.mask2former import Mask2Former, NetworkSettings
from visrt.models.resnet import ResNet, ResNetSettings
from visrt.models.swin import Swin, SwinSettings
from visrt.runtime.errors import CheckpointError, SettingsError

State = dict[str, Tensor]

SIZES: dict[str, Any] = {
    "classes": 3,
    "queries": 5,
    "conv_dim": 32,
    "mask_dim": 32,
    "hidden_dim": 32,
    "heads": 4,
    "encoder_layers": 1,
    "encoder_feedforward_dim": 48,
    "decoder_layers": 2,
    "decoder_feedforward_dim": 40,
}
SMALL = NetworkSettings(backbone=ResNetSettings(blocks=(1, 2, 1, 1), width=4, stem_width=6), **SIZES)
RESNET_50 = NetworkSettings(**SIZES)
R50, R101 = ResNetSettings(), ResNetSettings(blocks=(3, 4, 23, 3))
SWIN_B = SwinSettings(embed_dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32))
SWIN_T = NetworkSettings(backbone=SwinSettings(), **SIZES)
CLASSES = ("person", "vehicle", "animal")


def network(settings: NetworkSettings = SMALL, seed: int = 0) -> Mask2Former:
    torch.manual_seed(seed)
    return Mask2Former(settings).eval()


def started(path: Path, settings: NetworkSettings = SMALL, takes: Takes = "network") -> tuple[Mask2Former, Start]:
    """A network of other random weights, and what it took from the file at `path`."""
    fresh = network(settings, seed=1)
    start = start_from_init(fresh, str(path), takes)
    assert start is not None
    return fresh, start


def saved(path: Path, contents: Any) -> Path:
    torch.save(contents, path)
    return path


def changed(settings: NetworkSettings, **values: Any) -> NetworkSettings:
    return replace(settings, **values)


# ---- ImageNet backbones


def torchvision_layout(settings: ResNetSettings) -> State:
    """A ResNet under torchvision's names, written down by hand: stem, bottlenecks, classifier, counters."""
    torch.manual_seed(0)
    own = {key: torch.rand_like(value) for key, value in ResNet(settings).state_dict().items()}
    state: State = {"conv1.weight": own["stem.conv1.weight"]}
    norms = {"stem.conv1": "bn1"}
    for stage, blocks in enumerate(settings.blocks, start=1):
        for block in range(blocks):
            ours, theirs = f"res{stage + 1}.{block}", f"layer{stage}.{block}"
            for i in (1, 2, 3):
                state[f"{theirs}.conv{i}.weight"] = own[f"{ours}.conv{i}.weight"]
                norms[f"{ours}.conv{i}"] = f"{theirs}.bn{i}"
            if block == 0:
                state[f"{theirs}.downsample.0.weight"] = own[f"{ours}.shortcut.weight"]
                norms[f"{ours}.shortcut"] = f"{theirs}.downsample.1"
    for ours, theirs in norms.items():
        for kind in ("weight", "bias", "running_mean", "running_var"):
            state[f"{theirs}.{kind}"] = own[f"{ours}.norm.{kind}"]
        state[f"{theirs}.num_batches_tracked"] = torch.tensor(0)
    return {**state, "fc.weight": torch.rand(1000, 2048), "fc.bias": torch.rand(1000)}


def detectron2_layout(settings: ResNetSettings) -> dict[str, Any]:
    """detectron2's R-50.pkl as it is made from torchvision: arrays under "model", the classifier in the stem."""
    torch.manual_seed(0)
    state = {key: torch.rand_like(value) for key, value in ResNet(settings).state_dict().items()}
    state |= {"stem.fc.weight": torch.rand(1000, 2048), "stem.fc.bias": torch.rand(1000)}
    state["stem.conv1.norm.num_batches_tracked"] = torch.tensor(0)
    arrays = {key: value.numpy() for key, value in state.items()}
    return {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}


def swin_layout(settings: SwinSettings) -> State:
    """The official Swin classifier: no norm on its maps, computed buffers, a last norm and a head."""
    torch.manual_seed(0)
    own = {key: value for key, value in Swin(settings).state_dict().items() if not key.startswith("norm")}
    masks = {f"layers.{i}.blocks.1.attn_mask": torch.zeros(4, 49, 49) for i in range(3)}
    width = settings.channels["res5"]
    last = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    return {**own, **masks, **last, "head.weight": torch.rand(10, width), "head.bias": torch.rand(10)}


def shapes(layout: Callable[[Any], State], settings: Any) -> State:
    """The keys and shapes of `layout`, all zero, in a file of no size."""
    with torch.device("meta"):
        state = layout(settings)
    return {key: torch.zeros(()).expand(value.shape) for key, value in state.items()}


def pickled(path: Path, contents: Any) -> Path:
    path.write_bytes(pickle.dumps(contents))
    return path


def test_torchvision_s_resnet_50_fills_the_backbone(tmp_path: Path) -> None:
    state = torchvision_layout(R50)
    fresh, start = started(saved(tmp_path / "resnet50.pth", state), RESNET_50)
    own = fresh.backbone.state_dict()
    for ours, theirs in {
        "stem.conv1.weight": "conv1.weight",
        "stem.conv1.norm.running_var": "bn1.running_var",
        "res2.0.shortcut.weight": "layer1.0.downsample.0.weight",
        "res4.0.shortcut.norm.bias": "layer3.0.downsample.1.bias",
        "res5.2.conv3.norm.running_mean": "layer4.2.bn3.running_mean",
        "res3.3.conv2.weight": "layer2.3.conv2.weight",
    }.items():
        assert torch.equal(own[ours], state[theirs])
    assert len(start.taken) == len(own) == 265
    assert start.lines() == (
        f"{tmp_path / 'resnet50.pth'}: 265 of the network's {len(fresh.state_dict())} weights taken",
        f"new: sem_seg_head ({len(fresh.sem_seg_head.state_dict())})",
    )


def test_detectron2_s_r_50_fills_the_backbone(tmp_path: Path) -> None:
    contents = detectron2_layout(R50)
    fresh, start = started(pickled(tmp_path / "R-50.pkl", contents), RESNET_50)
    own = fresh.backbone.state_dict()
    assert all(torch.equal(own[key], torch.from_numpy(contents["model"][key])) for key in own)
    assert {key.split(".")[0] for key in start.new} == {"sem_seg_head"}
    assert not start.left


def test_the_official_swin_fills_all_but_the_norms_of_its_maps(tmp_path: Path) -> None:
    state = swin_layout(SwinSettings())
    fresh, start = started(saved(tmp_path / "swin_tiny.pth", {"model": state}), SWIN_T)
    own = fresh.backbone.state_dict()
    assert all(torch.equal(own[key], state[key]) for key in own if not key.startswith("norm"))
    assert {key for key in start.new if key.startswith("backbone.")} == {
        f"backbone.norm{i}.{kind}" for i in range(4) for kind in ("weight", "bias")
    }
    assert not start.left


def test_a_backbone_fills_the_one_under_a_feature_pyramid(tmp_path: Path) -> None:
    path = pickled(tmp_path / "R-50.pkl", detectron2_layout(R50))
    fresh = InsPro(replace(INSPRO, backbone=ResNetSettings()))
    start = start_from_init(fresh, str(path), "network")
    assert start is not None
    assert {key.rpartition(".")[0].split(".")[1] for key in start.taken} == {"bottom_up"}
    assert len(start.taken) == 265


def test_imagenet_is_the_package_s_efficientnet_and_no_other(tmp_path: Path) -> None:
    light = changed(SMALL, backbone=EfficientNetLite0Settings(), pixel_decoder="fpn")
    start = start_from_init(network(light), "imagenet", "network")
    assert start is not None
    assert {key.split(".")[0] for key in start.new} == {"sem_seg_head"}
    with pytest.raises(SettingsError, match=r"backbone is resnet: .* EfficientNet-Lite0 only; .*R-50\.pkl"):
        start_from_init(network(), "imagenet", "network")


def test_nothing_given_leaves_the_network_as_it_is() -> None:
    assert start_from_init(network(), None, "network") is None


@pytest.mark.parametrize(
    ("contents", "settings", "told"),
    [
        (lambda: shapes(torchvision_layout, R101), RESNET_50, "backbone is ResNet-101, network.backbone ResNet-50"),
        (
            lambda: shapes(torchvision_layout, R50),
            changed(RESNET_50, backbone=R101),
            "its backbone is ResNet-50, network.backbone ResNet-101",
        ),
        (
            lambda: {"model": shapes(swin_layout, SWIN_B)},
            SWIN_T,
            "its backbone is Swin-B with windows of 7, network.backbone Swin-T with windows of 7",
        ),
        (
            lambda: {"model": shapes(swin_layout, SwinSettings(window=8))},
            SWIN_T,
            "its backbone is Swin-T with windows of 8, network.backbone Swin-T with windows of 7",
        ),
        (lambda: shapes(torchvision_layout, R50), SWIN_T, "is ResNet-50, network.backbone Swin-T"),
        (lambda: shapes(swin_layout, SwinSettings()), RESNET_50, "Swin-T .* of 7, network.backbone ResNet-50"),
        (lambda: network(SMALL).state_dict(), RESNET_50, "a ResNet of 1, 2, 1, 1 blocks, 4 channels, network"),
        (lambda: {"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3), "conv1.weight": torch.zeros(64, 3, 7, 7)},
         RESNET_50, "blocks of two convolutions, network.backbone ResNet-50"),
        (lambda: {"conv1_w": torch.zeros(64, 3, 7, 7), "res_conv1_bn_s": torch.zeros(64)}, RESNET_50, "BGR.*1x1"),
        (lambda: {"blobs": {"res2_0_branch2a_w": torch.zeros(64, 64, 1, 1)}}, RESNET_50, "a Caffe2 ResNet"),
        (lambda: {"roi_heads.box_head.fc1.weight": torch.zeros(2, 2)}, RESNET_50, "detectron2 R-CNN.*BGR"),
        (lambda: {"model.0.conv.weight": torch.zeros(2)}, RESNET_50, "is a YOLO checkpoint; expected an ImageNet"),
        (lambda: {"something.weight": torch.zeros(2)}, RESNET_50, "holds no backbone; expected an ImageNet"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_another_backbone_is_refused_by_name(
    contents: Any, settings: NetworkSettings, told: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "weights.pth", contents())
    fresh = network(settings)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"weights\.pth: .*{told}") as caught:
        start_from_init(fresh, str(path), "network")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


# ---- checkpoints of networks


def test_another_number_of_classes_leaves_the_classifier_new_and_takes_the_rest(tmp_path: Path) -> None:
    coco = network(changed(SMALL, classes=80))
    fresh, start = started(saved(tmp_path / "coco.pth", {"model": coco.state_dict()}))
    assert start.new == tuple(f"sem_seg_head.predictor.class_embed.{kind}" for kind in ("weight", "bias"))
    own, given = fresh.state_dict(), coco.state_dict()
    assert all(torch.equal(own[key], given[key]) for key in own if key not in start.new)
    assert start.lines()[1:] == (
        "new: sem_seg_head.predictor.class_embed (2)",
        "left out: sem_seg_head.predictor.class_embed (2)",
    )


def test_an_instance_embedding_head_that_the_file_lacks_is_new_and_one_that_the_network_lacks_is_left(
    tmp_path: Path,
) -> None:
    ctvis = changed(SMALL, reid_dim=16, reid_hidden_dim=20)
    _, start = started(saved(tmp_path / "minvis.pth", {"model": network().state_dict()}), ctvis)
    assert start.lines()[1:] == ("new: sem_seg_head.predictor.reid_embed (6)",)
    _, start = started(saved(tmp_path / "ctvis.pth", {"model": network(ctvis).state_dict()}))
    assert start.lines()[1:] == ("left out: sem_seg_head.predictor.reid_embed (6)",)


def test_a_layer_of_which_one_weight_does_not_fit_is_new_as_a_whole(tmp_path: Path) -> None:
    state = network().state_dict()
    state["sem_seg_head.predictor.mask_embed.layers.0.bias"] = torch.zeros(7)
    _, start = started(saved(tmp_path / "odd.pth", {"model": state}))
    assert start.lines()[1] == "new: sem_seg_head.predictor.mask_embed.layers.0 (2)"


def test_deeper_decoders_take_the_layers_that_there_are(tmp_path: Path) -> None:
    _, start = started(saved(tmp_path / "two.pth", {"model": network().state_dict()}), changed(SMALL, decoder_layers=3))
    assert {key.split(".")[3] for key in start.new} == {"2"}


def test_a_network_of_other_sizes_is_refused_but_for_its_backbone(tmp_path: Path) -> None:
    path = saved(tmp_path / "wide.pth", {"model": network(changed(SMALL, conv_dim=64, hidden_dim=64)).state_dict()})
    with pytest.raises(CheckpointError, match=r"weights behind the backbone have other shapes .* init_takes to 'backb"):
        started(path)
    _, start = started(path, takes="backbone")
    assert start.lines()[1].startswith("new: sem_seg_head (")
    assert not start.left


def test_a_file_without_a_complete_backbone_is_refused(tmp_path: Path) -> None:
    state = network().state_dict()
    del state["backbone.res3.1.conv2.weight"]
    path = saved(tmp_path / "cut.pth", {"model": state})
    with pytest.raises(CheckpointError, match=r"1 weights missing or misshapen, the first res3\.1\.conv2\.weight"):
        started(path)


def test_a_checkpoint_of_visrt_with_other_attention_heads_is_refused(tmp_path: Path) -> None:
    fpn = changed(SMALL, pixel_decoder="fpn")
    save_checkpoint(network(changed(fpn, heads=2)), tmp_path / "two.safetensors", CLASSES)
    with pytest.raises(CheckpointError, match=r"2 attention heads, that of the settings 4; set network\.heads to 2"):
        started(tmp_path / "two.safetensors", fpn)


def test_pairs_take_the_backbone_of_frames_and_frames_that_of_pairs(tmp_path: Path) -> None:
    pairs: nn.Module = InsPro(replace(INSPRO, backbone=SMALL.backbone))
    frames = network()
    save_checkpoint(frames, tmp_path / "frames.safetensors", CLASSES)
    start = start_from_init(pairs, str(tmp_path / "frames.safetensors"), "network")
    assert start is not None
    assert start.lines()[-1].startswith("left out: sem_seg_head (")
    own = pairs.state_dict()
    assert all(torch.equal(own[f"backbone.bottom_up.{k}"], value) for k, value in frames.backbone.state_dict().items())
    save_checkpoint(pairs, tmp_path / "pairs.safetensors", CLASSES)
    back, start = started(tmp_path / "pairs.safetensors")
    assert all(torch.equal(back.backbone.state_dict()[k], value) for k, value in frames.backbone.state_dict().items())
    assert "backbone.fpn_lateral2 (2)" in start.lines()[-1]
