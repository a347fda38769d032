"""Plots of an evaluation: precision over recall, and HOTA over the IoU threshold, one panel a rule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visrt.benchmarks.accuracy.ap import IOU_THRESHOLDS, RECALL_POINTS
from visrt.benchmarks.accuracy.hota import THRESHOLDS
from visrt.benchmarks.accuracy.scores import Scores

__all__ = ["plot_hota", "plot_precision_recall"]

DRAWN_IOUS = (0, 5, 9)
"""Places of 0.5, 0.75 and 0.95 among the IoU thresholds."""


def plot_precision_recall(scores: Mapping[str, Scores], image: Path) -> None:
    """Interpolated precision over recall, mean over classes, of each of `scores` by the name of its rule."""
    figure, panels = _panels(len(scores))
    for axes, (rule, one) in zip(panels, scores.items(), strict=True):
        curves = one.evaluation.precision.curves
        for k in DRAWN_IOUS if curves else ():
            mean = sum(curves[k]) / len(curves[k])
            axes.step(RECALL_POINTS, curves[k], where="pre", label=f"IoU {IOU_THRESHOLDS[k]:.2f}: AP {100 * mean:.1f}")
        _finish(axes, f"{rule}: AP {_percent(one.evaluation.precision.ap)}", "recall", "precision")
    figure.savefig(image, dpi=110)


def plot_hota(scores: Mapping[str, Scores], image: Path) -> None:
    """HOTA and its two factors at each IoU threshold."""
    figure, panels = _panels(len(scores))
    for axes, (rule, one) in zip(panels, scores.items(), strict=True):
        found = one.tracking
        lines = {
            "HOTA": (found.hota, found.hota_at, "-"),
            "DetA": (found.det_a, found.det_a_at, "--"),
            "AssA": (found.ass_a, found.ass_a_at, ":"),
        }
        for name, (mean, values, style) in lines.items():
            axes.plot(THRESHOLDS, values, style, marker=".", label=f"{name} {_percent(mean)}")
        _finish(axes, f"{rule}: HOTA {_percent(found.hota)}", "mask IoU threshold", "share")
    figure.savefig(image, dpi=110)


def _panels(count: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * count, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _finish(axes: Any, title: str, across: str, up: str) -> None:
    axes.set(title=title, xlabel=across, ylabel=up, xlim=(0, 1), ylim=(-0.02, 1.04))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize="small")


def _percent(share: float) -> str:
    return "-" if share != share else f"{100 * share:.1f}"
