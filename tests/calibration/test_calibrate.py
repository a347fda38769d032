"""`visrt calibrate` from a bundle and a video to an INT8 bundle that opens, tracks, and says what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import write_bundle
from fakes_genvis import genvis_manifest
from fakes_inspro import inspro_manifest
from numpy.typing import NDArray
from written_clips import write_clip

from visrt.calibration.bundle import int8_graphs
from visrt.calibration.calibrate import INT8_FLOORS, Calibration, calibrate_bundle
from visrt.calibration.layers import layers_of
from visrt.commands.calibrate import floors_from
from visrt.export.workplace import Existing
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.errors import OutputError, ParityError, UsageError
from visrt.runtime.methods.inspro import InsPro
from visrt.runtime.methods.int8 import Int8Plan
from visrt.runtime.methods.minvis import MinVis
from visrt.runtime.parity.agreement import Floors
from visrt.runtime.session import Session

SIZE = (64, 96)


def soft_patch(index: int) -> NDArray[np.uint8]:
    """A red patch that fades into grey, so that its edge depends on every grey level, and moves."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    distance = np.hypot(y - 32, x - 20 - 3 * index)
    red = np.clip(250 - 4 * distance, 90, 250)
    picture = np.full((*SIZE, 3), 90, np.uint8)
    picture[..., 0] = red
    picture[..., 1:] = (180 - red[..., None] / 2).clip(40, 90)
    return picture


@pytest.fixture
def clip(tmp_path: Path) -> str:
    write_clip(tmp_path / "clip.mp4", frames=16, picture=soft_patch)
    return str(tmp_path / "clip.mp4")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def wanted(bundle: Path, clip: str, **changes: Any) -> Calibration:
    return Calibration(bundle, bundle.parent / "int8", (clip,), **{"frames": 8, **changes})


def test_the_bundle_that_is_written_opens_tracks_and_holds_its_floors(bundle: Path, clip: str) -> None:
    report = calibrate_bundle(wanted(bundle, clip))
    assert not INT8_FLOORS.missed(report.agreement)
    assert report.quantised
    with Session.open(bundle.parent / "int8") as session:
        results = session.step(soft_patch(0)) + session.step(soft_patch(1)) + session.flush()
    assert [[found.id for found in result.objects] for result in results] == [[0], [0]]


def test_the_manifest_says_int8_and_what_each_node_computes_in(bundle: Path, clip: str) -> None:
    calibrate_bundle(wanted(bundle, clip))
    before, after = open_bundle(bundle).manifest, open_bundle(bundle.parent / "int8").manifest
    assert after.graphs["frame"].precision == "int8"
    assert after.graphs["masks"] == before.graphs["masks"]
    assert after.name == f"{before.name}-int8"
    assert (after.association, after.reference, after.classes) == (before.association, before.reference, before.classes)
    assert after.nodes is not None
    nodes = json.loads((bundle.parent / "int8" / after.nodes.file).read_text())
    model = onnx.load(bundle.parent / "int8" / "frame.onnx")
    read_int8 = {n.name for n in model.graph.node if n.op_type in ("Conv", "MatMul") and "dequantised" in n.input[0]}
    assert read_int8
    assert {name for name, precision in nodes["frame"].items() if precision == "int8"} == read_int8
    assert set(nodes["masks"].values()) == {"fp32"}


def test_the_same_frames_give_the_same_graph(bundle: Path, clip: str) -> None:
    first = calibrate_bundle(wanted(bundle, clip))
    graph = (bundle.parent / "int8" / "frame.onnx").read_bytes()
    second = calibrate_bundle(wanted(bundle, clip, existing=Existing.REPLACE))
    assert (bundle.parent / "int8" / "frame.onnx").read_bytes() == graph
    assert [entry.layer for entry in first.ranking] == [entry.layer for entry in second.ranking]


def test_the_report_tells_every_layer_its_harm_and_the_plot_is_a_picture(bundle: Path, clip: str) -> None:
    report = calibrate_bundle(wanted(bundle, clip))
    folder = bundle.parent / "int8" / "calibration"
    values = json.loads((folder / "report.json").read_text())
    assert {entry["layer"] for entry in values["layers"] if entry["int8"]} == {layer.name for layer in report.quantised}
    assert [entry["harm"]["total"] for entry in values["layers"]] == sorted(
        entry["harm"]["total"] for entry in values["layers"]
    )
    assert values["trials"][-1]["layers"] == len(values["layers"])
    assert all(entry["layer"] in (folder / "report.md").read_text() for entry in values["layers"])
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


class TestRefusals:
    def test_a_floor_that_cannot_be_met_leaves_no_bundle(
        self, bundle: Path, clip: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The convolution alone, as another layer of this network multiplies by zeros and does no harm at all."""
        convolutions = lambda *given: tuple(found for found in layers_of(*given) if found.op == "Conv")  # noqa: E731
        monkeypatch.setattr("visrt.calibration.measured.layers_of", convolutions)
        floors = Floors(iou_mean=1.0, iou_min=1.0, top_class=1.0, assignment=1.0)
        calibrated = wanted(bundle, clip, floors=floors)
        heard: list[Any] = []
        with pytest.raises(ParityError, match="lower the floor"):
            calibrate_bundle(calibrated, on_trial=heard.append)
        assert heard
        assert not calibrated.out.exists()
        assert {path.name for path in bundle.parent.iterdir()} == {"bundle", "clip.mp4"}

    def test_an_int8_bundle_is_not_calibrated_again(self, bundle: Path, clip: str) -> None:
        calibrate_bundle(wanted(bundle, clip))
        with pytest.raises(UsageError, match="int8 already"):
            calibrate_bundle(Calibration(bundle.parent / "int8", bundle.parent / "again", (clip,)))

    def test_the_family_says_which_of_its_graphs_may_be_quantised(self, tmp_path: Path) -> None:
        for manifest, graphs in (
            (genvis_manifest(), ("frame",)),
            (inspro_manifest(), ("frame", "head")),
            (inspro_manifest(outputs="boxes"), ("frame", "head")),
            (inspro_manifest(family="inspro_lite"), ("frame", "head", "head_lite")),
        ):
            assert int8_graphs(Bundle(tmp_path, manifest)) == graphs

    def test_a_family_that_names_no_graph_of_the_bundle_is_not_calibrated(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(MinVis, "int8", Int8Plan(("elsewhere",)))
        with pytest.raises(UsageError, match="family 'minvis' has no graph for INT8 among frame, masks; keep it in fp"):
            int8_graphs(open_bundle(bundle))

    def test_a_graph_through_which_the_network_carries_state_is_not_calibrated(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the family's plan judges by single frames, which do not show what becomes of the state."""
        monkeypatch.setattr(InsPro, "int8", replace(InsPro.int8, range_frames=1))
        with pytest.raises(UsageError, match="head graph carries the state queries, proposals, bank from call to call"):
            int8_graphs(Bundle(tmp_path, inspro_manifest()))

    def test_a_bundle_is_replaced_only_on_request(self, bundle: Path, clip: str) -> None:
        with pytest.raises(OutputError, match="--overwrite"):
            calibrate_bundle(Calibration(bundle, bundle, (clip,)))

    @pytest.mark.parametrize("text", ["sharpness=1", "iou", "iou=much", "iou=1.5"])
    def test_a_floor_that_means_nothing_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="floor"):
            floors_from([text], INT8_FLOORS)

    def test_a_floor_takes_the_place_of_its_default_only(self) -> None:
        floors = floors_from(["iou=0.9"], INT8_FLOORS)
        assert floors == Floors(0.9, INT8_FLOORS.iou_min, INT8_FLOORS.top_class, INT8_FLOORS.assignment)
