"""Layers go into INT8 from the least harmful on, as many as the floors allow; what is taken was tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import pytest
from tiny_networks import each_frame, network, some_frames, spec

import visrt.calibration.ranking as ranking_module
from visrt.calibration.evaluator import Degradation
from visrt.calibration.layers import Layer, layers_of
from visrt.calibration.measured import MeasuredGraph
from visrt.calibration.ranges import ranges_of
from visrt.calibration.ranking import RankedLayer, Trial, rank_layers, select_layers
from visrt.runtime.errors import ParityError
from visrt.runtime.parity.agreement import Agreement, Floors

FLOORS = Floors(iou_mean=0.9, top_class=0.0, assignment=0.0)


@dataclass
class ScriptedEvaluator:
    """The IoU of each number of layers, and those that were tried; the "models" are the layers they were made of."""

    iou: Sequence[float]
    harms: dict[str, float] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)

    def agreement(self, model: Any) -> Agreement:
        self.asked.append(len(model))
        return Agreement(4, 10, self.iou[len(model) - 1], 0.0, 1.0, 1.0)

    def degradation(self, model: Any) -> Degradation:
        return Degradation(self.harms[model[0].name], 0, 0)


@pytest.fixture(autouse=True)
def layers_for_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking_module, "in_int8", lambda _graphs, layers: list(layers))


def layer(name: str) -> Layer:
    return Layer("frame", name, "Conv", (name,), ("x",), "w", 0, 1)


def measured(*names: str) -> MeasuredGraph:
    return MeasuredGraph(onnx.ModelProto(), {}, tuple(layer(name) for name in names), {})


def ranking(count: int) -> list[RankedLayer]:
    return [RankedLayer(layer(str(at)), Degradation(at, 0, 0)) for at in range(count)]


def choose(iou: Sequence[float], heard: list[Trial] | None = None) -> tuple[Any, ScriptedEvaluator]:
    evaluator = ScriptedEvaluator(iou)
    on_trial = (heard if heard is not None else []).append
    return select_layers(evaluator, {}, ranking(len(iou)), FLOORS, on_trial), evaluator  # type: ignore[arg-type]


@pytest.mark.parametrize("most", range(1, 9))
def test_the_most_layers_that_hold_are_found(most: int) -> None:
    found, _ = choose([0.95] * most + [0.5] * (8 - most))
    assert [layer.name for layer in found.layers] == [str(at) for at in range(most)]


def test_it_is_a_bisection_and_every_choice_was_tried_itself() -> None:
    found, evaluator = choose([0.95] * 37 + [0.5] * 63)
    assert len(evaluator.asked) <= 8
    assert len(found.layers) in evaluator.asked
    assert [trial.layers for trial in found.trials] == sorted(evaluator.asked)


def test_where_quality_jumps_up_and_down_the_choice_still_holds() -> None:
    found, _ = choose([0.95, 0.5, 0.95, 0.5, 0.95, 0.5, 0.95, 0.5])
    taken = next(trial for trial in found.trials if trial.layers == len(found.layers))
    assert not taken.missed


def test_a_floor_that_no_layer_holds_is_an_error_with_all_that_was_tried() -> None:
    heard: list[Trial] = []
    with pytest.raises(ParityError, match=r"the best, with 1, has iou_mean 0\.8500 below 0\.9000") as error:
        choose([0.85, 0.8, 0.7, 0.6], heard)
    assert {trial.layers for trial in heard} == {1, 2, 4}
    assert all(f"{iou:.4f}" in str(error.value) for iou in (0.85, 0.8, 0.6))


def test_the_least_harmful_layer_is_first_and_ties_keep_the_order_of_the_graph() -> None:
    evaluator = ScriptedEvaluator([], {"a": 0.3, "b": 0.1, "c": 0.3})
    graphs = {"frame": measured("a", "b"), "head": measured("c")}
    found = rank_layers(evaluator, graphs)  # type: ignore[arg-type]
    assert [entry.layer.name for entry in found] == ["b", "a", "c"]


def test_layers_of_a_real_graph_are_ranked_each() -> None:
    ranges = ranges_of("frame", spec(), network(), each_frame(some_frames()))
    layers = layers_of("frame", network(), ranges)
    evaluator = ScriptedEvaluator([], {layer.name: at for at, layer in enumerate(layers)})
    graphs = {"frame": MeasuredGraph(network(), ranges, layers, {})}
    assert len(rank_layers(evaluator, graphs)) == 4  # type: ignore[arg-type]
