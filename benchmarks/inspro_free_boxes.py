"""How InsPro's free boxes lie around the objects, those of slots that no object holds: as figures, and drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from visrt.models.inspro import InsPro
from visrt.training.batches import clip_batch, validation_clips
from visrt.training.boxes import centres_of, pairwise_iou
from visrt.training.inspro_learner import box_targets
from visrt.training.inspro_quality import stages_of_clip
from visrt.training.inspro_settings import InsProTrainSettings
from visrt.training.inspro_targets import consistent_matches, pairwise_costs

__all__ = ["LaidBoxes", "draw_free_boxes", "free_boxes", "laid_boxes"]

NEAREST = 5
COLUMNS = 3


class LaidBoxes(NamedTuple):
    """One frame: uint8 RGB [H, W, 3], boxes [G, 4] of its objects, [G, 4] of their slots, [N - G, 4] of the others."""

    frame: NDArray[np.uint8]
    objects: torch.Tensor
    held: torch.Tensor
    free: torch.Tensor


def free_boxes(network: InsPro, settings: InsProTrainSettings) -> dict[str, float]:
    """Over the held-out clips, for each object: how many free centres lie within the loss's margin (the root of
    `dedup_margin`, in diagonals of the object), the mean distance of the five nearest in diagonals, the mean IoU of the
    five free boxes that overlap it most, and how many cover it at an IoU above 0.5; and the mean IoU between them."""
    margin = settings.loss.dedup_margin**0.5
    within, distances, overlaps, covering, between = [], [], [], [], []
    for laid in laid_boxes(network, settings):
        iou = pairwise_iou(laid.free, laid.objects)
        diagonals = (laid.objects[:, 2:] - laid.objects[:, :2]).norm(dim=1)
        apart = torch.cdist(centres_of(laid.free), centres_of(laid.objects)) / diagonals
        within += (apart < margin).sum(dim=0).tolist()
        distances += apart.sort(dim=0).values[:NEAREST].mean(dim=0).tolist()
        overlaps += iou.sort(dim=0, descending=True).values[:NEAREST].mean(dim=0).tolist()
        covering += (iou > 0.5).sum(dim=0).tolist()
        among = pairwise_iou(laid.free, laid.free)
        between.append(float((among.sum() - among.diagonal().sum()) / (len(among) * (len(among) - 1))))
    return {
        "centres_within_the_margin": float(np.mean(within)),
        "nearest_centres_diagonals": float(np.mean(distances)),
        "largest_iou": float(np.mean(overlaps)),
        "covering_an_object": float(np.mean(covering)),
        "iou_between_them": float(np.mean(between)),
    }


def laid_boxes(network: InsPro, settings: InsProTrainSettings) -> Iterator[LaidBoxes]:
    """Of every frame with an object of the held-out clips, matched through the clip as in training."""
    network.eval()
    for clip in validation_clips(settings):
        batch = clip_batch([clip], network.settings.pixel_mean, network.settings.pixel_std)
        size, held = (batch.images.shape[2], batch.images.shape[3]), dict[int, int]()
        frames = zip(clip.frames, stages_of_clip(network, batch.images, settings), batch.targets, strict=True)
        for frame, last, target in frames:
            truth = box_targets(target, size)
            cost = pairwise_costs(last, truth, settings.loss.costs)
            matches, held = consistent_matches(cost, truth.ids, held)
            if len(matches.queries):
                free = torch.ones(len(last.boxes), dtype=torch.bool)
                free[list(held.values())] = False
                yield LaidBoxes(frame, truth.boxes[matches.objects], last.boxes[matches.queries], last.boxes[free])


def draw_free_boxes(networks: Mapping[str, InsPro], settings: InsProTrainSettings, path: Path) -> None:
    """A row of frames for each of `networks` by name, the same frames in every row, as a PNG at `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * COLUMNS, 2.7 * len(networks)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(networks), COLUMNS, squeeze=False)
    for row, (name, network) in zip(grid, networks.items(), strict=True):
        every = list(laid_boxes(network, settings))
        # Spread over the clips, so that the panels differ.
        for i, axes in enumerate(row):
            _draw(axes, every[(2 * i + 1) * len(every) // (2 * COLUMNS)])
        row[0].set_title(name, loc="left", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw(axes: Any, laid: LaidBoxes) -> None:
    """Free boxes thin and red with their centres, slots that hold an object blue, objects white."""
    from matplotlib.patches import Rectangle

    axes.imshow(laid.frame)
    height, width = laid.frame.shape[:2]
    axes.set(xlim=(-0.15 * width, 1.15 * width), ylim=(1.15 * height, -0.15 * height), xticks=[], yticks=[])
    for boxes, colour, line in ((laid.free, "red", 0.6), (laid.objects, "white", 2.2), (laid.held, "deepskyblue", 1.2)):
        for x1, y1, x2, y2 in boxes.tolist():
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=line))
    centres = centres_of(laid.free)
    axes.scatter(centres[:, 0], centres[:, 1], s=7, color="red")
