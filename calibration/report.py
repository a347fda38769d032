"""The report of a calibration: report.json, report.md and plot.png."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from visrt.calibration.frames import FrameChoice
from visrt.calibration.layers import Layer
from visrt.calibration.measured import MeasuredGraphs
from visrt.calibration.ranges import HIGH_PERCENTILE, Hazard, TensorRange
from visrt.calibration.ranking import RankedLayer, Trial
from visrt.runtime.parity.agreement import Agreement, Floors

__all__ = ["CalibrationReport", "plot", "write_report"]


@dataclass(frozen=True)
class CalibrationReport:
    """bundle, sha256: what was calibrated, the latter of each graph. compared: roles whose error counted in the
    ranking. quantised: the layers in INT8. agreement: of the bundle as written with the unquantised one, on the judging
    frames."""

    bundle: str
    choice: FrameChoice
    floors: Floors
    compared: tuple[str, ...]
    hazards: tuple[Hazard, ...]
    sha256: Mapping[str, str]
    graphs: MeasuredGraphs
    ranking: tuple[RankedLayer, ...]
    trials: tuple[Trial, ...]
    quantised: frozenset[Layer]
    agreement: Agreement
    seconds: float

    @property
    def int8_work(self) -> float:
        """Share of these layers' multiply-accumulates that is done in INT8."""
        return sum(layer.work for layer in self.quantised) / max(1, sum(entry.layer.work for entry in self.ranking))


def write_report(folder: Path, report: CalibrationReport) -> None:
    """The three files, in the new `folder`."""
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(_values(report), indent=1) + "\n")
    (folder / "report.md").write_text("\n".join(_lines(report)) + "\n")
    plot(report, folder / "plot.png")


def _values(report: CalibrationReport) -> dict[str, Any]:
    choice = report.choice
    return {
        "bundle": report.bundle,
        "sha256": report.sha256,
        "seconds": round(report.seconds, 1),
        "int8_share_of_macs": report.int8_work,
        "frames": {
            "sources": [source.name for source in choice.sources],
            "read": choice.read,
            "of_one_colour": choice.one_colour,
            "ranges": choice.ranges,
            "judging": choice.judging,
            "notes": choice.notes,
        },
        "floors": asdict(report.floors),
        "agreement": asdict(report.agreement),
        "outside_fp16": [
            {"what": h.what, "graph": h.found.graph, "tensor": h.found.tensor, "node": h.found.node, "op": h.found.op}
            | {"largest": h.found.magnitudes.largest, "not_finite": h.found.magnitudes.not_finite}
            for h in report.hazards
        ],
        "layers": [_layer(report, entry) for entry in report.ranking],
        "trials": [
            {"layers": trial.layers, **asdict(trial.agreement), "missed": trial.missed} for trial in report.trials
        ],
        "ranges": {
            graph: {name: _range(name, found, measured.limits) for name, found in measured.ranges.items()}
            for graph, measured in report.graphs.items()
        },
    }


def _layer(report: CalibrationReport, entry: RankedLayer) -> dict[str, Any]:
    layer = entry.layer
    return {
        "graph": layer.graph,
        "layer": layer.name,
        "op": layer.op,
        "nodes": layer.nodes,
        "weight": layer.weight,
        "int8": layer in report.quantised,
        "share_of_macs": layer.work / max(1, sum(entry.layer.work for entry in report.ranking)),
        "harm": {"total": entry.degradation.total, **asdict(entry.degradation)},
    }


def _range(name: str, found: TensorRange, limits: Mapping[str, float]) -> dict[str, Any]:
    magnitudes = found.magnitudes
    values: dict[str, Any] = {"largest": magnitudes.largest, f"percentile_{HIGH_PERCENTILE}": found.high}
    if magnitudes.not_finite:
        values["not_finite"] = magnitudes.not_finite
    return values | ({"int8_limit": limits[name]} if name in limits else {})


def _lines(report: CalibrationReport) -> list[str]:
    """The report as Markdown."""
    a, floors = report.agreement, report.floors
    lines = [
        f"# Calibration of {report.bundle}",
        "",
        f"{len(report.quantised)} of {len(report.ranking)} layers in INT8, {report.int8_work:.0%} of their "
        f"multiply-accumulates, on {len(report.choice.ranges)} frames for "
        f"ranges and {a.frames} for judging, {a.objects} objects, {report.seconds:.0f} s.",
        "",
        "| | reached | floor |",
        "|---|---|---|",
        f"| mask IoU, mean | {a.iou_mean:.4f} | {floors.iou_mean} |",
        f"| mask IoU, least | {a.iou_min:.4f} | {floors.iou_min} |",
        f"| top class | {a.top_class:.4f} | {floors.top_class} |",
        f"| assignment | {a.assignment:.4f} | {floors.assignment} |",
        "",
        "Harm of a layer that alone is in INT8: the mean of 1 - mask IoU, the share of changed top classes, and the "
        f"relative error of the {_listed(report.compared)}.",
        "",
        "| graph | layer | weight | INT8 | harm | masks | classes | features |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(report, entry) for entry in reversed(report.ranking)]
    if report.hazards:
        lines += ["", "Tensors that FP16 does not hold:", "", *(f"- {hazard.describe()}" for hazard in report.hazards)]
    return [*lines, "", *(f"Source cut short: {note}" for note in report.choice.notes)]


def _row(report: CalibrationReport, entry: RankedLayer) -> str:
    layer, loss = entry.layer, entry.degradation
    figures = " | ".join(f"{value:.5f}" for value in (loss.total, loss.masks, loss.classes, loss.features))
    int8 = "yes" if layer in report.quantised else "no"
    return f"| {layer.graph} | {layer.op} {layer.name} | {layer.weight} | {int8} | {figures} |"


def _listed(roles: Sequence[str]) -> str:
    *others, last = (role.replace("_", " ") for role in roles)
    return f"{', '.join(others)} and {last}" if others else last


def plot(report: CalibrationReport, image: Path) -> None:
    """Harm by layer, and quality by the number of layers in INT8 with its floors, as the PNG `image`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    harm, quality = figure.subplots(1, 2)
    _plot_harm(harm, report)
    _plot_quality(quality, report)
    figure.savefig(image, dpi=110)


def _plot_harm(axes: Any, report: CalibrationReport) -> None:
    totals = [entry.degradation.total for entry in report.ranking]
    colours = ["tab:blue" if entry.layer in report.quantised else "tab:red" for entry in report.ranking]
    axes.bar(range(1, len(totals) + 1), totals, width=1.0, color=colours)
    axes.set(title="harm of each layer alone in INT8 (red: kept)", xlabel="layer, least harmful first", ylabel="harm")
    if max(totals) > 0:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)


def _plot_quality(axes: Any, report: CalibrationReport) -> None:
    counts = [trial.layers for trial in report.trials]
    shown = (("iou_mean", "mask IoU, mean"), ("top_class", "top class"), ("assignment", "assignment"))
    for (name, label), colour in zip(shown, ("tab:blue", "tab:orange", "tab:green"), strict=True):
        axes.plot(counts, [getattr(t.agreement, name) for t in report.trials], marker=".", label=label, color=colour)
        axes.axhline(getattr(report.floors, name), linestyle="--", linewidth=1, color=colour)
    axes.axvline(len(report.quantised), linewidth=1, color="grey")
    axes.set(title="agreement with the unquantised bundle (dashed: floors)", xlabel="layers in INT8")
    axes.grid(alpha=0.3)
    axes.legend()
