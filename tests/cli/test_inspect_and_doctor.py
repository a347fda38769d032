"""`visrt inspect` and `visrt doctor`."""

from __future__ import annotations

import importlib
import re
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions
from pathlib import Path
from typing import Any

import pytest
from bundles import write_bundle
from data_sets import ROOT
from lowest_versions import lowest
from typer.testing import CliRunner

from visrt.cli import app
from visrt.runtime.engines import diagnostics
from visrt.runtime.engines.diagnostics import Finding, clashes
from visrt.runtime.errors import install_hint
from visrt.runtime.sources import containers

runner = CliRunner()


def test_inspect_shows_classes_graphs_tensors_and_settings(tmp_path: Path) -> None:
    shown = runner.invoke(app, ["inspect", str(write_bundle(tmp_path / "red"))])
    assert shown.exit_code == 0, shown.stderr
    for part in ("minvis", "person", "64 x 96", "frame.onnx", "masks.onnx", "class_logits", "uint8", "batch", "sha256"):
        assert part in shown.output


def test_inspect_tells_of_an_altered_file(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "red")
    data = bytearray((folder / "frame.onnx").read_bytes())
    data[100] ^= 1
    (folder / "frame.onnx").write_bytes(data)
    ended = runner.invoke(app, ["inspect", str(folder)])
    assert ended.exit_code == 5
    assert "frame.onnx" in ended.stderr
    assert ended.stderr.count("\n") == 1


def install(folder: Path, distribution: str, package: str) -> None:
    """What pip would leave of a `distribution` that owns the folder `package`."""
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "top_level.txt").write_text(f"{package}\n")


@pytest.mark.parametrize(
    ("package", "pair"),
    [("cv2", ("opencv-python", "opencv-python-headless")), ("onnxruntime", ("onnxruntime", "onnxruntime-gpu"))],
)
def test_two_distributions_in_one_folder_are_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, pair: tuple[str, str]
) -> None:
    for distribution in pair:
        install(tmp_path, distribution, package)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    [found] = clashes(packages_distributions())
    assert found.found == " and ".join(pair)
    assert f"pip uninstall -y {' '.join(pair)}" in found.problem


def test_one_distribution_a_folder_is_fine() -> None:
    found = clashes({"cv2": ["opencv-python", "opencv-python"], "onnxruntime": ["onnxruntime-gpu"]})
    assert [finding.problem for finding in found] == ["", ""]


def test_doctor_shows_versions_providers_and_gpu() -> None:
    shown = runner.invoke(app, ["doctor"])
    assert shown.exit_code in (0, 5)
    for part in ("python", "opencv", "PyAV", "CPUExecutionProvider", "gpu", "tensorrt"):
        assert part in shown.output


REQUIREMENTS = ["av>=17.1.0", "numpy>=1.24.2", "torch>=2.5; extra == 'train'", "visrt[trt]; extra == 'trt-pycuda'"]


@pytest.mark.parametrize(
    ("installed", "old"),
    [
        ({"av": "14.2.0", "numpy": "2.4.6"}, {"av": "17.1.0"}),
        (
            {"av": "17.0.1", "numpy": "1.24.1", "torch": "2.4.1+cpu"},
            {"av": "17.1.0", "numpy": "1.24.2", "torch": "2.5"},
        ),
        ({"av": "17.1", "numpy": "1.24.2", "torch": "2.5.0"}, {}),
        ({"av": "18.0.0rc1", "numpy": "1.100"}, {}),
    ],
)
def test_packages_older_than_the_bounds_are_problems(installed: dict[str, str], old: dict[str, str]) -> None:
    findings = diagnostics.outdated(REQUIREMENTS, lambda name: installed.get(name, ""))
    assert [finding.subject for finding in findings] == [f"version of {name}" for name in old]
    for finding, (name, least) in zip(findings, old.items(), strict=True):
        assert finding.found == installed[name]
        assert f"`pip install '{name}>={least}'`" in finding.problem


def test_every_base_dependency_has_a_bound_that_doctor_reads_and_the_lowest_job_installs() -> None:
    pins = dict(pin.split("==") for pin in lowest((ROOT / "pyproject.toml").read_text()))
    assert pins["av"] == containers.OLDEST_PYAV
    assert {"numpy", "av", "typer", "pydantic", "pillow", "onnxruntime"} <= pins.keys()
    findings = diagnostics.outdated([f"{name}>={version}" for name, version in pins.items()], lambda name: "0.0.1")
    assert len(findings) == len(pins)
    with pytest.raises(ValueError, match="numpy: expected a lower bound"):
        lowest('dependencies = [\n "numpy",\n "av>=17.1.0",\n]')


def test_nothing_tells_to_install_visrt_from_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "version", lambda name: (_ for _ in ()).throw(PackageNotFoundError(name)))
    problems = [finding.problem for finding in diagnostics.examine()]
    assert not [problem for problem in problems if re.search(r"install[^`]* visrt", problem)]
    for wheel in (False, True):
        monkeypatch.setattr(Path, "is_file", lambda self, wheel=wheel: not wheel)
        for extra in ("cpu", "gpu", "trt", "train", "eval", "supervision"):
            hint = install_hint(extra)
            assert not re.search(r"install '?visrt", hint)
            assert hint.startswith("pip install '")


def test_doctor_leaves_with_5_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [Finding("numpy", "2.0"), Finding("onnxruntime", "does not load", "install [cpu] or [gpu]")]
    monkeypatch.setattr(diagnostics, "examine", lambda: findings)
    ended = runner.invoke(app, ["doctor"])
    assert ended.exit_code == 5
    assert "onnxruntime: install [cpu] or [gpu]" in ended.output
    monkeypatch.setattr(diagnostics, "examine", lambda: findings[:1])
    assert runner.invoke(app, ["doctor"]).exit_code == 0


def test_a_library_that_does_not_load_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    load = importlib.import_module

    def broken(name: str) -> Any:
        if name in ("cv2", "onnxruntime", "av"):
            raise ImportError(f"{name}: cannot open shared object file")
        return load(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    problems = {finding.subject for finding in diagnostics.examine() if finding.problem}
    assert {"opencv", "onnxruntime", "video"} <= problems
