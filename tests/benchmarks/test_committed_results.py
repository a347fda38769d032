"""Every committed result was made with the settings that the code has today."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from visrt.benchmarks.accuracy.result_files import EXPERIMENT_RESULTS, RESULTS
from visrt.benchmarks.experiments import (
    association,
    deformable_forms,
    eager_ratio,
    genvis_export,
    genvis_training,
    inspro_export,
    inspro_int8,
    inspro_lite,
    inspro_training,
    large_build,
    preset_table,
    reid_training,
    stress,
)
from visrt.benchmarks.speed import bench, host_overhead
from visrt.benchmarks.speed.bench import BenchSettings
from visrt.runtime.bundles.bundle import open_bundle

ROOT = Path(__file__).parents[2]
DEFAULT = ROOT / "bundles" / "default"
UNUSED = "nowhere"

SAME_OUTPUTS = {
    "0e6c342f3192e805122e51cef9afcd425232e21b56f44c18801a96bad74b01eb": "bundles/default",
    "03ceaa8645422caf7da2464b51557a80771e9e5fc72ab67b059fecbe7cc49fbd": "bundles/default-fp16",
    "9db16d86ae5976337b4b588a4d50c5f00fa0d51e9e2431cbfa5a8c4797790589": "bundles/default-int8",
}
"""Frame graphs from before the size of a uint8 input was read from its Cast, and the bundles of their successors. The
outputs are bit-equal, so what was measured with them holds."""

Values = dict[str, Any]


def _of(module: Any, *options: str) -> Callable[[Values], Values]:
    """The settings of a script run with its defaults and `options`."""

    def today(_: Values) -> Values:
        settings: Values = module.settings_of(module.arguments(options))
        return settings

    return today


def _preset_table(_: Values) -> Values:
    given = preset_table.arguments(["--bundle", str(DEFAULT), "--recording", UNUSED])
    return preset_table.settings_of(given, open_bundle(DEFAULT))


def _bench(recorded: Values) -> Values:
    """The recorded options as today's options; the bundles as they are today."""
    bundles = [open_bundle(_shipped(one["name"])) for one in recorded["bundles"]]
    options = {field.name: recorded[field.name] for field in fields(BenchSettings)}
    values: Values = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return bench.settings_of(bundles, BenchSettings(**values))


def _evaluation(recorded: Values) -> Values:
    """The association and the frame graph as they are in the bundle today; the options as recorded."""
    manifest = open_bundle(_shipped(recorded["bundle_name"])).manifest
    assert recorded["association"] is recorded["preset"] is None, "the bundle's own settings were evaluated"
    return {
        **recorded,
        "frame_sha256": manifest.graphs["frame"].file.sha256,
        "association_settings": manifest.association,
    }


def _shipped(name: str) -> Path:
    """The folder of a shipped bundle, from its name in the manifest."""
    return ROOT / "bundles" / name.removeprefix("visrt-")


TODAY: dict[str, Callable[[Values], Values]] = {
    f"{EXPERIMENT_RESULTS}/association.json": _of(association),
    f"{EXPERIMENT_RESULTS}/ctvis_training.json": _of(reid_training),
    f"{EXPERIMENT_RESULTS}/deformable_forms.json": _of(deformable_forms),
    f"{EXPERIMENT_RESULTS}/eager_ratio.json": _of(eager_ratio),
    f"{EXPERIMENT_RESULTS}/genvis_r50_export.json": _of(genvis_export),
    f"{EXPERIMENT_RESULTS}/genvis_training.json": _of(genvis_training),
    f"{EXPERIMENT_RESULTS}/inspro_int8.json": _of(
        inspro_int8, "--bundle", UNUSED, "--trained", UNUSED, "--source", UNUSED
    ),
    f"{EXPERIMENT_RESULTS}/inspro_lite.json": _of(inspro_lite, "--bundle", UNUSED),
    f"{EXPERIMENT_RESULTS}/inspro_r50_export.json": _of(inspro_export, "--bundle", UNUSED),
    f"{EXPERIMENT_RESULTS}/inspro_training.json": _of(inspro_training),
    f"{EXPERIMENT_RESULTS}/preset_table.json": _preset_table,
    f"{EXPERIMENT_RESULTS}/stress.json": _of(stress),
    f"{EXPERIMENT_RESULTS}/swin_l_fp16_rtx_build.json": _of(large_build),
    f"{RESULTS}/bench_default.jsonl": _bench,
    f"{RESULTS}/bench_default_length.jsonl": _bench,
    f"{RESULTS}/bench_default_peers.jsonl": _bench,
    f"{RESULTS}/host_overhead.json": _of(host_overhead),
    **{
        f"{RESULTS}/default{precision}_{data}_dev.json": _evaluation
        for precision in ("", "_fp16", "_int8")
        for data in ("composite", "davis")
    },
}


@pytest.mark.parametrize("name", TODAY)
def test_a_committed_result_was_made_with_todays_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recorded = _as_today(_recorded(ROOT / name)["settings"])
    assert recorded == json.loads(json.dumps(TODAY[name](recorded)))


def _as_today(settings: Values) -> Values:
    """`settings` with the hashes of today's graphs in place of those with the same outputs."""
    text = json.dumps(settings)
    for before, bundle in SAME_OUTPUTS.items():
        text = text.replace(before, open_bundle(ROOT / bundle).manifest.graphs["frame"].sha256)
    values: Values = json.loads(text)
    return values


def test_every_committed_result_is_checked_and_says_where_it_was_measured() -> None:
    committed = {path for folder in (RESULTS, EXPERIMENT_RESULTS) for path in (ROOT / folder).iterdir()}
    assert {str(path.relative_to(ROOT)) for path in committed} == set(TODAY)
    assert all(_recorded(path)["machine"]["cpu"] for path in committed)


def test_a_result_of_other_settings_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stress, "FOUND_AGAIN_WITHIN_FRAMES", 6)
    name = f"{EXPERIMENT_RESULTS}/stress.json"
    assert _recorded(ROOT / name)["settings"] != json.loads(json.dumps(TODAY[name]({})))


def _recorded(path: Path) -> Values:
    """A report, or the first of its lines."""
    text = path.read_text()
    report: Values = json.loads(text.splitlines()[0] if path.suffix == ".jsonl" else text)
    return report
