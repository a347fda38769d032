"""INT8 in InsPro: layers of the frame graph and of the heads, judged over streams whose pairs travel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from inspro_bundles import SETTINGS, exported_inspro, wanted_inspro
from networks import HEIGHT, WIDTH
from written_clips import write_clip

from visrt.benchmarks.experiments.large_graphs import FullSize, in_int8
from visrt.calibration.calibrate import Calibration, calibrate_bundle
from visrt.calibration.evaluator import AgreementEvaluator, model_outputs, stream_of
from visrt.calibration.layers import layers_of
from visrt.calibration.report import CalibrationReport
from visrt.export.bundle import export_bundle
from visrt.export.frames import synthetic_frames
from visrt.runtime.arrays import Array, HostTensor, Tensor
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.engines.backends import open_engines
from visrt.runtime.engines.engine import Engine, HostEngine
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.engines.trt.build import Profile, build_engine
from visrt.runtime.engines.trt.library import load_tensorrt
from visrt.runtime.methods.inspro import INT8, first_step, frame_step
from visrt.runtime.parity.agreement import Floors
from visrt.runtime.parity.frames import Frames
from visrt.runtime.parity.verify import closing, verify
from visrt.runtime.session import Session

FRAMES = 8
LOW = Floors(iou_mean=0.3, iou_min=0.0, top_class=0.3, assignment=0.0)
"""A network with random weights agrees with nothing reliably."""

OF_EACH = 2
"""Layers of each graph that are tried, as the ranking runs the network once a layer."""


@pytest.fixture(scope="module")
def pictures() -> Array:
    return synthetic_frames(FRAMES, HEIGHT, WIDTH, seed=3).images


@pytest.fixture
def clip(tmp_path: Path, pictures: Array) -> str:
    write_clip(tmp_path / "clip.mp4", frames=FRAMES, picture=lambda t: pictures[t])
    return str(tmp_path / "clip.mp4")


@pytest.fixture(autouse=True)
def few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    first = lambda *given: layers_of(*given)[:OF_EACH]  # noqa: E731
    monkeypatch.setattr("visrt.calibration.measured.layers_of", first)


def calibrated(folder: Path, out: Path, clip: str) -> CalibrationReport:
    return calibrate_bundle(Calibration(folder, out, (clip,), frames=2, floors=LOW))


def streamed(bundle: Bundle, images: Array, changed: dict[str, Engine] | None = None) -> list[dict[str, Array]]:
    """All outputs for a stream of `images`, which fill the input."""
    with closing(open_engines(bundle, "cpu", EngineOptions(1))) as engines:
        return list(stream_of(bundle)({**engines, **(changed or {})}, frames_of(images)))


def frames_of(images: Array) -> Frames:
    return Frames(images, np.tile(np.array([[HEIGHT, WIDTH]], np.int32), (len(images), 1)))


class Counting(HostEngine):
    """An engine that counts its calls, and fills the outputs of chosen ones with NaN."""

    provider = "counting"

    def __init__(self, name: str, inner: Engine, calls: Counter[str], broken: Sequence[int] = ()) -> None:
        self._name, self._inner, self._calls, self._broken = name, inner, calls, broken

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Tensor]:
        self._calls[self._name] += 1
        outputs = self._inner(feeds)
        if self._calls[self._name] - 1 not in self._broken:
            return outputs
        return {role: HostTensor(np.full(tensor.shape, np.nan, np.float32)) for role, tensor in outputs.items()}

    def close(self) -> None:
        self._inner.close()


class TestStream:
    def test_pairs_and_bank_travel_as_in_a_session(
        self, tmp_path_factory: pytest.TempPathFactory, pictures: Array
    ) -> None:
        bundle = open_bundle(exported_inspro(tmp_path_factory, "inspro").folder)
        given = streamed(bundle, pictures[:5])
        with Session.open(bundle.folder, threads=1) as session:
            network = session.network
            states, step = network.new_states(), first_step(network.states)
            for t, one in enumerate(given):
                [frame] = network.run_frames([pictures[t]])
                answer = network.alone(frame_step(frame, step, session.method.settings), states)
                step = answer.step
                np.testing.assert_array_equal(one["boxes"][0], answer.outputs["boxes"], err_msg=f"frame {t}")
                np.testing.assert_array_equal(one["class_logits"][0, :, :-1], answer.outputs["class_logits"])

    def test_every_second_frame_of_the_lite_variant_is_a_key_frame(
        self, tmp_path_factory: pytest.TempPathFactory, pictures: Array
    ) -> None:
        bundle = open_bundle(exported_inspro(tmp_path_factory, "inspro_lite").folder)
        calls: Counter[str] = Counter()
        with closing(open_engines(bundle, "cpu", EngineOptions(1))) as engines:
            heads: dict[str, Engine] = {name: Counting(name, engines[name], calls) for name in ("head", "head_lite")}
            streamed(bundle, pictures[:4], heads)
        assert calls == {"head": 2, "head_lite": 2}

    def test_a_frame_of_nan_is_shown_as_nan_and_the_stream_begins_again(
        self, tmp_path_factory: pytest.TempPathFactory, pictures: Array
    ) -> None:
        bundle = open_bundle(exported_inspro(tmp_path_factory, "inspro").folder)
        still = np.repeat(pictures[:1], 3, axis=0)
        with closing(open_engines(bundle, "cpu", EngineOptions(1))) as engines:
            outputs = streamed(bundle, still, {"frame": Counting("frame", engines["frame"], Counter(), broken=[1])})
        assert np.isnan(outputs[1]["class_logits"][..., :-1]).all()
        np.testing.assert_array_equal(outputs[2]["boxes"], outputs[0]["boxes"])


class TestCalibration:
    @pytest.mark.parametrize("family", ["inspro", "inspro_lite"])
    def test_layers_of_the_frame_graph_and_of_every_head_become_int8(
        self, family: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, clip: str, pictures: Array
    ) -> None:
        before = exported_inspro(tmp_path_factory, family)
        report = calibrated(before.folder, tmp_path / "int8", clip)
        graphs = [name for name in before.manifest.graphs if name != "masks"]
        assert Counter(entry.layer.graph for entry in report.ranking) == dict.fromkeys(graphs, OF_EACH)
        assert {layer.graph for layer in report.quantised} == set(graphs)
        after = open_bundle(tmp_path / "int8").manifest
        assert {name: graph.precision for name, graph in after.graphs.items()} == {
            **dict.fromkeys(graphs, "int8"),
            "masks": "fp32",
        }
        assert after.graphs["masks"] == before.manifest.graphs["masks"]
        for name in graphs:
            nodes = [node.op_type for node in onnx.load(tmp_path / "int8" / after.graphs[name].file.file).graph.node]
            assert "QuantizeLinear" in nodes
        with Session.open(tmp_path / "int8", threads=1) as session:
            assert session.step(pictures[0])[0].objects

    def test_the_frame_graph_is_run_once_for_all_layers_of_the_heads(
        self, tmp_path_factory: pytest.TempPathFactory, pictures: Array
    ) -> None:
        bundle, calls = open_bundle(exported_inspro(tmp_path_factory, "inspro").folder), Counter[str]()
        clips, stream = (frames_of(pictures[:4]), frames_of(pictures[4:])), stream_of(bundle)
        head = onnx.load_from_string(bundle.graph("head"))
        with closing(open_engines(bundle, "cpu", EngineOptions(1))) as engines:
            engines["frame"] = Counting("frame", engines["frame"], calls)
            expected = model_outputs(engines, stream, INT8, clips)
            few = AgreementEvaluator(bundle.manifest.graphs, engines, stream, INT8, clips, expected).of_first_frames(2)
            calls.clear()
            assert [few.degradation({"head": head}).total for _ in range(3)] == [0, 0, 0]
        assert calls["frame"] == 8

    def test_a_network_of_boxes_alone_with_a_bank_of_one_frame(
        self, tmp_path: Path, clip: str, pictures: Array
    ) -> None:
        """It has no masks graph, no mask features and no bank; its boxes are judged."""
        settings = replace(SETTINGS, outputs="boxes", bank_frames=1, lite_stages=0)
        export_bundle(wanted_inspro(tmp_path, "inspro", settings=settings))
        report = calibrated(tmp_path / "bundle", tmp_path / "int8", clip)
        assert {layer.graph for layer in report.quantised} == {"frame", "head"}
        assert 0.3 <= report.agreement.iou_mean <= 1
        text = (tmp_path / "int8" / "calibration" / "report.md").read_text()
        assert "relative error of the embeddings, class logits and boxes" in text
        assert verify(tmp_path / "int8", threads=1).precision == "int8"
        with Session.open(tmp_path / "int8", threads=1) as session:
            assert session.step(pictures[0])[0].objects

    def test_what_a_head_does_to_later_frames_counts(
        self, tmp_path_factory: pytest.TempPathFactory, pictures: Array
    ) -> None:
        """A head that loses what it hands over is as good as the whole one in the first frame, and no longer."""
        bundle = open_bundle(exported_inspro(tmp_path_factory, "inspro").folder)
        with closing(open_engines(bundle, "cpu", EngineOptions(1))) as engines:
            whole = streamed(bundle, pictures[:3])
            forgetful = streamed(bundle, pictures[:3], {"head": Forgetful(engines["head"])})
        np.testing.assert_array_equal(forgetful[0]["class_logits"], whole[0]["class_logits"])
        assert np.abs(forgetful[2]["class_logits"] - whole[2]["class_logits"]).max() > 1e-3


class Forgetful(Counting):
    """A head whose next queries are zeros."""

    def __init__(self, inner: Engine) -> None:
        super().__init__("head", inner, Counter())

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Tensor]:
        outputs = super().__call__(feeds)
        zeros = np.zeros(outputs["next_queries"].shape, np.float32)
        return {**outputs, "next_queries": HostTensor(zeros)}


@pytest.mark.parametrize("name", ["frame", "head", "head_lite"])
def test_rtx_builds_the_graph_with_every_layer_in_int8(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """For a GPU that is not here. The only warning is the known one on convolutions, which heads lack."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    bundle = open_bundle(exported_inspro(tmp_path_factory, "inspro_lite", "fp16").folder)
    models = {name: onnx.load_from_string(bundle.graph(name))}
    graphs = in_int8(FullSize("fp16", models), [name])
    profile: Profile = {"batch" if name == "frame" else "streams": (1, 1, 1)}
    built = build_engine(load_tensorrt("tensorrt-rtx"), graphs.request(name, profile, ("8.9",)))
    assert all("conv" in line for line in built.warnings) if name == "frame" else not built.warnings
    kinds = {"frame": ("convolution int8", "matrix multiply int8"), "head": ("matrix multiply int8",)}
    assert all(built.precision[kind] for kind in kinds.get(name, kinds["head"]))
