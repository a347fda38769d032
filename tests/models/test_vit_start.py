"""Claims about the weights from which EoMT and VidEoMT start: what is taken, resampled, new, and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_vit import SIZES, eomt, videomt
from torch import Tensor, nn
from torch.nn import functional as F

from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.checkpoints.eomt_keys import ENCODER
from visrt.models.checkpoints.eomt_start import resampled_patches, start_vit
from visrt.models.checkpoints.start import Start, take_known_classes
from visrt.runtime.errors import CheckpointError, SettingsError

CLASSES = ("car", "dog", "chair")
DIM, BLOCKS = SIZES["dim"], SIZES["blocks"]


def started(network: Any, path: Path, takes: Any = "network") -> Start:
    start = start_vit(network, str(path), takes)
    assert start is not None
    return start


def kept(network: nn.Module, folder: Path) -> Path:
    path = folder / "first.safetensors"
    save_checkpoint(network, path, CLASSES[: int(network.settings.classes)])  # type: ignore[union-attr, arg-type]
    return path


def official_dinov2(patch: int = 14, side: int = 5, class_position: bool = True) -> dict[str, Tensor]:
    """A transformer in DINOv2's own layout, or in timm's, which has no position of the class token."""
    torch.manual_seed(3)
    registers = "register_tokens" if class_position else "reg_token"
    state = {
        "cls_token": torch.randn(1, 1, DIM),
        registers: torch.randn(1, 2, DIM),
        "mask_token": torch.randn(1, DIM),
        "pos_embed": torch.randn(1, side**2 + int(class_position), DIM),
        "patch_embed.proj.weight": torch.randn(DIM, 3, patch, patch),
        "patch_embed.proj.bias": torch.randn(DIM),
        "norm.weight": torch.randn(DIM),
        "norm.bias": torch.randn(DIM),
    }
    shapes = {
        "norm1.weight": (DIM,), "norm1.bias": (DIM,), "norm2.weight": (DIM,), "norm2.bias": (DIM,),
        "attn.qkv.weight": (3 * DIM, DIM), "attn.qkv.bias": (3 * DIM,), "attn.proj.weight": (DIM, DIM),
        "attn.proj.bias": (DIM,), "ls1.gamma": (DIM,), "ls2.gamma": (DIM,), "mlp.fc1.weight": (48, DIM),
        "mlp.fc1.bias": (48,), "mlp.fc2.weight": (DIM, 48), "mlp.fc2.bias": (DIM,),
    }  # fmt: skip
    for block in range(BLOCKS):
        state |= {f"blocks.{block}.{name}": torch.randn(shape) for name, shape in shapes.items()}
    return state


@pytest.mark.parametrize("class_position", [True, False], ids=["DINOv2's file", "timm's"])
def test_a_dinov2_transformer_is_taken_whole_and_the_rest_is_new(class_position: bool, tmp_path: Path) -> None:
    state = official_dinov2(class_position=class_position)
    torch.save(state, tmp_path / "dinov2.pth")
    network = eomt()
    start = started(network, tmp_path / "dinov2.pth")
    own = network.state_dict()
    assert {key for key in own if key.startswith(ENCODER)} == set(start.taken)
    assert start.lines()[1] == "new: query (1), upscale_block (10), mask_head (6), class_predictor (2)"
    assert not start.left
    assert torch.equal(own["layers.2.attention.k_proj.weight"], state["blocks.2.attn.qkv.weight"][DIM : 2 * DIM])
    first = state["cls_token"] + state["pos_embed"][:, 0] if class_position else state["cls_token"]
    assert torch.equal(own["embeddings.cls_token"], first)
    table = state["pos_embed"][:, int(class_position) :].transpose(1, 2).unflatten(2, (5, 5))
    resampled = F.interpolate(table, (3, 3), mode="bicubic", antialias=True)[0].flatten(1).T
    torch.testing.assert_close(own["embeddings.position_embeddings.weight"], resampled)


def test_a_resampled_projection_says_of_enlarged_patches_what_the_old_one_says_of_patches() -> None:
    torch.manual_seed(0)
    weight, patch = torch.randn(4, 3, 7, 7), torch.randn(1, 3, 7, 7)
    larger = resampled_patches(weight, 10)
    enlarged = F.interpolate(patch, (10, 10), mode="bicubic", antialias=True)
    torch.testing.assert_close(
        (larger * enlarged).sum((1, 2, 3)), (weight * patch).sum((1, 2, 3)), atol=1e-4, rtol=1e-4
    )
    assert resampled_patches(weight, 7) is weight


def test_a_dinov3_transformer_of_hugging_face_is_taken(tmp_path: Path) -> None:
    network = eomt("rotary")
    names = {"layers.": "layer.", "layernorm.": "norm.", ".out_proj.": ".o_proj.", "mlp.fc1": "mlp.up_proj",
             "mlp.fc2": "mlp.down_proj", "patch_embeddings.projection.": "patch_embeddings."}  # fmt: skip
    state = {}
    for key, value in network.state_dict().items():
        if key.startswith(ENCODER):
            for ours, theirs in names.items():
                key = key.replace(ours, theirs)
            state[key] = value.contiguous()
    folder = tmp_path / "dinov3"
    folder.mkdir()
    save_file({**state, "embeddings.mask_token": torch.zeros(1, 1, DIM)}, folder / "model.safetensors")
    torch.manual_seed(9)
    fresh = videomt("rotary", queries=7)
    start = started(fresh, folder)
    assert {key for key in fresh.state_dict() if key.startswith(ENCODER)} == set(start.taken)
    assert torch.equal(fresh.layers[3].norm2.weight, network.layers[3].norm2.weight)  # type: ignore[union-attr, arg-type]


def test_the_online_stage_takes_all_of_a_segmenter_but_its_updater(tmp_path: Path) -> None:
    segmenter, network = eomt(), videomt()
    start = started(network, kept(segmenter, tmp_path))
    assert start.lines()[1:] == ("new: query_updater (2)",)
    own = network.state_dict()
    assert all(torch.equal(own[key], value) for key, value in segmenter.state_dict().items())


def test_a_segmenter_leaves_the_updater_of_an_online_network(tmp_path: Path) -> None:
    assert started(eomt(), kept(videomt(), tmp_path)).lines()[1:] == ("left out: query_updater (2)",)


def test_another_class_count_makes_the_class_head_new_and_known_names_keep_their_rows(tmp_path: Path) -> None:
    before, network = eomt(), videomt(classes=2)
    path = kept(before, tmp_path)
    assert started(network, path).lines()[1] == "new: class_predictor (2), query_updater (2)"
    [line] = take_known_classes(network, str(path), ("chair", "lamp"))
    assert line == "classifier: chair and no object from the file, the rest new"
    theirs, ours = before.class_predictor.weight, network.class_predictor.weight
    assert torch.equal(ours[[0, 2]], theirs[[2, 3]])


def test_the_transformer_alone_may_be_taken_whatever_the_queries(tmp_path: Path) -> None:
    network = videomt(queries=9, query_blocks=1)
    start = started(network, kept(eomt(), tmp_path), "backbone")
    assert all(key.startswith(ENCODER) for key in start.taken)
    assert not start.left


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"dim": 64, "heads": 2}, r"has dim 32; expected network\.dim 64; make `network` agree"),
        ({"blocks": 5}, r"has blocks 4; expected network\.blocks 5"),
        ({"heads": 4}, r"has heads 2; expected network\.heads 4"),
        ({"queries": 9, "query_blocks": 1}, r"has queries 5, query_blocks 2; expected network\.queries 9, network\.qu"),
        ({"positions": "rotary", "table_side": 0}, r"has positions table; expected network\.positions rotary"),
        ({"registers": 4}, r"has registers 2; expected network\.registers 4"),
    ],
)
def test_a_network_of_other_sizes_is_one_line(changed: dict[str, Any], told: str, tmp_path: Path) -> None:
    path, network = kept(eomt(), tmp_path), videomt(**changed)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"first\.safetensors: its network {told}") as caught:
        start_vit(network, str(path), "network")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_what_is_no_such_network_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"layer1.0.conv1.weight": torch.zeros(4, 4, 3, 3)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"this is a torchvision ResNet, a backbone alone; expected a DINOv2"):
        start_vit(eomt(), str(tmp_path / "resnet.pth"), "network")
    with pytest.raises(SettingsError, match=r"init is 'imagenet', whose weights are EfficientNet-Lite0's"):
        start_vit(eomt(), "imagenet", "network")
    state = official_dinov2(16, 3, class_position=False)
    del state["blocks.1.norm2.bias"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match=r"the transformer must fit as a whole, but 2 of its weights"):
        start_vit(eomt(), str(tmp_path / "cut.pth"), "network")


def test_differences_to_dinov3_are_no_start(tmp_path: Path) -> None:
    state = {key: value for key, value in official_dinov2().items() if key != "pos_embed" and "qkv.bias" not in key}
    torch.save({f"network.encoder.backbone.{key}": value for key, value in state.items()}, tmp_path / "differences.bin")
    with pytest.raises(CheckpointError, match=r"differences to DINOv3's weights; add them first with `visrt convert"):
        start_vit(eomt("rotary"), str(tmp_path / "differences.bin"), "network")


def test_nothing_given_leaves_the_network_as_it_is() -> None:
    assert start_vit(eomt(), None, "network") is None
