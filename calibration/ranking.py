"""The choice of layers for INT8: all but the most sensitive, of which as few are left out as the floors allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from visrt.calibration.evaluator import AgreementEvaluator, Degradation
from visrt.calibration.layers import Layer
from visrt.calibration.measured import MeasuredGraphs, all_layers, in_int8
from visrt.runtime.errors import ParityError
from visrt.runtime.parity.agreement import Agreement, Floors

__all__ = ["Choice", "RankedLayer", "Trial", "rank_layers", "select_layers"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RankedLayer:
    """A layer, and what happens when it alone computes in INT8."""

    layer: Layer
    degradation: Degradation


@dataclass(frozen=True)
class Trial:
    """The agreement with the unquantised bundle when the `layers` least harmful layers compute in INT8."""

    layers: int
    agreement: Agreement
    missed: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """The layers to quantise, and all that was tried, by number of layers."""

    layers: tuple[Layer, ...]
    trials: tuple[Trial, ...]


def rank_layers(
    evaluator: AgreementEvaluator, graphs: MeasuredGraphs, progress: Progress = lambda *_: None
) -> tuple[RankedLayer, ...]:
    """The layers of `graphs` with what each alone degrades, the least harmful first; equal ones in their order."""
    layers = all_layers(graphs)
    entries = []
    for done, layer in enumerate(layers):
        progress(done, len(layers))
        entries.append(RankedLayer(layer, evaluator.degradation(in_int8(graphs, [layer]))))
    progress(len(layers), len(layers))
    return tuple(sorted(entries, key=lambda entry: entry.degradation.total))


def select_layers(
    evaluator: AgreementEvaluator,
    graphs: MeasuredGraphs,
    ranking: Sequence[RankedLayer],
    floors: Floors,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> Choice:
    """The most layers of `ranking`, least harmful first, with which the floors hold, found by bisection.

    Every number of layers that is taken was tried itself. Raises ParityError with all that was tried if the floors do
    not hold with even the least harmful layer.
    """
    layers = [entry.layer for entry in ranking]
    trials: dict[int, Trial] = {}

    def holds(count: int) -> bool:
        agreement = evaluator.agreement(in_int8(graphs, layers[:count]))
        trials[count] = Trial(count, agreement, tuple(floors.missed(agreement)))
        on_trial(trials[count])
        return not trials[count].missed

    most = _most(len(layers), holds)
    tried = tuple(trials[count] for count in sorted(trials))
    if not most:
        raise ParityError(_unreachable(tried))
    return Choice(tuple(layers[:most]), tried)


def _most(count: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to `count` that holds, as far as bisection can tell; 0 if not even 1 does."""
    if holds(count):
        return count
    good, bad = 0, count
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return good


def _unreachable(trials: Sequence[Trial]) -> str:
    best = max(trials, key=lambda trial: (-len(trial.missed), trial.agreement.iou_mean))
    table = "; ".join(
        f"{trial.layers} layers: iou {trial.agreement.iou_mean:.4f} (least {trial.agreement.iou_min:.4f}), top class "
        f"{trial.agreement.top_class:.4f}, assignment {trial.agreement.assignment:.4f}"
        for trial in trials
    )
    return (
        f"no layer can compute in INT8 within the floors; the best, with {best.layers}, has {', '.join(best.missed)} "
        f"({table}); lower the floor, give more and other frames, or stay with the bundle as it is"
    )
