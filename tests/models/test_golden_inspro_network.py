"""The official Sparse R-CNN and CondInst modules, composed as InsPro, and our network compute the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import golden_sets, load_golden
from numpy.typing import NDArray
from torch import Tensor

from visrt.models.checkpoints import load_checkpoint
from visrt.models.condinst import aligned_bilinear, dynamic_masks
from visrt.models.feature_pyramid import PyramidRows, pyramid_rows, pyramid_sizes
from visrt.models.inspro import FrameMaps, InsPro, Pairs
from visrt.models.inspro_checkpoints import INSPRO
from visrt.models.interaction import InteractionStage
from visrt.models.roi_align import box_levels, roi_align

SETS = golden_sets("inspro_*composed_*")
MICRO = golden_sets("inspro_micro_*")


@dataclass(frozen=True)
class Golden:
    """One set: its arrays, the network with its weights, and frames between key frames."""

    arrays: dict[str, NDArray[Any]]
    network: InsPro
    key_every: int

    @property
    def frames(self) -> list[str]:
        """Prefixes of the frames, in order."""
        return [f"frame{i}/" for i in range(len(self.arrays["in/frames_rgb_uint8"]))]

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    @property
    def sizes(self) -> Tensor:
        """Height and width of the picture, [1, 2]."""
        return torch.tensor([self.arrays["in/resized_uint8_chw"].shape[-2:]], dtype=torch.int32)

    def is_key(self, frame: str) -> bool:
        return int(frame[5:-1]) % self.key_every == 0

    def stages(self, frame: str) -> list[InteractionStage]:
        head = self.network.head if self.is_key(frame) else self.network.lite_head
        return [stage for stage in head.head_series if isinstance(stage, InteractionStage)]

    def pyramid(self, frame: str) -> PyramidRows:
        """The stored pyramid where there is one, else the network's own."""
        if frame + "p2" in self.arrays:
            return pyramid_rows([self.tensor(f"{frame}p{level}") for level in range(2, 6)])
        maps: FrameMaps = self.network(self.tensor(frame + "image_normalized_padded"))
        return maps.pyramid

    def pairs(self, frame: str) -> Pairs:
        height, width = self.sizes[0].tolist()
        scale = torch.tensor([width, height, width, height])
        return Pairs(self.tensor(frame + "query_in")[None], self.tensor(frame + "proposals_in")[None] / scale)


@pytest.fixture
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    arrays = load_golden(request.param)
    weights = {name[3:]: torch.from_numpy(array) for name, array in arrays.items() if name.startswith("sd/")}
    torch.save({"model": weights}, tmp_path / "composed.pth")
    told = json.loads(str(arrays["config_json"]))
    checkpoint = load_checkpoint(
        tmp_path / "composed.pth",
        INSPRO,
        settings={
            "heads": told["sparsercnn"]["NHEADS"],
            "bank_frames": told["bank_T"],
            "mask_scale_px": told["rel_coord_div"],
        },
    )
    return Golden(arrays, checkpoint.network(), told["lite_K"] or 1)


def assert_close(computed: Mapping[str, Tensor | NDArray[Any]], golden: Golden, prefix: str) -> None:
    """Within 1e-4 times the larger of 1 and the largest stored value, array by array."""
    for name, given in computed.items():
        stored = golden.arrays[prefix + name]
        worst = np.abs(np.asarray(given).reshape(stored.shape) - stored).max()
        assert worst <= 1e-4 * max(1.0, float(np.abs(stored).max())), f"{prefix}{name}: {worst}"


def stored_bank(golden: Golden, before: str) -> tuple[Tensor, Tensor]:
    """What the stored bank held before a frame, [1, T - 1, N, C] with zeros where nothing was, and its fill."""
    keys = [frame for frame in golden.frames if golden.is_key(frame) and int(frame[5:-1]) < int(before[5:-1])]
    last = len(golden.stages(golden.frames[0])) - 1
    length = golden.network.settings.bank_frames - 1
    held = [golden.tensor(f"{frame}stage{last}/object_features") for frame in keys][-length:]
    empty = torch.zeros_like(golden.tensor(before + "query_in"))
    bank = torch.stack([*[empty] * (length - len(held)), *held])[None]
    return bank, torch.full((1, len(empty)), len(held), dtype=torch.int32)


@pytest.mark.parametrize("golden", SETS, indirect=True)
@torch.inference_mode()
def test_golden_inspro_pyramid_and_mask_features(golden: Golden) -> None:
    for frame in golden.frames:
        image = golden.tensor(frame + "image_normalized_padded")
        maps = golden.network.backbone(image)
        stored = {f"p{level}": maps[level - 2] for level in range(2, 6) if f"{frame}p{level}" in golden.arrays}
        assert_close(stored, golden, frame)
        outputs = golden.network(image)
        assert outputs.pyramid.sizes == pyramid_sizes(*image.shape[2:])
        assert_close({"mask_feats_stride8": outputs.mask_features}, golden, frame)


@pytest.mark.parametrize("golden", SETS, indirect=True)
@torch.inference_mode()
def test_golden_inspro_every_stage_from_stored_inputs(golden: Golden) -> None:
    for frame in golden.frames:
        pyramid = golden.pyramid(frame)
        queries, boxes = golden.tensor(frame + "query_in")[None], golden.tensor(frame + "proposals_in")[None]
        for i, stage in enumerate(golden.stages(frame)):
            prefix = f"{frame}stage{i}/"
            features = roi_align(pyramid, boxes, stage.outside)
            exchanged = stage.attend(queries)
            computed: dict[str, Tensor] = {
                "roi_features": features.transpose(2, 3),
                "after_self_attn": exchanged,
                "dynconv_out": stage.inst_interact(exchanged, features),
                **stage(pyramid, queries, boxes)._asdict(),
            }
            assert_close({k: v for k, v in computed.items() if prefix + k in golden.arrays}, golden, prefix)
            queries, boxes = (golden.tensor(prefix + name)[None] for name in ("object_features", "boxes"))


@pytest.mark.parametrize("golden", SETS, indirect=True)
@torch.inference_mode()
def test_golden_inspro_masks_from_stored_inputs(golden: Golden) -> None:
    network = golden.network
    for frame in golden.frames:
        prefix = f"{frame}stage{len(golden.stages(frame)) - 1}/"
        last = golden.stages(frame)[-1].predict(
            golden.tensor(prefix + "object_features")[None], golden.tensor(prefix + "boxes")[None]
        )
        last = last._replace(boxes=golden.tensor(prefix + "boxes")[None])
        key = golden.is_key(frame)
        generator = network.controller if key else network.lite_controller
        assert_close({"controller_params": generator(last.object_features)}, golden, frame)
        parameters = network.mask_parameters(last) if key else network.lite_mask_parameters(last)
        features = golden.tensor(frame + "mask_feats_stride8")[0]
        masks = dynamic_masks(parameters[0], features, network.settings.mask_scale_px)
        assert_close({"mask_logits_stride4": masks}, golden, frame)


@pytest.mark.parametrize("golden", SETS, indirect=True)
@torch.inference_mode()
def test_golden_inspro_hand_over_from_stored_inputs(golden: Golden) -> None:
    """Intra-query attention over the stored bank, queries, and clipped proposals."""
    network = golden.network
    for frame in golden.frames:
        prefix = f"{frame}stage{len(golden.stages(frame)) - 1}/"
        proposals = network.next_proposals(golden.tensor(prefix + "boxes")[None], golden.sizes)
        height, width = golden.sizes[0].tolist()
        pixels = proposals[0] * torch.tensor([width, height, width, height])
        assert_close({"proposals_out_clipped": pixels}, golden, frame)
        if not golden.is_key(frame):
            continue
        past, fill = stored_bank(golden, frame)
        now = golden.tensor(prefix + "object_features")[None]
        weights = network.intra_query_eps.weights(torch.cat((past, now[:, None]), dim=1), fill)
        stored = golden.arrays[frame + "intra_query_weights"]
        assert_close({"intra_query_weights": weights[0, -len(stored) :]}, golden, frame)
        assert not weights[0, : -len(stored)].any()
        assert_close({"query_out": network.next_queries(now, past, fill)}, golden, frame)


@pytest.mark.parametrize("golden", SETS, indirect=True)
@torch.inference_mode()
def test_golden_inspro_loop_from_images(golden: Golden) -> None:
    """All frames from their images with the default settings; only the first pairs are the network's own as well."""
    network = golden.network
    first = network.first_pairs()
    loop = looped(golden, Pairs(first.queries[None], first.proposals[None]))
    for frame, (class_logits, boxes, masks, pairs) in zip(golden.frames, loop, strict=True):
        prefix = f"{frame}stage{len(golden.stages(frame)) - 1}/"
        assert_close({"class_logits": class_logits, "boxes": boxes}, golden, prefix)
        assert_close({"mask_logits_stride4": masks}, golden, frame)
        if golden.is_key(frame):
            assert_close({"query_out": pairs.queries}, golden, frame)


def looped(golden: Golden, pairs: Pairs) -> Iterable[tuple[Tensor, Tensor, Tensor, Pairs]]:
    """Class logits, boxes and masks of each frame, and the pairs it hands over."""
    network, settings = golden.network, golden.network.settings
    slots, dim = pairs.queries.shape[1:]
    bank = torch.zeros(1, settings.bank_frames - 1, slots, dim)
    fill = torch.zeros(1, slots, dtype=torch.int32)
    for frame in golden.frames:
        maps = network(golden.tensor(frame + "image_normalized_padded"))
        key = golden.is_key(frame)
        last = (network.stages if key else network.lite)(maps.pyramid, pairs, golden.sizes)[-1]
        parameters = (network.mask_parameters if key else network.lite_mask_parameters)(last)
        queries = pairs.queries
        if key:
            queries = network.next_queries(last.object_features, bank, fill)
            bank = torch.cat((bank[:, 1:], last.object_features[:, None]), dim=1)
            fill = (fill + 1).clamp(max=bank.shape[1])
        pairs = Pairs(queries, network.next_proposals(last.boxes, golden.sizes))
        masks = dynamic_masks(parameters[0], maps.mask_features[0], settings.mask_scale_px)
        yield last.class_logits, last.boxes, masks, pairs


@pytest.mark.parametrize("path", MICRO)
def test_golden_inspro_pooling(path: Path) -> None:
    """Boxes on all levels, tiny ones and some outside the image."""
    golden = load_golden(path)
    pyramid = pyramid_rows([torch.from_numpy(golden[f"roi/p{level}"]) for level in range(2, 6)])
    boxes = torch.from_numpy(golden["roi/boxes"])
    np.testing.assert_array_equal(box_levels(boxes) + 2, golden["roi/levels"])
    pooled = roi_align(pyramid, boxes[None], "edge")[0].transpose(1, 2)
    np.testing.assert_allclose(pooled.reshape(golden["roi/out"].shape), golden["roi/out"], atol=1e-5)


@pytest.mark.parametrize("path", MICRO)
@pytest.mark.parametrize("factor", [2, 4])
def test_golden_inspro_aligned_bilinear(path: Path, factor: int) -> None:
    golden = load_golden(path)
    enlarged = aligned_bilinear(torch.from_numpy(golden["aligned_bilinear/x"]), factor)
    np.testing.assert_allclose(enlarged, golden[f"aligned_bilinear/f{factor}"], atol=1e-5)


@pytest.mark.parametrize("golden", SETS, indirect=True)
def test_golden_inspro_architecture_is_read_from_the_shapes(golden: Golden) -> None:
    settings = golden.network.settings
    assert (settings.classes, settings.queries, settings.stages) == (7, 10, 3)
    assert (settings.dim, settings.feedforward_dim, settings.dynamic_dim) == (32, 64, 8)
    assert (settings.class_layers, settings.box_layers) == (1, 2)
    assert (settings.mask_channels, settings.mask_convolutions, settings.mask_features) == (16, 2, 8)
    assert settings.lite_stages == (1 if golden.key_every > 1 else 0)
