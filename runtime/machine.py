"""The machine that a figure was measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from visrt.runtime.engines.diagnostics import examine
from visrt.runtime.engines.options import usable_cores

__all__ = ["machine_and_packages", "machine_of_run"]

CPUINFO = Path("/proc/cpuinfo")
TIMED_PACKAGES = ("visrt", "onnxruntime", "opencv-python", "av")


def machine_of_run() -> dict[str, Any]:
    """For a run's summary: system, processor, cores and the versions that its speed depends on. Imports nothing."""
    versions = {}
    for name in TIMED_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cpus": usable_cores(),
        "python": platform.python_version(),
        "versions": versions,
    }


def machine_and_packages() -> dict[str, str]:
    """For a benchmark, by subject: processor, cores, and what `visrt doctor` reports; takes about a second."""
    cores = f"{usable_cores()} usable of {os.cpu_count()}"
    return {"cpu": processor(), "cores": cores, **{finding.subject: finding.found for finding in examine()}}


def processor() -> str:
    """The processor's name from /proc/cpuinfo, or its architecture where there is none."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    names = [value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name"]
    return names[0] if names else platform.processor() or platform.machine()
