"""How much memory a model's runs take: printed in MB, for a process of its own that has done nothing else.

python -m visrt.benchmarks.experiments.peak_memory MODEL.onnx FEEDS.npz
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["peak_mb"]

STATUS = Path("/proc/self/status")
RUNS = 2


def peak_mb(model: bytes, feeds: dict[str, Any]) -> float:
    """MB by which the peak of a fresh process grows while ONNX Runtime runs `model` on one core; Linux only."""
    with tempfile.TemporaryDirectory() as folder:
        path, arrays = Path(folder, "model.onnx"), Path(folder, "feeds.npz")
        path.write_bytes(model)
        np.savez(arrays, **feeds)
        command = [sys.executable, "-m", "visrt.benchmarks.experiments.peak_memory", str(path), str(arrays)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    feeds = dict(np.load(sys.argv[2]))
    before = _status_mb("VmRSS")
    for _ in range(RUNS):
        session.run(None, feeds)
    print(round(_status_mb("VmHWM") - before, 1))


def _status_mb(field: str) -> float:
    """`VmRSS` or `VmHWM`, its peak since the program started; getrusage's would include the parent's."""
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return next(int(words[1]) for words in lines if words[0] == f"{field}:") / 1024


if __name__ == "__main__":
    main()
