"""GPU memory in use, as nvidia-smi tells it; a Jetson shares its memory with the host and tells none."""

from __future__ import annotations

import shutil
import subprocess

__all__ = ["gpu_memory_mb"]


def gpu_memory_mb() -> int | None:
    """MB in use on the first GPU by all processes; None where nvidia-smi is missing or has no answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return int(answer) if answer.isdigit() else None
