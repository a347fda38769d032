"""The plot of a run: losses and quality over steps."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

__all__ = ["plot_run"]


def plot_run(metrics: Path, image: Path) -> None:
    """Draw every `loss*` and `quality*` series of the jsonl file `metrics` into the PNG `image`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in metrics.read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            series[name].append((row["step"], value))
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    losses, quality = figure.subplots(1, 2)
    for name in sorted(series):
        if name.startswith("loss_"):
            losses.plot(*_smooth(series[name]), label=name.removeprefix("loss_"))
        elif name.startswith("quality_"):
            quality.plot(*zip(*series[name], strict=True), marker=".", label=name.removeprefix("quality_"))
    losses.set(title="training loss (weighted, running mean)", xlabel="step", yscale="log")
    quality.set(title="held-out clips", xlabel="step", ylim=(0, 1))
    for axes in (losses, quality):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(image, dpi=110)


def _smooth(points: list[tuple[int, float]], share: float = 0.02) -> tuple[list[int], list[float]]:
    """Exponential running mean over about `share` of the points."""
    weight = 1 / max(1.0, share * len(points))
    steps, values, mean = [], [], points[0][1]
    for step, value in points:
        mean += weight * (value - mean)
        steps.append(step)
        values.append(mean)
    return steps, values
