"""Where GenVIS's training starts: the frame part of a Mask2Former, or all of a VITA or GenVIS network."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor

from visrt.models.checkpoints import fill, read_checkpoint, read_weights
from visrt.models.genvis import GenVis
from visrt.models.genvis_as_frames import start_as_frame_queries

__all__ = ["NewPart", "start_from"]

VIDEO_PART = "vita_module."
PREDICTOR = "sem_seg_head.predictor."
ADDED = (VIDEO_PART + "pre_", VIDEO_PART + "sim_embed_")
"""What a VITA checkpoint may lack: GenVIS's additions, and what only its training needs."""

CLASSIFIERS = tuple(f"{part}class_embed.{kind}" for part in (PREDICTOR, VIDEO_PART) for kind in ("weight", "bias"))

HEADS = {
    PREDICTOR + "decoder_norm.": VIDEO_PART + "decoder_norm.",
    PREDICTOR + "class_embed.": VIDEO_PART + "class_embed.",
    PREDICTOR + "mask_embed.": VIDEO_PART + "mask_embed.",
    "sem_seg_head.pixel_decoder.mask_features.": VIDEO_PART + "vita_mask_features.",
}
"""Modules of the frame part and those of the video part that do the same for a whole clip."""


NewPart = Literal["frame_heads", "frame_queries", "random"]


def start_from(network: GenVis, path: Path | str, new_part: NewPart = "frame_heads") -> list[str]:
    """Start `network` from the checkpoint at `path`; the keys that stay as they are.

    Every key must fit, but for classifiers if the number of classes differs, and what the file's network does not
    have: of VITA the memory, of a Mask2Former the video part. Of that, `new_part` says what starts as the frame part:
    its heads, or all of it (see genvis_as_frames), or nothing.
    """
    path = Path(path)
    weights, own = _weights(path), network.state_dict()
    is_new = not any(key.startswith(VIDEO_PART) for key in weights)
    if is_new and new_part != "random":
        weights |= _heads_of_frames(weights, own)
    may_lack = (VIDEO_PART,) if is_new else ADDED
    kept = [key for key in own if key.startswith(may_lack) and key not in weights]
    kept += [key for key in CLASSIFIERS if key in weights and weights[key].shape != own[key].shape]
    fill(network, {**weights, **{key: own[key] for key in kept}}, path)
    if is_new and new_part == "frame_queries":
        start_as_frame_queries(network)
    return kept


def _weights(path: Path) -> dict[str, Tensor]:
    """The weights by published key, without an instance-embedding head: slots are objects, nothing is compared."""
    weights = {} if path.is_dir() else read_weights(path)[0]
    if not any(key.startswith(VIDEO_PART) for key in weights):
        weights = read_checkpoint(path).weights
    return {key: value for key, value in weights.items() if not key.startswith(PREDICTOR + "reid_embed.")}


def _heads_of_frames(weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights for the video part's heads, of those heads of the frame part that have their shape."""
    heads = {
        theirs + key.removeprefix(ours): value
        for ours, theirs in HEADS.items()
        for key, value in weights.items()
        if key.startswith(ours)
    }
    return {key: value for key, value in heads.items() if key in own and own[key].shape == value.shape}
