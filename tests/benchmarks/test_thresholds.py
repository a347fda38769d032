"""Claims about fitting floors, whatever they are measured on, and about the bundle that gets them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_bundle

from visrt.benchmarks.accuracy.identity import IdentityCounts
from visrt.benchmarks.accuracy.thresholds import FLOORS, THRESHOLDS, Criterion, fit, floors_of, write_fitted
from visrt.calibration.bundle import write_calibrated
from visrt.runtime.bundles.bundle import MANIFEST, open_bundle
from visrt.runtime.errors import BundleError, DataError, UsageError
from visrt.runtime.methods.minvis import MinVisSettings
from visrt.runtime.methods.registry import METHODS

VALUES = {"birth_score": (0.1, 0.3, 0.5, 0.7, 0.9), "keep_score": (0.1, 0.3, 0.5), "revive_similarity": (0.0, 0.5)}
START = {"birth_score": 0.9, "keep_score": 0.5, "revive_similarity": 0.5}


def valley(floors: Mapping[str, float]) -> IdentityCounts:
    """Best at 0.5, 0.3 and any similarity: low floors let rubbish in, high ones lose objects."""
    missed = 100 * max(0, floors["birth_score"] - 0.5) + 100 * max(0, floors["keep_score"] - 0.3)
    rubbish = 100 * max(0, 0.5 - floors["birth_score"]) + 100 * max(0, 0.3 - floors["keep_score"])
    return IdentityCounts(gt=100, tp=round(100 - missed), fp=round(rubbish))


def test_the_criterion_is_mota_with_prices() -> None:
    seen = IdentityCounts(gt=100, tp=90, duplicates=4, fp=3, id_switches=2, lost_ids=1)
    assert Criterion().score(seen) == pytest.approx(0.8)
    assert Criterion(spurious=0).score(seen) == pytest.approx(0.83)
    assert Criterion(changed_id=5).score(seen) == pytest.approx(0.68)
    assert np.isnan(Criterion().score(IdentityCounts()))


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_a_price_is_a_number_of_missed_objects(price: float) -> None:
    with pytest.raises(UsageError, match="0 or more"):
        Criterion(changed_id=price)


def test_the_best_floors_are_found_and_what_makes_no_difference_stays() -> None:
    found = fit(valley, START, VALUES, Criterion())
    assert found.best.floors == {"birth_score": 0.5, "keep_score": 0.3, "revive_similarity": 0.5}
    assert found.before.floors == START
    assert found.best.value == 1.0
    assert found.best.value == max(trial.value for trial in found.trials)


def test_floors_that_serve_best_already_stay() -> None:
    start = {"birth_score": 0.5, "keep_score": 0.3, "revive_similarity": 0.5}
    assert fit(valley, start, VALUES, Criterion()).best.floors == start


def test_no_floors_are_measured_twice_and_an_object_that_is_born_is_kept() -> None:
    asked: list[tuple[float, ...]] = []

    def measure(floors: Mapping[str, float]) -> IdentityCounts:
        asked.append(tuple(floors.values()))
        return valley(floors)

    found = fit(measure, START, VALUES, Criterion())
    assert len(asked) == len(set(asked)) == len(found.trials)
    assert all(keep <= birth for birth, keep, _ in asked)


def test_the_price_decides() -> None:
    """A low floor finds more and switches more: what it is worth depends on what a changed id costs."""

    def measure(floors: Mapping[str, float]) -> IdentityCounts:
        low = floors["birth_score"] < 0.5
        return IdentityCounts(gt=100, tp=90 if low else 80, id_switches=4 if low else 0)

    assert fit(measure, START, VALUES, Criterion()).best.floors["birth_score"] == 0.3
    assert fit(measure, START, VALUES, Criterion(changed_id=5)).best.floors["birth_score"] == 0.9


def test_without_an_object_in_sight_nothing_is_fitted() -> None:
    with pytest.raises(DataError, match="no labelled object is in sight"):
        fit(lambda _: IdentityCounts(), START, VALUES, Criterion())


LOST = {"birth_score": (0.5,), "keep_score": (0.4,), "lost_s": (0.5, 2.0, 10.0, None)}


@pytest.mark.parametrize(
    ("best", "present", "chosen"),
    [(2.0, None, 2.0), (None, 0.5, None), (0.5, 10.0, 0.5), ("any", None, None), ("any", 3.0, 3.0)],
)
def test_the_time_after_which_an_object_is_lost_is_found_and_never_is_one_of_its_values(
    best: Any, present: float | None, chosen: float | None
) -> None:
    def measure(floors: Mapping[str, Any]) -> IdentityCounts:
        return IdentityCounts(gt=100, tp=90, id_switches=0 if best in ("any", floors["lost_s"]) else 5)

    found = fit(measure, {"birth_score": 0.5, "keep_score": 0.4, "lost_s": present}, LOST, Criterion())
    assert found.best.floors == {"birth_score": 0.5, "keep_score": 0.4, "lost_s": chosen}


def test_of_equally_good_times_the_one_nearest_to_the_present_is_taken_and_never_is_the_longest() -> None:
    def measure(floors: Mapping[str, Any]) -> IdentityCounts:
        return IdentityCounts(gt=100, tp=90, id_switches=5 if floors["lost_s"] is None else 0)

    start = {"birth_score": 0.5, "keep_score": 0.4, "lost_s": None}
    assert fit(measure, start, LOST, Criterion()).best.floors["lost_s"] == 10.0


def test_every_family_has_thresholds_to_fit_birth_and_keep_among_them() -> None:
    for name, family in METHODS.items():
        assert {"birth_score", "keep_score"} <= FLOORS[type(family({}).settings)].keys(), name


def test_every_floor_is_a_setting_of_its_family() -> None:
    for settings, floors in FLOORS.items():
        assert floors.keys() <= {field.name for field in fields(settings)}
        for name, values in floors.items():
            for value in values:
                settings(**{name: value})


def fitted_bundle(folder: Path, association: dict[str, Any]) -> Path:
    bundle = open_bundle(write_bundle(folder / "bundle", association))
    out = folder / "fitted"
    out.mkdir()
    write_fitted(out, bundle, fit(valley, floors_of(bundle), VALUES, Criterion()), {"folder": "street"})
    return out


def test_the_fitted_bundle_holds_the_floors_and_the_figures_that_chose_them(tmp_path: Path) -> None:
    out = fitted_bundle(tmp_path, {"birth_score": 0.9, "nms_iou": 0.7})
    bundle = open_bundle(out)
    assert bundle.manifest.association == {
        "birth_score": 0.5,
        "keep_score": 0.3,
        "revive_similarity": 0.5,
        "nms_iou": 0.7,
    }
    assert floors_of(bundle)["birth_score"] == 0.5
    assert bundle.manifest.thresholds is not None
    told = json.loads(bundle.read(bundle.manifest.thresholds))
    assert told["data"] == {"folder": "street"}
    assert told["chosen"]["criterion"] == 1.0
    assert told["before"]["floors"]["birth_score"] == 0.9
    assert len(told["tried"]) > 3
    for name in ("frame", "masks"):
        assert bundle.graph(name) == open_bundle(tmp_path / "bundle").graph(name)


def test_figures_that_were_changed_are_refused(tmp_path: Path) -> None:
    out = fitted_bundle(tmp_path, {})
    (out / THRESHOLDS).write_text((out / THRESHOLDS).read_text().replace("street", "forest"))
    with pytest.raises(BundleError, match=THRESHOLDS):
        open_bundle(out)


def test_fitting_again_replaces_the_figures(tmp_path: Path) -> None:
    bundle = open_bundle(fitted_bundle(tmp_path, {}))
    again = tmp_path / "again"
    again.mkdir()
    write_fitted(again, bundle, fit(valley, floors_of(bundle), VALUES, Criterion()), {"folder": "square"})
    assert '"square"' in (again / THRESHOLDS).read_text()
    open_bundle(again)


def test_an_int8_bundle_keeps_the_figures(tmp_path: Path) -> None:
    import onnx

    bundle = open_bundle(fitted_bundle(tmp_path, {}))
    out = tmp_path / "int8"
    out.mkdir()
    write_calibrated(out, bundle, {"frame": onnx.load_from_string(bundle.graph("frame"))}, {})
    assert open_bundle(out).manifest.thresholds == bundle.manifest.thresholds


def test_a_family_without_floors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "bundle"))
    monkeypatch.delitem(FLOORS, MinVisSettings)
    with pytest.raises(UsageError, match="cannot be fitted; expected a bundle of ctvis, genvis, inspro"):
        floors_of(bundle)


def test_a_manifest_without_fitted_thresholds_says_so_by_nothing(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "bundle") / MANIFEST
    values = json.loads(path.read_text())
    del values["thresholds"]
    path.write_text(json.dumps(values))
    assert open_bundle(tmp_path / "bundle").manifest.thresholds is None
