"""The plot of the stress: how many ids are found again, over the length of the gap."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["plot_recovery"]


def plot_recovery(scenarios: Mapping[str, Any], image: Path) -> None:
    """Draws the share of recovered ids over the gap, with its interval, for every scenario that has gaps to compare."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = {name: found["by_gap_frames"] for name, found in scenarios.items() if len(found["by_gap_frames"]) > 1}
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    for axes, (name, by_gap) in zip(panels, drawn.items(), strict=True):
        _draw(axes, by_gap)
        axes.set(title=name, xlabel="frames out of sight", xscale="log", ylim=(-0.03, 1.03))
        axes.set_xticks(list(by_gap), [str(gap) for gap in by_gap], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("ids found again")
    figure.axes[0].legend(fontsize="small")
    figure.savefig(image, dpi=90)


def _draw(axes: Any, by_gap: Mapping[int, Any]) -> None:
    gaps = list(by_gap)
    for at, name in enumerate(by_gap[gaps[0]]):
        shares = [by_gap[gap][name]["recovered"] for gap in gaps]
        [line] = axes.plot(gaps, [s["value"] for s in shares], marker=".", label=name, linestyle=STYLES[at % 3])
        low, high = ([s[end] for s in shares] for end in ("low", "high"))
        axes.fill_between(gaps, low, high, alpha=0.12, color=line.get_color(), linewidth=0)


STYLES = ("-", "--", ":")
"""Lines that lie on each other are told apart by these."""
