"""The official GenVIS network and ours compute the same, stage by stage and clip after clip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import Golden, comparing, golden_sets
from golden_networks import genvis, genvis_run
from torch import Tensor

from visrt.export.genvis import MemoryGraph
from visrt.models.decoder import mask_logits
from visrt.models.genvis import read_memory

SETS = pytest.mark.parametrize("golden", golden_sets("genvis", "video"), indirect=True)
STAGES = ("res2", "res3", "res4", "res5")
BACKBONE = tuple(f"backbone_{name}" for name in STAGES)
LEVELS = tuple(f"pd_multi_scale_{i}" for i in range(3))


def tensors(golden: Golden, clip: str, *names: str) -> list[Tensor]:
    return [torch.from_numpy(golden[clip + name]) for name in names]


@SETS
@torch.inference_mode()
def test_golden_genvis_backbone(golden: Golden) -> None:
    with comparing(golden) as compare:
        for clip in golden.parts("clip", "image_normalized_padded").values():
            maps = genvis(golden).backbone(*tensors(golden, clip, "image_normalized_padded"))
            compare(clip, {f"backbone_{name}": maps[name] for name in STAGES})


@SETS
@torch.inference_mode()
def test_golden_genvis_pixel_decoder(golden: Golden) -> None:
    decoder = genvis(golden).sem_seg_head.pixel_decoder
    with comparing(golden) as compare:
        for clip in golden.parts("clip", *BACKBONE).values():
            fine, levels = decoder.maps(dict(zip(STAGES, tensors(golden, clip, *BACKBONE), strict=True)))
            features = {"pd_clip_mask_features": fine, "pd_mask_features": decoder.mask_features(fine)}
            compare(clip, {**features, **dict(zip(LEVELS, levels, strict=True))})


@SETS
@torch.inference_mode()
def test_golden_genvis_frame_decoder(golden: Golden) -> None:
    with comparing(golden) as compare:
        for clip in golden.parts("clip", "pd_mask_features", *LEVELS).values():
            features, *levels = tensors(golden, clip, "pd_mask_features", *LEVELS)
            last = genvis(golden).sem_seg_head.predictor(levels, features)[-1]
            masks = mask_logits(last.mask_embeddings, features)
            queries = {"m2f_pred_logits": last.class_logits, "frame_queries": last.queries}
            compare(clip, {**queries, "m2f_pred_masks": masks})


@SETS
@torch.inference_mode()
def test_golden_genvis_mask_features(golden: Golden) -> None:
    with comparing(golden) as compare:
        for clip in golden.parts("clip", "pd_clip_mask_features").values():
            [fine] = tensors(golden, clip, "pd_clip_mask_features")
            compare(clip, {"vita_mask_features": genvis(golden).vita_module.vita_mask_features(fine)})


@SETS
@torch.inference_mode()
def test_golden_genvis_object_encoder(golden: Golden) -> None:
    with comparing(golden) as compare:
        for clip in golden.parts("clip", "frame_queries").values():
            compare(
                clip, {"encoder_output": genvis(golden).vita_module.encode(*tensors(golden, clip, "frame_queries"))}
            )


@SETS
@torch.inference_mode()
def test_golden_genvis_object_decoder(golden: Golden) -> None:
    with comparing(golden) as compare:
        for clip in golden.parts("clip", "encoder_output", "query_init").values():
            encoded, start = tensors(golden, clip, "encoder_output", "query_init")
            tokens = encoded.flatten(0, 1).transpose(0, 1)
            outputs = genvis(golden).vita_module.decode(tokens, start.transpose(0, 1))
            layers = {f"objdec_layer{i}_out": layer for i, layer in enumerate(outputs.layers)}
            heads = {"pred_logits": outputs.class_logits, "pred_mask_embed": outputs.mask_embeddings}
            compare(clip, {**layers, **heads, "prototypes_out": outputs.prototypes})


@SETS
@torch.inference_mode()
def test_golden_genvis_prototypes(golden: Golden) -> None:
    """What a clip starts from is made of the last prototypes, and what it remembers of its own."""
    vita = genvis(golden).vita_module
    with comparing(golden) as compare:
        for clip in golden.parts("clip", "prev_prototypes_q").values():
            start = vita.next_start(tensors(golden, clip, "prev_prototypes_q")[0][:, 0])
            compare(clip, {"pre_query_k": start.key})
            if clip + "memory_read_z" in golden:
                compare(clip, {"query_init": start.base.numpy() + golden[clip + "memory_read_z"][:, 0]})
        for clip in golden.parts("clip", "prototypes_out").values():
            key, value = vita.memory_entry(tensors(golden, clip, "prototypes_out")[0][:, 0])
            compare(clip, {"memory_k_new": key, "memory_v_new": value})


def read_by_graph(key: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """What slots [S, C] read of past clips, each [1, S, C]; one entry more is empty."""
    zeros, count = torch.zeros_like(key), len(keys)
    rings = (torch.stack([*(entry[0] for entry in entries), key], dim=1) for entries in (keys, values))
    clips = torch.tensor([*range(count), -1], dtype=torch.int32)
    read: Tensor = MemoryGraph()(zeros, key, *rings, clips, torch.zeros(len(key), dtype=torch.int32))
    return read


@SETS
@torch.inference_mode()
def test_golden_genvis_memory(golden: Golden) -> None:
    """As read in training, and by the memory graph, until a clip's entry is not stored."""
    clips = golden.parts("clip", "pre_query_k", "memory_k_new", "memory_v_new")
    keys: list[Tensor] = []
    values: list[Tensor] = []
    with comparing(golden) as compare:
        for i, clip in clips.items():
            if i != len(keys):
                break
            key = golden[clip + "pre_query_k"][:, 0]
            compare(clip, {"memory_read_z": read_memory(torch.from_numpy(key)[None], keys, values)})
            compare(clip, {"memory_read_z": read_by_graph(torch.from_numpy(key), keys, values)})
            entry = [golden[f"{clip}memory_{name}_new"].reshape(key.shape) for name in "kv"]
            keys.append(torch.from_numpy(entry[0])[None])
            values.append(torch.from_numpy(entry[1])[None])


@SETS
def test_golden_genvis_end_to_end(golden: Golden) -> None:
    """From images through all clips, as near as rounding allows; few mask cells change sides."""
    run = genvis_run(golden)
    flipped = cells = 0
    with comparing(golden, run.bounds) as compare:
        for name, values in run.arrays.items():
            prefix, slash, last = name.rpartition("/")
            compare(prefix + slash, {last: values})
            if last.startswith("mask_logits") and name in golden:
                flipped += int(np.count_nonzero((values > 0) != (golden[name] > 0)))
                cells += values.size
    assert flipped <= run.mask_share * cells


@SETS
def test_golden_genvis_architecture_is_read_from_the_shapes(golden: Golden) -> None:
    settings, config = genvis(golden).settings, golden.config
    given = dict(zip(config["overrides"][::2], config["overrides"][1::2], strict=True))
    assert settings.classes == config["num_classes"]
    assert (settings.frame.heads, settings.heads) == (config["nheads_m2f"], config["nheads_vita"])
    read = {
        "MODEL.VITA.NUM_OBJECT_QUERIES": settings.instances,
        "MODEL.VITA.ENC_LAYERS": settings.encoder_layers,
        "MODEL.VITA.DEC_LAYERS": settings.decoder_layers,
        "MODEL.VITA.DIM_FEEDFORWARD": settings.feedforward_dim,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": settings.frame.queries,
        "MODEL.MASK_FORMER.HIDDEN_DIM": settings.frame.hidden_dim,
        "MODEL.MASK_FORMER.DEC_LAYERS": settings.frame.decoder_layers + 1,
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD": settings.frame.decoder_feedforward_dim,
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": settings.frame.encoder_layers,
        "MODEL.SEM_SEG_HEAD.MASK_DIM": settings.frame.mask_dim,
    }
    named = {name: value for name, value in read.items() if name in given}
    assert named == {name: int(given[name]) for name in named}
