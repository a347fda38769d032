"""Installs the lowest versions that pyproject.toml declares for [cpu] in a virtual environment; runs the core tests.

python tests/cli/lowest_versions.py .venv/lowest [pytest's options]
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("pytest", "hypothesis", "psutil", "filelock", "setuptools", "wheel", "onnx==1.17.0")
CORE = (
    "tests/cli/test_cli.py",
    "tests/cli/test_track.py",
    "tests/cli/test_track_options.py",
    "tests/runtime/sources",
    "tests/runtime/sinks",
    "tests/runtime/test_session.py",
    "tests/runtime/test_tracking.py",
    "tests/runtime/test_track_function.py",
    "tests/runtime/engines/test_ort.py",
    "tests/runtime/methods/test_minvis.py",
    "tests/runtime/methods/test_ctvis.py",
    "tests/test_front_door.py",
)


def lowest(pyproject: str) -> list[str]:
    """The dependencies of [cpu], each at its bound: "av==17.1.0". Raises ValueError for one without a bound."""
    lists = re.findall(r"^(?:dependencies|cpu) = \[(.*?)\]", pyproject, re.MULTILINE | re.DOTALL)
    named = [entry for part in lists for entry in re.findall(r'"([^"]+)"', part)]
    pins = [re.fullmatch(r"([\w.-]+)>=([\d.]+)", entry) for entry in named]
    without = [entry for entry, pin in zip(named, pins, strict=True) if pin is None]
    if without or not named:
        raise ValueError(f"{', '.join(without) or 'no dependency'}: expected a lower bound alone, as av>=17.1.0")
    return [f"{pin[1]}=={pin[2]}" for pin in pins if pin]


def main(folder: Path, options: list[str]) -> int:
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pins = lowest((ROOT / "pyproject.toml").read_text())
    print("lowest versions:", *pins, flush=True)
    pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--only-binary", ":all:", *pins, *TOOLS], check=True, cwd=ROOT)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--editable", "."], check=True, cwd=ROOT)
    # What these versions warn of is no fault of visrt.
    command = [python, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", *(options or CORE)]
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute(), sys.argv[2:]))
