"""The official MinVIS and CTVIS networks and ours compute the same, stage by stage and end to end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import golden_meta, golden_sets, load_golden
from numpy.typing import NDArray
from torch import Tensor

from visrt.models.checkpoints import load_checkpoint
from visrt.models.decoder import mask_logits
from visrt.models.mask2former import Mask2Former
from visrt.models.mask2former_checkpoints import MASK2FORMER

MINVIS = golden_sets("minvis_*", without="_track_")
CTVIS = golden_sets("ctvis_*", without="_track_")

STRIDES = ("ms_s32", "ms_s16", "ms_s8")


@dataclass(frozen=True)
class Golden:
    """One set: its arrays and the network with its weights."""

    arrays: dict[str, NDArray[Any]]
    network: Mask2Former

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    path: Path = request.param
    arrays = load_golden(path)
    classes = arrays["pred_logits"].shape[-1] - 1
    return Golden(
        arrays,
        load_checkpoint(path.with_name(f"{path.stem}_weights.pth"), MASK2FORMER, expected_classes=classes).network(),
    )


def assert_within(tolerance: float, computed: Mapping[str, Tensor], stored: Mapping[str, NDArray[Any]]) -> None:
    """No element differs by more than `tolerance`."""
    for name, expected in stored.items():
        assert computed[name].shape == expected.shape, name
        worst = np.abs(computed[name].numpy() - expected).max()
        assert worst <= tolerance, f"{name}: {worst} > {tolerance}"


def assert_stage(computed: Mapping[str, Tensor], stored: Mapping[str, NDArray[Any]]) -> None:
    """Within 1e-4 times the larger of 1 and the largest stored value, array by array."""
    for name, expected in stored.items():
        assert_within(1e-4 * max(1.0, float(np.abs(expected).max())), computed, {name: expected})


def check_backbone(golden: Golden) -> None:
    names = ("res2", "res3", "res4", "res5")
    with torch.inference_mode():
        maps = golden.network.backbone(golden.tensor("net_input"))
    assert_stage(maps, {name: golden.arrays[f"feat_{name}"] for name in names})


def check_pixel_decoder(golden: Golden) -> None:
    features = {name: golden.tensor(f"feat_{name}") for name in ("res2", "res3", "res4", "res5")}
    with torch.inference_mode():
        mask_features, levels = golden.network.sem_seg_head.pixel_decoder(features)
    computed = {"mask_features": mask_features, **dict(zip(STRIDES, levels, strict=True))}
    assert_stage(computed, {name: golden.arrays[name] for name in ("mask_features", *STRIDES)})


def check_decoder(golden: Golden, queries: str) -> None:
    mask_features = golden.tensor("mask_features")
    with torch.inference_mode():
        last = golden.network.sem_seg_head.predictor([golden.tensor(name) for name in STRIDES], mask_features)[-1]
        masks = mask_logits(last.mask_embeddings, mask_features)
    computed = {"pred_logits": last.class_logits, "pred_masks": masks, queries: last.queries}
    assert_stage(computed, {name: golden.arrays[name] for name in computed})


def check_end_to_end(golden: Golden, embeddings: str) -> None:
    with torch.inference_mode():
        outputs = golden.network(golden.tensor("net_input"))
        masks = mask_logits(outputs.mask_embeddings, outputs.mask_features)
    assert_within(2e-4, {"logits": outputs.class_logits}, {"logits": golden.arrays["pred_logits"]})
    assert_within(2e-4, {"embeddings": outputs.embeddings}, {"embeddings": golden.arrays[embeddings]})
    assert_within(1e-3, {"masks": masks}, {"masks": golden.arrays["pred_masks"]})


@pytest.mark.parametrize("golden", MINVIS, indirect=True)
def test_golden_minvis_backbone(golden: Golden) -> None:
    check_backbone(golden)


@pytest.mark.parametrize("golden", MINVIS, indirect=True)
def test_golden_minvis_pixel_decoder(golden: Golden) -> None:
    check_pixel_decoder(golden)


@pytest.mark.parametrize("golden", MINVIS, indirect=True)
def test_golden_minvis_transformer_decoder(golden: Golden) -> None:
    check_decoder(golden, "pred_embds")


@pytest.mark.parametrize("golden", MINVIS, indirect=True)
def test_golden_minvis_end_to_end(golden: Golden) -> None:
    check_end_to_end(golden, "pred_embds")


@pytest.mark.parametrize("golden", MINVIS, indirect=True)
def test_golden_minvis_architecture_is_read_from_the_shapes(golden: Golden) -> None:
    settings, meta = golden.network.settings, golden_meta(golden.arrays)
    read = (settings.classes, settings.queries, settings.heads, settings.hidden_dim)
    assert read == (meta["c"], meta["q"], meta["heads"], meta["hid"])
    assert (settings.encoder_layers, settings.decoder_layers) == (meta["enc"], meta["dec"])
    assert settings.decoder_feedforward_dim == meta["ffn"]
    assert settings.reid_dim == 0


@pytest.mark.parametrize("golden", CTVIS, indirect=True)
def test_golden_ctvis_backbone(golden: Golden) -> None:
    check_backbone(golden)


@pytest.mark.parametrize("golden", CTVIS, indirect=True)
def test_golden_ctvis_pixel_decoder(golden: Golden) -> None:
    check_pixel_decoder(golden)


@pytest.mark.parametrize("golden", CTVIS, indirect=True)
def test_golden_ctvis_transformer_decoder(golden: Golden) -> None:
    check_decoder(golden, "pred_queries")


@pytest.mark.parametrize("golden", CTVIS, indirect=True)
def test_golden_ctvis_end_to_end_embeddings_come_from_the_reid_head(golden: Golden) -> None:
    check_end_to_end(golden, "pred_embeds")
