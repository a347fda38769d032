"""The official MinVIS and CTVIS networks and ours compute the same, stage by stage and end to end."""

from __future__ import annotations

import pytest
import torch
from golden import Golden, comparing, golden_sets
from golden_networks import mask2former

from visrt.models.decoder import mask_logits

MINVIS = golden_sets("minvis", "network")
CTVIS = golden_sets("ctvis", "network")
BOTH = pytest.mark.parametrize("golden", [*MINVIS, *CTVIS], indirect=True)

MAPS = ("res2", "res3", "res4", "res5")
STRIDES = ("ms_s32", "ms_s16", "ms_s8")
END_TO_END = {"pred_logits": 2e-4, "pred_embds": 2e-4, "pred_embeds": 2e-4, "pred_masks": 1e-3}


@BOTH
@torch.inference_mode()
def test_golden_minvis_and_ctvis_backbone(golden: Golden) -> None:
    maps = mask2former(golden).backbone(torch.from_numpy(golden["net_input"]))
    with comparing(golden) as compare:
        compare("", {f"feat_{name}": maps[name] for name in MAPS})


@BOTH
@torch.inference_mode()
def test_golden_minvis_and_ctvis_pixel_decoder(golden: Golden) -> None:
    features = {name: torch.from_numpy(golden[f"feat_{name}"]) for name in MAPS}
    mask_features, levels = mask2former(golden).sem_seg_head.pixel_decoder(features)
    with comparing(golden) as compare:
        compare("", {"mask_features": mask_features, **dict(zip(STRIDES, levels, strict=True))})


@BOTH
@torch.inference_mode()
def test_golden_minvis_and_ctvis_transformer_decoder(golden: Golden) -> None:
    mask_features = torch.from_numpy(golden["mask_features"])
    levels = [torch.from_numpy(golden[name]) for name in STRIDES]
    last = mask2former(golden).sem_seg_head.predictor(levels, mask_features)[-1]
    masks = mask_logits(last.mask_embeddings, mask_features)
    queries = "pred_queries" if "pred_queries" in golden else "pred_embds"
    with comparing(golden) as compare:
        compare("", {"pred_logits": last.class_logits, "pred_masks": masks, queries: last.queries})


@BOTH
@torch.inference_mode()
def test_golden_minvis_and_ctvis_end_to_end(golden: Golden) -> None:
    """CTVIS's embeddings come from the reid head."""
    outputs = mask2former(golden)(torch.from_numpy(golden["net_input"]))
    masks = mask_logits(outputs.mask_embeddings, outputs.mask_features)
    embeddings = "pred_embeds" if "pred_embeds" in golden else "pred_embds"
    with comparing(golden, END_TO_END) as compare:
        compare("", {"pred_logits": outputs.class_logits, "pred_masks": masks, embeddings: outputs.embeddings})


@BOTH
def test_golden_minvis_and_ctvis_architecture_is_read_from_the_shapes(golden: Golden) -> None:
    settings, meta = mask2former(golden).settings, golden.config
    read = (settings.classes, settings.queries, settings.heads, settings.hidden_dim)
    assert read == (meta["c"], meta["q"], meta["heads"], meta["hid"])
    assert (settings.encoder_layers, settings.decoder_layers) == (meta["enc"], meta["dec"])
    assert settings.decoder_feedforward_dim == meta["ffn"]
    assert settings.reid_dim == (golden.embeddings.shape[-1] if meta["model"] == "ctvis" else 0)
