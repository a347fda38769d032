"""The official VidEoMT and EoMT networks and ours compute the same, stage by stage, over a clip and to the result."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from golden import Finals, Golden, assert_same_finals, comparing, golden_sets
from golden_networks import eomt, network_inputs, videomt
from torch import Tensor

from visrt.benchmarks.video_level.tracks import (
    VideoResult,
    VideoTrack,
    best_of_video,
    mean_over_frames,
    scored_mask,
    scored_track,
)
from visrt.models.checkpoints.checkpoint import NetworkKind, load_checkpoint
from visrt.models.checkpoints.eomt import EOMT
from visrt.models.checkpoints.videomt import VIDEOMT
from visrt.models.decoder import mask_logits
from visrt.models.eomt import Eomt, QueryVit
from visrt.models.mask2former import FrameOutputs
from visrt.models.videomt import VideoMt
from visrt.models.vit import Grid
from visrt.runtime.image import Letterbox
from visrt.runtime.mask_resize import mask_resize
from visrt.runtime.methods.minvis import match_to_slots

VIDEOMTS = pytest.mark.parametrize("golden", golden_sets("videomt", "video"), indirect=True)
EOMTS = pytest.mark.parametrize("golden", golden_sets("eomt", "images"), indirect=True)
BOTH = pytest.mark.parametrize(
    "golden", [*golden_sets("videomt", "video"), *golden_sets("eomt", "images")], indirect=True
)

END_TO_END = {"pred_logits": 1e-4, "pred_masks": 1e-3, "queries_next": 1e-4}
POSITIONS = 1e-6
"""Positions that the official code adds are stored as the difference of two float32 tensors."""


def network_of(golden: Golden) -> VideoMt | Eomt:
    return videomt(golden) if "queries_next" in golden else eomt(golden)


def stored(golden: Golden, name: str) -> Tensor:
    return torch.from_numpy(golden[name])


def grid_of(golden: Golden, network: QueryVit) -> Grid:
    return network.grid(*golden.input_size)


def masks_of(outputs: FrameOutputs) -> Tensor:
    return mask_logits(outputs.mask_embeddings, outputs.mask_features)


def predicted(outputs: Iterable[FrameOutputs]) -> dict[str, Tensor]:
    """Class and mask logits of frames by the names of the set."""
    frames = list(outputs)
    return {
        "pred_logits": torch.cat([frame.class_logits for frame in frames]),
        "pred_masks": torch.cat([masks_of(frame) for frame in frames]),
    }


@BOTH
def test_golden_videomt_and_eomt_architecture_is_read_from_the_shapes(golden: Golden) -> None:
    settings, meta = network_of(golden).settings, golden.config
    assert (settings.classes, settings.queries) == (meta["classes"], meta["queries"])
    assert (settings.dim, settings.blocks, settings.patch) == (meta["embed_dim"], meta["depth"], meta["patch"])
    assert settings.registers == meta["registers"]
    assert settings.query_blocks == meta.get("blocks_with_queries", len(meta.get("segmenter_blocks", ())))
    sides = meta.get("table_grid", meta["grid"])
    assert settings.table_side == (0 if "rope_cos" in golden else sides[0])


@BOTH
def test_golden_videomt_and_eomt_input(golden: Golden) -> None:
    """VidEoMT pads after the normalisation, EoMT before."""
    settings = network_of(golden).settings
    if "padded_u8" in golden:
        mean, std = (torch.tensor(values)[:, None, None] for values in (settings.pixel_mean, settings.pixel_std))
        images = (stored(golden, "padded_u8").float() - mean) / std
    else:
        images = network_inputs(golden, settings.pixel_mean, settings.pixel_std)
    with comparing(golden) as compare:
        compare("", {"net_input": images})


@BOTH
@torch.inference_mode()
def test_golden_videomt_and_eomt_positions_and_tokens(golden: Golden) -> None:
    network = network_of(golden)
    grid = grid_of(golden, network)
    tokens = network.embeddings(stored(golden, "net_input"), grid)
    with comparing(golden, {"pos_embed_used": POSITIONS, "rope_cos": POSITIONS, "rope_sin": POSITIONS}) as compare:
        compare("", {"block0_in": tokens})
        if grid.rotation is not None:
            compare("", {"rope_cos": grid.rotation.cos, "rope_sin": grid.rotation.sin})
        elif grid.table is not None and "pos_embed_used" in golden:
            compare("", {"pos_embed_used": grid.table})
        patches = network.embeddings.patch_embeddings(stored(golden, "net_input"))
        name = "patch_embed" if "patch_embed" in golden else "patch_embed_nhwc"
        if name in golden:
            compare("", {name: patches})


@BOTH
@torch.inference_mode()
def test_golden_videomt_and_eomt_blocks(golden: Golden) -> None:
    """Each block from its stored input; queries are in front from the first block that sees them."""
    network = network_of(golden)
    queries, grid = network.settings.queries, grid_of(golden, network)
    with comparing(golden) as compare:
        for i, block in enumerate(network.layers):
            x = stored(golden, f"block{i}_in")
            x = block(x, grid.rotation_after(x.shape[1] - grid.height * grid.width))
            following = f"block{i + 1}_in" if i + 1 < len(network.layers) else "last_block_out"
            if i + 1 == network.encoder_blocks:
                x = torch.cat((stored(golden, following)[:, :queries], x), dim=1)
            compare("", {following: x})


@BOTH
@torch.inference_mode()
def test_golden_videomt_and_eomt_heads(golden: Golden) -> None:
    network = network_of(golden)
    last = stored(golden, "last_block_out")
    outputs = network.predict(last, grid_of(golden, network))
    with comparing(golden) as compare:
        compare("", {"normed": network.layernorm(last), "mask_embeddings": outputs.mask_embeddings})
        compare("", {"mask_features": outputs.mask_features, **predicted([outputs])})


@VIDEOMTS
@torch.inference_mode()
def test_golden_videomt_first_upscaling(golden: Golden) -> None:
    network = videomt(golden)
    grid = grid_of(golden, network)
    patches = stored(golden, "normed")[:, -grid.height * grid.width :].transpose(1, 2)
    features = network.upscale_block.block[0](patches.unflatten(2, (grid.height, grid.width)))
    with comparing(golden) as compare:
        compare("", {"mask_features_stride8": features})


@VIDEOMTS
@torch.inference_mode()
def test_golden_videomt_state(golden: Golden) -> None:
    """The next queries, of what left the last block."""
    network = videomt(golden)
    queries = stored(golden, "last_block_out")[:, : network.settings.queries]
    with comparing(golden) as compare:
        compare("", {"updater_out": network.query_updater(stored(golden, "updater_in"))})
        compare("", {"queries_next": network.next_queries(queries)})
    assert torch.equal(network.first_queries(1)[0], stored(golden, "queries_in")[0])


@BOTH
@torch.inference_mode()
def test_golden_videomt_and_eomt_encoder_sees_all_frames_at_once(golden: Golden) -> None:
    network = network_of(golden)
    tokens = network.encoder(stored(golden, "net_input"), grid_of(golden, network))
    name = f"block{network.encoder_blocks}_in"
    with comparing(golden) as compare:
        compare("", {name: torch.cat((stored(golden, name)[:, : network.settings.queries], tokens), dim=1)})


@VIDEOMTS
@torch.inference_mode()
def test_golden_videomt_decoder_of_each_frame_from_the_stored_state(golden: Golden) -> None:
    network = videomt(golden)
    tokens = stored(golden, f"block{network.encoder_blocks}_in")[:, network.settings.queries :]
    outputs = network.decoder(tokens, stored(golden, "queries_in"), grid_of(golden, network))
    with comparing(golden) as compare:
        compare("", {"queries_next": outputs.next_queries, **predicted([outputs.frame])})


@VIDEOMTS
@torch.inference_mode()
def test_golden_videomt_over_the_clip(golden: Golden) -> None:
    outputs = videomt(golden)(stored(golden, "net_input"))
    with comparing(golden, END_TO_END) as compare:
        compare("", predicted(output.frame for output in outputs))
        compare("", {"queries_next": torch.cat([output.next_queries for output in outputs])})


@VIDEOMTS
@torch.inference_mode()
def test_golden_videomt_after_a_reset(golden: Golden) -> None:
    """A frame after a reset is as the first of a video."""
    [outputs] = videomt(golden)(stored(golden, "net_input")[3:4])
    bounds = {"reset_frame3_logits": 1e-4, "reset_frame3_masks": 1e-3}
    with comparing(golden, bounds) as compare:
        compare("reset_frame3_", {"logits": outputs.frame.class_logits, "masks": masks_of(outputs.frame)})


@VIDEOMTS
@torch.inference_mode()
def test_golden_videomt_in_the_square_of_its_table(golden: Golden) -> None:
    network = videomt(golden)
    images = stored(golden, "sq/net_input")
    outputs = network(images)
    with comparing(golden, {f"sq/{name}": bound for name, bound in END_TO_END.items()}) as compare:
        compare("sq/", {"tokens_in": network.embeddings(images, network.grid(*images.shape[2:]))})
        compare("sq/", predicted(output.frame for output in outputs))
        compare("sq/", {"queries_next": torch.cat([output.next_queries for output in outputs])})


@VIDEOMTS
@torch.inference_mode()
def test_golden_videomt_from_the_clip_to_the_official_result(golden: Golden) -> None:
    """A slot is a track; the mean of its logits scores it, and a mask has no score."""
    frames = [outputs.frame for outputs in videomt(golden)(stored(golden, "net_input"))]
    slots = mean_over_frames((frame.class_logits[0].numpy(), frame.mask_embeddings[0].numpy()) for frame in frames)
    assert slots is not None
    resize = mask_resize(Letterbox(golden.frames[0].shape[:2], golden.valid_size, golden.input_size))
    tracks = []
    for winner in best_of_video(slots.mean, golden.config["max_num"]):
        logits = (masks_of(frame)[0, winner.slot].numpy() for frame in frames)
        masks = [resize.source_mask(resize.crop(frame)) for frame in logits]
        tracks.append(VideoTrack(winner.label, winner.score, tuple(mask.rle if mask else None for mask in masks)))
    assert_same_finals(VideoResult(len(frames), tuple(tracks)), golden.finals)


@EOMTS
@torch.inference_mode()
def test_golden_eomt_end_to_end(golden: Golden) -> None:
    with comparing(golden, END_TO_END) as compare:
        compare("", predicted([eomt(golden)(stored(golden, "net_input"))]))


@EOMTS
@torch.inference_mode()
def test_golden_eomt_predictions_with_masked_attention(golden: Golden) -> None:
    """As in training: before each block with queries and after the last."""
    network = eomt(golden)
    images = stored(golden, "net_input")[: len(golden["masked/layer0_logits"])]
    grid = grid_of(golden, network)
    ones, zeros = ([share] * network.settings.query_blocks for share in (1.0, 0.0))
    layers = network.masked_layers(network.encoder(images, grid), grid, ones)
    parts = [f"masked/layer{i}_" for i in range(len(layers))]
    with comparing(golden, {f"{part}masks": 1e-3 for part in parts}) as compare:
        for layer, part in zip(layers, parts, strict=True):
            compare(part, {"logits": layer.class_logits, "masks": masks_of(layer)})
    unmasked = network.masked_layers(network.encoder(images, grid), grid, zeros)[-1]
    torch.testing.assert_close(unmasked.class_logits, network(images).class_logits)


@EOMTS
@torch.inference_mode()
def test_golden_eomt_instances_of_each_image(golden: Golden) -> None:
    """The best pairs of query and class, each scored by its mask too."""
    outputs = eomt(golden)(stored(golden, "net_input"))
    shape = tuple(golden["inst_masks_shape"])
    masks = np.unpackbits(golden["inst_masks_packed"])[: np.prod(shape)].reshape(shape).astype(bool)
    source = golden.frames[0].shape[:2]
    scale = golden.config["img_size"] / max(source)
    valid = (round(source[0] * scale), round(source[1] * scale))
    resize = mask_resize(Letterbox(source, valid, golden.input_size))
    logits = masks_of(outputs).numpy()
    for t, expected in enumerate(masks):
        best = best_of_video(outputs.class_logits[t].numpy(), golden.config["topk"])
        made = [scored_track(w, {0: scored_mask(resize, logits[t, w.slot], resize)}, 1) for w in best]
        finals = Finals(golden["inst_scores"][t], golden["inst_labels"][t], expected[:, None])
        assert_same_finals(VideoResult(1, tuple(made)), finals)
        assert sorted(w.slot for w in best) == sorted(golden["inst_queries"][t])


@EOMTS
@torch.inference_mode()
def test_golden_eomt_slots_by_the_rule_of_minvis(golden: Golden) -> None:
    embeddings = eomt(golden)(stored(golden, "net_input")).embeddings.numpy()
    memory = embeddings[0]
    for current, expected in zip(embeddings[1:], golden["minvis_match_perm"], strict=True):
        order = match_to_slots(memory, current)
        assert np.array_equal(order, expected)
        memory = current[order]


@BOTH
def test_golden_videomt_and_eomt_folder_of_transformers_holds_the_same_network(golden: Golden) -> None:
    folder = golden.path.with_name(f"{golden.path.stem}_hf")
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    official = network_of(golden)
    read_as: NetworkKind[Any, Any] = VIDEOMT if isinstance(official, VideoMt) else EOMT
    ours = load_checkpoint(folder, read_as).network()
    assert ours.settings == official.settings
    weights = ours.state_dict()
    assert weights.keys() == official.state_dict().keys()
    assert all(torch.equal(weights[key], value) for key, value in official.state_dict().items())
