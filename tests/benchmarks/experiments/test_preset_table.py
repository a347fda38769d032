"""Claims about the table of presets: one recording, every rule on it, differences paired by video."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bundles import write_bundle
from red_videos import CLASS_MAP, red_videos

from visrt.benchmarks.accuracy.result_files import COMPARED_PRESETS
from visrt.benchmarks.experiments import bootstrap
from visrt.benchmarks.experiments import preset_table as module
from visrt.benchmarks.experiments.preset_table import TUNED, contenders_of, main, preset_table
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.methods.registry import method_of
from visrt.training.data.set_formats import load_annotations

OWN = {"birth_score": 0.3, "keep_score": 0.2, "nms_iou": 0.7}


def test_each_preset_runs_as_it_is_and_with_the_networks_thresholds(tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "bundle", {**OWN, "lost_s": 2.0}))
    contenders = contenders_of(bundle)
    assert set(contenders) == {*COMPARED_PRESETS, *(f"{name} {TUNED}" for name in COMPARED_PRESETS), "shipped"}
    for name in COMPARED_PRESETS:
        assert not contenders[name].changes
        tuned = method_of(bundle.manifest, contenders[f"{name} {TUNED}"].changes, name).settings
        assert {key: getattr(tuned, key) for key in OWN} == OWN
    assert method_of(bundle.manifest, contenders["shipped"].changes, None).settings.lost_s == 2.0


def test_every_rule_is_compared_with_minvis_at_its_own_thresholds(tmp_path: Path) -> None:
    contenders = contenders_of(open_bundle(write_bundle(tmp_path / "bundle", OWN)))
    assert contenders["minvis"].against is None
    assert contenders[f"minvis {TUNED}"].against is None
    assert contenders["memory"].against == "minvis"
    assert contenders[f"memory {TUNED}"].against == contenders["shipped"].against == f"minvis {TUNED}"


def test_the_network_runs_once_for_all_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEW_VIDEOS", 2)
    monkeypatch.setattr(bootstrap, "RESAMPLES", 200)
    bundle = open_bundle(write_bundle(tmp_path / "bundle", OWN))
    folder = red_videos(tmp_path / "data", videos=3, frames=6, gone=(2, 3))
    sets = {"red": load_annotations(folder, bundle.manifest.classes, CLASS_MAP)}
    told: list[str] = []
    found = preset_table(bundle, sets, tmp_path / "kept", 10.0, told.append)["red"]
    assert set(found) == set(contenders_of(bundle))
    for figures in found.values():
        assert figures["counts"]["wanted"] == 3 * 4
        assert figures["us_a_frame"] > 0
    assert found["minvis"]["counts"]["found"] > 0
    assert found["memory"]["counts"]["returns"] == 3
    assert found["memory"]["counts"]["lost_ids"] == 0
    assert found["memory"]["against"]["found_a_video"]["verdict"] == "undecided"
    assert "against" not in found["minvis"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").glob("*.npz")}
    assert len(before) == 5, "the three videos show the same, in two of six frames nothing"
    again = preset_table(bundle, sets, tmp_path / "kept", 10.0)["red"]
    assert before == {path: path.stat().st_mtime_ns for path in before}, "a recording that is whole is left alone"
    assert again["ctvis"]["counts"] == found["ctvis"]["counts"]


def test_the_command_writes_machine_settings_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path / "bundle", OWN)
    folder = red_videos(tmp_path / "data", videos=1, frames=4)
    (tmp_path / "map.json").write_text(json.dumps(CLASS_MAP))
    arguments = ["--bundle", "bundle", "--mapped", "data", "map.json", "--recording", "kept", "--out", "table.json"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["preset_table", *arguments])
    main()
    report = json.loads((tmp_path / "table.json").read_text())
    assert report["machine"]["cpu"]
    assert report["sizes"] == {folder.name: {"videos": 1, "frames": 4}}
    assert report["settings"]["association"] == OWN
    assert "changed_ids" not in report["sets"]["data"]["minvis"], "one video has no interval"
