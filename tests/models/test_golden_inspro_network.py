"""The official Sparse R-CNN and CondInst modules, composed as InsPro, and our network compute the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import Golden, comparing, golden_sets
from golden_networks import inspro, inspro_run, key_every
from torch import Tensor

from visrt.models.condinst import aligned_bilinear, dynamic_masks
from visrt.models.feature_pyramid import PyramidRows, pyramid_rows, pyramid_sizes
from visrt.models.inspro import FrameMaps
from visrt.models.interaction import InteractionStage
from visrt.models.roi_align import box_levels, roi_align

SETS = pytest.mark.parametrize("golden", golden_sets("inspro", "video"), indirect=True)
OPERATORS = pytest.mark.parametrize("golden", golden_sets("inspro", "operators"), indirect=True)
PYRAMID = tuple(f"p{level}" for level in range(2, 6))


def tensor(golden: Golden, name: str) -> Tensor:
    return torch.from_numpy(golden[name])


def picture_size(golden: Golden) -> Tensor:
    return torch.tensor([golden.valid_size], dtype=torch.int32)


def stages_of(golden: Golden, frame: int) -> list[tuple[str, InteractionStage]]:
    """The stages that look at a frame, each with its prefix in the set."""
    network = inspro(golden)
    head = network.lite_head if frame % key_every(golden) else network.head
    prefixes = golden.parts(golden.parts("frame")[frame] + "stage")
    stages = [stage for stage in head.head_series if isinstance(stage, InteractionStage)]
    return [(prefixes[i], stage) for i, stage in enumerate(stages) if i in prefixes]


def pyramid_of(golden: Golden, frame: str) -> PyramidRows:
    """The stored pyramid where there is one, else the network's own."""
    if all(frame + name in golden for name in PYRAMID):
        return pyramid_rows([tensor(golden, frame + name) for name in PYRAMID])
    maps: FrameMaps = inspro(golden)(tensor(golden, frame + "image_normalized_padded"))
    return maps.pyramid


@SETS
@torch.inference_mode()
def test_golden_inspro_pyramid_and_mask_features(golden: Golden) -> None:
    with comparing(golden) as compare:
        for frame in golden.parts("frame", "image_normalized_padded").values():
            image = tensor(golden, frame + "image_normalized_padded")
            compare(frame, dict(zip(PYRAMID, inspro(golden).backbone(image), strict=True)))
            outputs = inspro(golden)(image)
            assert outputs.pyramid.sizes == pyramid_sizes(*image.shape[2:])
            compare(frame, {"mask_feats_stride8": outputs.mask_features})


@SETS
@torch.inference_mode()
def test_golden_inspro_every_stage_from_stored_inputs(golden: Golden) -> None:
    needed = ("image_normalized_padded", "query_in", "proposals_in")
    with comparing(golden) as compare:
        for t, frame in golden.parts("frame", *needed).items():
            pyramid = pyramid_of(golden, frame)
            queries, boxes = tensor(golden, frame + "query_in")[None], tensor(golden, frame + "proposals_in")[None]
            for prefix, stage in stages_of(golden, t):
                features = roi_align(pyramid, boxes, stage.outside)
                exchanged = stage.attend(queries)
                computed = {
                    "roi_features": features.transpose(2, 3),
                    "after_self_attn": exchanged,
                    "dynconv_out": stage.inst_interact(exchanged, features),
                }
                compare(prefix, {**computed, **stage(pyramid, queries, boxes)._asdict()})
                queries, boxes = (tensor(golden, prefix + name)[None] for name in ("object_features", "boxes"))


@SETS
@torch.inference_mode()
def test_golden_inspro_masks_from_stored_inputs(golden: Golden) -> None:
    network = inspro(golden)
    with comparing(golden) as compare:
        for t, frame in golden.parts("frame", "mask_feats_stride8").items():
            prefix, stage = stages_of(golden, t)[-1]
            boxes = tensor(golden, prefix + "boxes")[None]
            last = stage.predict(tensor(golden, prefix + "object_features")[None], boxes)._replace(boxes=boxes)
            key = t % key_every(golden) == 0
            own = network.settings.lite_masks == "own"
            generator = network.lite_controller if not key and own else network.controller
            compare(frame, {"controller_params": generator(last.object_features)})
            parameters = network.mask_parameters(last) if key else network.lite_mask_parameters(last)
            features = tensor(golden, frame + "mask_feats_stride8")[0]
            masks = dynamic_masks(parameters[0], features, network.settings.mask_scale_px)
            compare(frame, {"mask_logits_stride4": masks})


@SETS
@torch.inference_mode()
def test_golden_inspro_next_proposals_from_stored_inputs(golden: Golden) -> None:
    height, width = golden.valid_size
    with comparing(golden) as compare:
        for t, frame in golden.parts("frame").items():
            boxes = tensor(golden, stages_of(golden, t)[-1][0] + "boxes")[None]
            proposals = inspro(golden).next_proposals(boxes, picture_size(golden))
            compare(frame, {"proposals_out_clipped": proposals[0] * torch.tensor([width, height, width, height])})


@SETS
@torch.inference_mode()
def test_golden_inspro_next_queries_from_stored_inputs(golden: Golden) -> None:
    """Intra-query attention over the object features of the key frames so far, which the bank holds."""
    network = inspro(golden)
    entries = network.settings.bank_frames - 1
    past: list[Tensor] = []
    with comparing(golden) as compare:
        for t, frame in golden.parts("frame").items():
            if t % key_every(golden):
                continue
            now = tensor(golden, stages_of(golden, t)[-1][0] + "object_features")
            held = past[max(len(past) - entries, 0) :]
            bank = torch.stack([*[torch.zeros_like(now)] * (entries - len(held)), *held], dim=1)[None]
            counts = (torch.arange(entries) >= entries - len(held)).expand(1, len(now), entries)
            weights = network.intra_query_eps.weights(now[None], bank, counts)[0].transpose(0, 1)
            compare(frame, {"intra_query_weights": weights[entries - len(held) :]})
            assert not weights[: entries - len(held)].any()
            compare(frame, {"query_out": network.next_queries(now[None], bank, counts)})
            past.append(now)


@SETS
def test_golden_inspro_loop_from_images(golden: Golden) -> None:
    """All frames, each from our own pairs of the one before, as near as rounding allows."""
    run = inspro_run(golden)
    with comparing(golden, run.bounds) as compare:
        for name, values in run.arrays.items():
            prefix, slash, last = name.rpartition("/")
            compare(prefix + slash, {last: values})


@OPERATORS
def test_golden_inspro_pooling(golden: Golden) -> None:
    """Boxes on all levels, tiny ones and some outside the image."""
    pyramid = pyramid_rows([tensor(golden, f"roi/{name}") for name in PYRAMID])
    boxes = tensor(golden, "roi/boxes")
    np.testing.assert_array_equal(box_levels(boxes) + 2, golden["roi/levels"])
    pooled = roi_align(pyramid, boxes[None], "edge")[0].transpose(1, 2)
    np.testing.assert_allclose(pooled.reshape(golden["roi/out"].shape), golden["roi/out"], atol=1e-5)


@OPERATORS
def test_golden_inspro_aligned_bilinear(golden: Golden) -> None:
    place = "aligned_bilinear/"
    factors = [int(name.removeprefix(place + "f")) for name in golden.arrays if name.startswith(place + "f")]
    assert factors
    for factor in factors:
        enlarged = aligned_bilinear(tensor(golden, place + "x"), factor)
        np.testing.assert_allclose(enlarged, golden[f"{place}f{factor}"], atol=1e-5)


@SETS
def test_golden_inspro_architecture_is_read_from_the_shapes(golden: Golden) -> None:
    settings, config = inspro(golden).settings, golden.config
    head, masks = config["sparsercnn"], config["mask_branch"]
    assert (settings.classes, settings.queries) == (head["NUM_CLASSES"], head["NUM_PROPOSALS"])
    assert (settings.stages, settings.dim) == (head["NUM_HEADS"], head["HIDDEN_DIM"])
    assert (settings.feedforward_dim, settings.dynamic_dim) == (head["DIM_FEEDFORWARD"], head["DIM_DYNAMIC"])
    assert (settings.class_layers, settings.box_layers) == (head["NUM_CLS"], head["NUM_REG"])
    assert (settings.mask_channels, settings.mask_convolutions) == (masks["CHANNELS"], masks["NUM_CONVS"])
    assert settings.mask_features == masks["OUT_CHANNELS"]
    assert settings.importance == ("scalar" if config["eps_out"] == 1 else "channel")
    assert bool(settings.lite_stages) == bool(config["lite_K"])
