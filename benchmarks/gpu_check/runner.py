"""Runs a part in a process of its own: a crash or a hang of an engine costs this part alone."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import BinaryIO

from visrt.benchmarks.gpu_check.parts import Part
from visrt.benchmarks.gpu_check.record import Done
from visrt.runtime.json_file import read_json_object
from visrt.runtime.sinks.output import cannot_write

__all__ = ["MEASURE", "in_process"]

MEASURE = (sys.executable, "-m", "visrt.benchmarks.gpu_check.measure")
ENGINES, LOGS = "engines", "logs"
LINE = 300
"""The most characters of a log that go into a reason."""


def in_process(part: Part, key: str, folder: Path, limit_s: float, command: Sequence[str] = MEASURE) -> Done:
    """The end of `part`, whatever happens. Its command and what it prints go to a log in `folder`, its engines to a
    cache there: engines that users keep would hide how long a build takes."""
    log = folder / LOGS / (re.sub(r"[^\w.-]+", "-", part.id) + ".log")
    out = log.with_suffix(".json")
    start = perf_counter()
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        out.unlink(missing_ok=True)
        with log.open("wb") as printed:
            code = _exit_code([*command, part.to_json(), str(out)], printed, folder / ENGINES, limit_s)
    except OSError as error:
        raise cannot_write(folder, error) from None
    seconds = perf_counter() - start
    if code is None:
        reason = f"took longer than {limit_s:g} s and was stopped; allow more with --limit-s; see {log}"
        return Done(part.id, key, "failed", reason, seconds)
    if code or not out.is_file():
        return Done(part.id, key, "failed", f"{_ended(code)}: {_last_line(log)}; see {log}", seconds)
    return _measured(part, key, out, seconds)


def _exit_code(command: Sequence[str], printed: BinaryIO, cache: Path, limit_s: float) -> int | None:
    """Of the process, None if it took too long. It does not outlive this function."""
    environment = {**os.environ, "VISRT_CACHE": str(cache.absolute())}
    printed.write(f"VISRT_CACHE={shlex.quote(environment['VISRT_CACHE'])} {shlex.join(command)}\n".encode())
    printed.flush()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, env=environment
    ) as process:
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            process.kill()


def _measured(part: Part, key: str, out: Path, seconds: float) -> Done:
    """What the process wrote."""
    result = read_json_object(out, "what a part measured")
    out.unlink()
    figures = result.get("figures", {})
    fault = result.get("refused") or figures.get("fault", "")
    return Done(part.id, key, "failed" if fault else "done", fault, seconds, figures)


def _ended(code: int) -> str:
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with {code}"


def _last_line(log: Path) -> str:
    """Of what it printed; the first line is the command."""
    lines = log.read_text(errors="replace").splitlines()[1:]
    return next((line.strip()[:LINE] for line in reversed(lines) if line.strip()), "it printed nothing")
