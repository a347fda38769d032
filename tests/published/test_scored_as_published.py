"""The official rule on a set of two aspects, against the published inference written out in torch and Pillow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import PUBLISHED_KIND
from numpy.typing import NDArray
from official_layouts import make_split
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import interpolate, pad

from visrt.benchmarks.accuracy.bundle_run import BundleRun
from visrt.benchmarks.accuracy.scores import evaluate
from visrt.export.bundle import Export
from visrt.export.sizes import export_sizes, sizes_for_shapes, video_shapes
from visrt.models.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.models.dataset_classes import DATASET_CLASSES
from visrt.models.mask2former import Mask2Former

SHORT_SIDE = 60
TOP_K = 10
FRAMES = 5
CLASSES = DATASET_CLASSES["ytvis2019"]
NETWORK = replace(PUBLISHED_KIND, classes=len(CLASSES), queries=12)


@dataclass(frozen=True)
class PublishedTrack:
    """label, score, and masks bool [frames, height, width] at the size of the video."""

    label: int
    score: float
    masks: NDArray[np.bool_]


@torch.no_grad()
def published_tracks(network: Mask2Former, frames: Sequence[NDArray[np.uint8]]) -> list[PublishedTrack]:
    """MinVIS's released inference: queries follow one another by cosine, class logits are averaged over the video."""
    logits, masks = [], []
    memory: Tensor | None = None
    for frame in frames:
        pixels = as_published(network, frame)
        padded = pad(pixels, (0, -pixels.shape[2] % 32, 0, -pixels.shape[1] % 32))
        outputs = network(padded[None])
        order = torch.arange(network.settings.queries) if memory is None else matched(memory, outputs.embeddings[0])
        memory = outputs.embeddings[0][order]
        logits.append(outputs.class_logits[0][order])
        quarter = torch.einsum("qd,dhw->qhw", outputs.mask_embeddings[0][order], outputs.mask_features[0])
        whole = interpolate(quarter[None], size=padded.shape[1:], mode="bilinear", align_corners=False)
        valid = whole[:, :, : pixels.shape[1], : pixels.shape[2]]
        masks.append(interpolate(valid, size=frame.shape[:2], mode="bilinear", align_corners=False)[0] > 0)
    scores, best = torch.stack(logits).mean(0).softmax(-1)[:, :-1].flatten().topk(TOP_K)
    slots, labels = best // network.settings.classes, best % network.settings.classes
    return [
        PublishedTrack(int(label), float(score), torch.stack([mask[slot] for mask in masks]).numpy())
        for label, score, slot in zip(labels, scores, slots, strict=True)
    ]


def as_published(network: Mask2Former, frame: NDArray[np.uint8]) -> Tensor:
    """`frame` [H, W, 3] with its short side at SHORT_SIDE, normalised [3, h, w]."""
    scale = SHORT_SIDE / min(frame.shape[:2])
    height, width = (int(side * scale + 0.5) for side in frame.shape[:2])
    picture = np.array(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (network.settings.pixel_mean, network.settings.pixel_std)
    )
    return (torch.from_numpy(picture).permute(2, 0, 1).float() - mean) / std


def matched(memory: Tensor, now: Tensor) -> Tensor:
    """For each slot of `memory` [Q, C] its query in `now` [Q, C]."""
    before, after = (each / each.norm(dim=1)[:, None] for each in (memory, now))
    return torch.from_numpy(linear_sum_assignment((1 - before @ after.T).numpy())[1])


@dataclass(frozen=True)
class Scored:
    """A set of two aspects, its network, and the results that visrt wrote."""

    data: Path
    network: Mask2Former
    results: list[dict[str, Any]]
    network_sizes: tuple[tuple[int, int], ...]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    folder = tmp_path_factory.mktemp("scored")
    places = make_split(folder, "ytvis19", "valid", annotated=False, frames=FRAMES)
    annotations = places.folder / places.annotations
    torch.manual_seed(2)
    save_checkpoint(Mask2Former(NETWORK).eval(), folder / "model.safetensors", CLASSES)
    sizes = tuple(sizes_for_shapes(video_shapes(annotations), SHORT_SIDE, None))
    export = Export(folder / "model.safetensors", folder / "bundle", *sizes[0], short_side=SHORT_SIDE)
    export_sizes(export, sizes)
    run = BundleRun(threads=1, jobs=1, rules=("official",), write_results=folder / "out")
    evaluate(folder / "bundle", annotations, None, run)
    network = load_checkpoint(folder / "model.safetensors", MASK2FORMER).network()
    return Scored(annotations, network.eval(), json.loads((folder / "out" / "results.json").read_text()), sizes)


def test_a_bundle_for_a_set_has_the_sizes_that_published_models_see(scored: Scored) -> None:
    assert sorted(scored.network_sizes) == [(64, 128), (128, 64)]


def test_written_results_are_those_of_the_published_inference(scored: Scored) -> None:
    videos = json.loads(scored.data.read_text())["videos"]

    for video in videos:
        found = [one for one in scored.results if one["video_id"] == video["id"]]
        frames = [rgb(scored.data.with_suffix("") / "JPEGImages" / name) for name in video["file_names"]]
        expected = published_tracks(scored.network, frames)

        assert [one["category_id"] for one in found] == [track.label + 1 for track in expected]
        assert [one["score"] for one in found] == pytest.approx([track.score for track in expected], abs=1e-4)
        masks = np.stack([pixels(one["segmentations"], frames[0].shape[:2]) for one in found])
        assert masks.any()
        assert (masks != np.stack([track.masks for track in expected])).mean() <= 1e-4


def rgb(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def pixels(masks: Sequence[dict[str, Any] | None], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """bool [frames, height, width] of the RLEs of a track."""
    empty = np.zeros(size, dtype=np.uint8)
    return np.stack([empty if one is None else coco_mask.decode(one) for one in masks]).astype(bool)
