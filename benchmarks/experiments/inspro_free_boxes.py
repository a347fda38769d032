"""How InsPro's free boxes lie around the objects, those of slots that no object holds: as figures, and drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from visrt.models.inspro import InsPro
from visrt.training.batches import clip_batch, validation_clips
from visrt.training.inspro_learner import box_targets, stages_of_clip
from visrt.training.inspro_settings import InsProTrainSettings
from visrt.training.losses.boxes import centres_of, pairwise_iou
from visrt.training.losses.inspro_targets import consistent_matches, pairwise_costs

__all__ = ["LaidBoxes", "draw_free_boxes", "free_boxes", "laid_boxes", "ring_densities"]

NEAREST = 5
COLUMNS = 3
RINGS: NDArray[np.float64] = np.linspace(0, 0.8, 11)
"""Borders of rings around an object's centre, in its diagonals."""


class LaidBoxes(NamedTuple):
    """One frame of `size`, height and width: boxes [G, 4] of its objects, [G, 4] of their slots, [N - G, 4] of the
    others."""

    size: tuple[int, int]
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
        apart = in_diagonals(laid)
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
        for last, target in zip(stages_of_clip(network, batch.images, settings), batch.targets, strict=True):
            truth = box_targets(target, size)
            cost = pairwise_costs(last, truth, settings.loss.costs)
            matches, held = consistent_matches(cost, truth.ids, held)
            if len(matches.queries):
                free = torch.ones(len(last.boxes), dtype=torch.bool)
                free[list(held.values())] = False
                yield LaidBoxes(size, truth.boxes[matches.objects], last.boxes[matches.queries], last.boxes[free])


def in_diagonals(laid: LaidBoxes) -> torch.Tensor:
    """Distances [N - G, G] of free centres from the objects', in diagonals of the object."""
    diagonals = (laid.objects[:, 2:] - laid.objects[:, :2]).norm(dim=1)
    apart: torch.Tensor = torch.cdist(centres_of(laid.free), centres_of(laid.objects)) / diagonals
    return apart


def ring_densities(every: Sequence[LaidBoxes]) -> NDArray[np.float64]:
    """Free centres around an object by distance: of each ring of RINGS, how many in one squared diagonal of it."""
    apart = np.concatenate([in_diagonals(laid).flatten().numpy() for laid in every])
    counts, _ = np.histogram(apart, RINGS)
    objects = sum(len(laid.objects) for laid in every)
    return counts / (np.pi * np.diff(RINGS**2) * objects)


def draw_free_boxes(arms: Mapping[str, Sequence[InsPro]], settings: InsProTrainSettings, path: Path) -> None:
    """A PNG at `path`: of each of `arms`, by name, a row of its first network's boxes, the same frames in every row;
    below, how densely free centres lie around objects, the mean over its networks and their range."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * COLUMNS, 2.7 * (len(arms) + 1.3)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(arms) + 1, COLUMNS, height_ratios=[1] * len(arms) + [1.3])
    curves = figure.add_subplot(grid[-1, :])
    for row, (name, networks) in enumerate(arms.items()):
        laid = [list(laid_boxes(network, settings)) for network in networks]
        for i in range(COLUMNS):
            axes = figure.add_subplot(grid[row, i])
            # Spread over the clips, so that the panels differ.
            _draw(axes, laid[0][(2 * i + 1) * len(laid[0]) // (2 * COLUMNS)])
            if i == 0:
                axes.set_title(name, loc="left", fontsize=10)
        densities, middles = np.array([ring_densities(every) for every in laid]), (RINGS[1:] + RINGS[:-1]) / 2
        [line] = curves.plot(middles, densities.mean(axis=0), marker="o", markersize=3, label=name)
        curves.fill_between(middles, densities.min(axis=0), densities.max(axis=0), alpha=0.2, color=line.get_color())
    curves.axvline(settings.loss.dedup_margin**0.5, color="grey", linestyle="--", label="the loss pushes up to here")
    curves.set(xlabel="distance of a free centre from an object's, in its diagonals", xlim=(0, RINGS[-1]))
    curves.set_ylabel("free centres an object\nand squared diagonal")
    curves.legend(fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw(axes: Any, laid: LaidBoxes) -> None:
    """Free boxes thin and red with their centres, slots that hold an object blue, objects black. The picture itself is
    left out: it belongs to others."""
    from matplotlib.patches import Rectangle

    height, width = laid.size
    axes.add_patch(Rectangle((0, 0), width, height, facecolor="whitesmoke", edgecolor="lightgrey"))
    axes.set(
        aspect="equal", xlim=(-0.15 * width, 1.15 * width), ylim=(1.15 * height, -0.15 * height), xticks=[], yticks=[]
    )
    for boxes, colour, line in ((laid.free, "red", 0.6), (laid.objects, "black", 2.2), (laid.held, "deepskyblue", 1.2)):
        for x1, y1, x2, y2 in boxes.tolist():
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=line))
    centres = centres_of(laid.free)
    axes.scatter(centres[:, 0], centres[:, 1], s=7, color="red")
