"""INT8 for a bundle of several sizes: each size is calibrated and judged on its own, then they are joined again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from visrt.calibration.calibrate import Calibration, Progress, calibrate_bundle
from visrt.calibration.ranges import Hazard
from visrt.calibration.ranking import Trial
from visrt.calibration.report import CalibrationReport
from visrt.export.joining import join_sizes
from visrt.export.workplace import Existing, check_target, workplace
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.errors import ParityError

__all__ = ["calibrate_sizes"]


def calibrate_sizes(
    calibration: Calibration,
    progress: Progress = lambda *_: None,
    on_hazards: Callable[[list[Hazard]], None] = lambda _: None,
    on_trial: Callable[[Trial], None] = lambda _: None,
    on_size: Callable[[str], None] = lambda _: None,
) -> dict[str, CalibrationReport]:
    """Writes the INT8 bundle at every size, and returns the report of each, by size as 384x640.

    The other parameters are those of `calibrate_bundle`; `on_size` gets the size that is next. The reports lie in the
    folder `calibration`, those of several sizes in a folder each.
    """
    check_target(calibration.out, calibration.existing)
    bundle = open_bundle(calibration.bundle) if isinstance(calibration.bundle, Path) else calibration.bundle
    callbacks = progress, on_hazards, on_trial
    if not bundle.manifest.other_sizes:
        return {bundle.manifest.input.text: calibrate_bundle(replace(calibration, bundle=bundle), *callbacks)}
    out, reports = calibration.out, dict[str, CalibrationReport]()
    with workplace(out) as folder, tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as at:
        for size in bundle.sizes:
            name = size.manifest.input.text
            on_size(name)
            one = replace(calibration, bundle=size, out=Path(at) / name, existing=Existing.KEEP)
            reports[name] = _calibrated(one, name, *callbacks)
        join_sizes(folder, [_without_report(Path(at) / name, folder / "calibration" / name) for name in reports])
    return reports


def _calibrated(
    calibration: Calibration,
    size: str,
    progress: Progress,
    on_hazards: Callable[[list[Hazard]], None],
    on_trial: Callable[[Trial], None],
) -> CalibrationReport:
    try:
        return calibrate_bundle(
            calibration, lambda stage, done, of: progress(f"{size}: {stage}", done, of), on_hazards, on_trial
        )
    except ParityError as error:
        raise ParityError(f"{size}: {error}") from error


def _without_report(bundle: Path, report: Path) -> Bundle:
    """The calibrated bundle of one size, whose report is moved to `report`."""
    report.parent.mkdir(exist_ok=True)
    shutil.move(bundle / "calibration", report)
    return open_bundle(bundle)
