"""Result files: where a measurement is written, and what is recorded with it.

By default a measurement writes to out/. With --write it renews the committed file. A test compares the settings in
every committed file with those that the code has today.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from visrt.benchmarks.accuracy.report import without_nan
from visrt.runtime.machine import machine_and_packages
from visrt.runtime.methods.presets import PRESETS
from visrt.runtime.methods.registry import method_from_preset
from visrt.runtime.sinks.output import write_atomically

__all__ = ["COMPARED_PRESETS", "EXPERIMENT_RESULTS", "RESULTS", "add_result_options", "preset_settings", "write_result"]

RESULTS = Path("benchmarks/results")
EXPERIMENT_RESULTS = Path("benchmarks/experiments/results")

ABLATIONS = ("minvis-heuristics", "minvis-heuristics+query")
COMPARED_PRESETS = tuple(name for name in PRESETS if name not in ABLATIONS)
"""The presets of the committed comparisons: methods to track with. The ablations are for the paper's tables."""


def add_result_options(parser: argparse.ArgumentParser, committed: Path) -> None:
    """Adds --out, which is out/NAME if not given, and --write, which is `committed`; both set `out`."""
    default = Path("out") / committed.name
    parser.add_argument("--out", type=Path, default=default, help=f"json of the figures ({default} if not given)")
    parser.add_argument(
        "--write", action="store_const", dest="out", const=committed, help=f"renew the committed {committed}"
    )


def write_result(out: Path, settings: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    """Writes `figures` with the settings, the machine and its load; null for NaN."""
    machine = machine_and_packages()
    if "torch" in sys.modules:
        machine["torch"] = version("torch")
    report = {"settings": settings, "machine": machine, "load_average": os.getloadavg(), **figures}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, [json.dumps(without_nan(report), indent=1, allow_nan=False).encode() + b"\n"])


def preset_settings() -> dict[str, dict[str, Any]]:
    """By compared preset, every setting of its association."""
    return {name: asdict(method_from_preset(name).settings) for name in COMPARED_PRESETS}
