"""The machine and the versions a number was measured with; a number without them says little."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from visrt.runtime.diagnostics import examine
from visrt.runtime.threads import usable_cores

__all__ = ["machine"]

CPUINFO = Path("/proc/cpuinfo")


def machine() -> dict[str, str]:
    """By subject: the processor, the cores this process may use, and what `visrt doctor` finds installed."""
    cores = f"{usable_cores()} usable of {os.cpu_count()}"
    return {"cpu": processor(), "cores": cores, **{finding.subject: finding.found for finding in examine()}}


def processor() -> str:
    """The processor's name where the kernel tells it, else its kind."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    names = [value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name"]
    return names[0] if names else platform.processor() or platform.machine()
