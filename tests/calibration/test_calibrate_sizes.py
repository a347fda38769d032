"""A bundle of several sizes in INT8: calibrated at each size, with one file of shared weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import write_bundle
from test_calibrate import soft_patch
from typer.testing import CliRunner
from written_clips import write_clip

from visrt.calibration.calibrate import Calibration, calibrate_bundle
from visrt.calibration.layers import layers_of
from visrt.calibration.sizes import calibrate_sizes
from visrt.cli import app
from visrt.export.workplace import Existing
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.errors import ParityError, UsageError
from visrt.runtime.parity.agreement import Floors
from visrt.runtime.session import Session


@pytest.fixture
def clip(tmp_path: Path) -> str:
    write_clip(tmp_path / "clip.mp4", frames=16, picture=soft_patch)
    return str(tmp_path / "clip.mp4")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", other_sizes=[(96, 64)])


def test_each_size_is_calibrated_and_they_are_one_bundle_again(bundle: Path, clip: str, tmp_path: Path) -> None:
    out = tmp_path / "int8"
    arguments = ["calibrate", "--bundle", bundle, "--source", clip, "--frames", 8, "--out", out]
    ended = CliRunner().invoke(app, list(map(str, arguments)))

    assert ended.exit_code == 0, ended.output
    manifest = open_bundle(out).manifest
    assert manifest.name == f"{open_bundle(bundle).manifest.name}-int8"
    assert [size.input.text for size in manifest.sizes] == ["64x96", "96x64"]
    assert [size.graphs["frame"].precision for size in manifest.sizes] == ["int8", "int8"]
    for size in ("64x96", "96x64"):
        assert f"{size}: " in ended.stdout
        assert (out / "calibration" / size / "report.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "clip.mp4", "int8"]
    with Session.open(out) as session:
        results = session.step(soft_patch(0)) + session.step(soft_patch(1)) + session.flush()
    assert [[found.id for found in result.objects] for result in results] == [[0], [0]]


def test_a_size_that_misses_its_floors_is_named_and_nothing_is_left(
    bundle: Path, clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convolutions = lambda *given: tuple(found for found in layers_of(*given) if found.op == "Conv")  # noqa: E731
    monkeypatch.setattr("visrt.calibration.measured.layers_of", convolutions)
    floors = Floors(iou_mean=1.0, iou_min=1.0, top_class=1.0, assignment=1.0)

    with pytest.raises(ParityError, match=r"64x96: .*lower the floor"):
        calibrate_sizes(Calibration(bundle, tmp_path / "int8", (clip,), frames=8, floors=floors))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "clip.mp4"]


def test_one_calibration_is_of_one_size(bundle: Path, clip: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds 2 sizes"):
        calibrate_bundle(Calibration(bundle, tmp_path / "int8", (clip,), existing=Existing.KEEP))
