"""Loads and runs a bundle's graphs once in a child process, so that a hostile or broken model kills only the child.

A native loader that crashes takes its process with it, and a graph can ask for more memory than there is. Hashes prove
that a bundle is what its author wrote, not that the author is honest: probe untrusted bundles.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.bundles.manifest import GraphSpec
from visrt.runtime.errors import EngineError, UsageError

__all__ = ["ProbeLimits", "probe"]

BYTES_OF_LENGTH = 8


@dataclass(frozen=True)
class ProbeLimits:
    """Limits of one graph: MB of address space in addition to the weights, and seconds."""

    memory_mb: int = 4096
    time_s: float = 120.0

    def __post_init__(self) -> None:
        if self.memory_mb < 512 or not self.time_s > 0:
            raise UsageError(f"{self}: expected 512 MB or more and a time above 0 s")


def probe(
    bundle: Bundle, limits: ProbeLimits = ProbeLimits(), child: Sequence[str] = ("-m", "visrt.runtime.engines.probe")
) -> None:
    """Opens each graph of `bundle` in ONNX Runtime on the CPU and runs it once on zeros, in a child process.

    Raises EngineError naming the graph and how the child died. `child`: arguments of the interpreter.
    """
    for name, spec in bundle.manifest.graphs.items():
        model = bundle.graph(name)
        heading = spec.model_dump_json().encode()
        limit = str(limits.memory_mb * 2**20 + 4 * len(model))
        try:
            done = subprocess.run(
                [sys.executable, *child, limit],
                input=len(heading).to_bytes(BYTES_OF_LENGTH, "big") + heading + model,
                capture_output=True,
                timeout=limits.time_s,
            )
        except subprocess.TimeoutExpired:
            raise EngineError(
                f"{spec.file.file}: did not load and run once within {limits.time_s:g} s; do not use it, or allow more"
            ) from None
        if done.returncode:
            raise EngineError(f"{spec.file.file}: {_death(done)}; do not use this bundle")


def _death(done: subprocess.CompletedProcess[bytes]) -> str:
    """The end of a child process that failed, as text."""
    if done.returncode < 0:
        number = -done.returncode
        known = {one.value: one.name for one in signal.Signals}
        return f"the loader died with signal {number} ({known.get(number, 'unknown')})"
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return f"the loader gave up: {lines[-1][:300] if lines else f'exit code {done.returncode}'}"


def main() -> None:
    """The child: limits itself, reads a graph's spec and model from standard input, opens it and runs it once."""
    _limit_memory(int(sys.argv[1]))
    data = sys.stdin.buffer.read()
    start = BYTES_OF_LENGTH + int.from_bytes(data[:BYTES_OF_LENGTH], "big")
    spec = GraphSpec.model_validate_json(data[BYTES_OF_LENGTH:start])
    from visrt.runtime.engines.options import EngineOptions
    from visrt.runtime.engines.ort import CpuEngine

    engine = CpuEngine(spec, data[start:], EngineOptions(threads=1))
    outputs = engine(
        {
            role: np.zeros([axis if isinstance(axis, int) else 1 for axis in tensor.shape], tensor.dtype)
            for role, tensor in spec.inputs.items()
        }
    )
    for tensor in outputs.values():
        tensor.numpy()


def _limit_memory(limit: int) -> None:
    """Where the system has no such limit, time alone is limited."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
