"""What this machine can run and what prevents it: versions, backends, GPUs, packages that overwrite each other.

No engine is opened: packages are imported, and the NVIDIA driver lists its GPUs.
"""

from __future__ import annotations

import importlib
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visrt.runtime.engines.gpus import gpu_absence, gpu_capabilities
from visrt.runtime.errors import EngineError, one_line

if TYPE_CHECKING:
    from visrt.runtime.engines.trt.library import Flavour

__all__ = ["Finding", "clashes", "examine", "onnxruntime_absence", "outdated", "tensorrt_absence"]

RUNTIME_PACKAGES = ("visrt", "numpy", "scipy", "pillow", "pycocotools", "pydantic", "typer", "rich", "threadpoolctl")
TENSORRT_PACKAGES = ("tensorrt", "tensorrt-rtx", "tensorrt-rtx-cu13-bindings", "pycuda", "cuda-bindings")
SHARED_FOLDERS = ("cv2", "onnxruntime")
"""Folders that several distributions install into: the last one wins, and removing one breaks the other."""


def onnxruntime_absence(provider: str) -> str:
    """Why ONNX Runtime cannot run on `provider` here; empty if it can."""
    onnxruntime, problem = _module("onnxruntime")
    if not onnxruntime:
        return f"onnxruntime does not load ({problem})"
    if provider not in onnxruntime.get_available_providers():
        return f"this onnxruntime has no {provider}"
    return "" if provider == "CPUExecutionProvider" else gpu_absence()


def tensorrt_absence(flavour: Flavour) -> str:
    """Why TensorRT or TensorRT-RTX cannot run here; empty if it can."""
    from visrt.runtime.engines.trt.cuda import cuda_layer
    from visrt.runtime.engines.trt.library import load_tensorrt, target_absence

    try:
        library = load_tensorrt(flavour)
        if absence := gpu_absence():
            return absence
        cuda_layer()
    except EngineError as error:
        return str(error)
    return target_absence(library, gpu_capabilities())


@dataclass(frozen=True)
class Finding:
    """One line of the report. problem: what to do about it; empty where there is none."""

    subject: str
    found: str
    problem: str = ""


def examine() -> list[Finding]:
    """Everything `visrt doctor` shows; what is not installed is a finding, not an error."""
    return [
        Finding("python", f"{platform.python_version()} on {platform.platform()}"),
        *(_installed(package) for package in RUNTIME_PACKAGES),
        _opencv(),
        _video(),
        _onnxruntime(),
        *_gpus(),
        _tensorrt(),
        *_engines(),
        *outdated(declared(), _version),
        *clashes(packages_distributions()),
    ]


def declared() -> list[str]:
    """What visrt says it needs, extras but dev included, as "av>=17.1.0"; nothing where it is not known.

    In a checkout pyproject.toml says so: what was installed may be older.
    """
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file():
        text = project.read_text(encoding="utf-8").partition("[project]")[2].partition("\ndev = [")[0]
        return re.findall(r'"([\w.-]+(?:\[[^\]]*\])?>=[\d.]+)', text)
    try:
        return [line for line in requires("visrt") or [] if "dev" not in line.partition(";")[2]]
    except PackageNotFoundError:
        return []


def outdated(requirements: Sequence[str], version_of: Callable[[str], str]) -> list[Finding]:
    """Findings for packages that are installed and older than the first version that was run with visrt.

    requirements: as of package metadata. version_of: the version that is installed, empty where none is.
    """
    findings = {}
    for requirement in requirements:
        found = re.match(r"([\w.-]+)(?:\[[^\]]*\])?\s*>=\s*([\d.]+)", requirement)
        installed = version_of(found[1]) if found else ""
        if found and installed and _numbers(installed) < _numbers(found[2]):
            name, least = found[1], found[2]
            findings[name] = Finding(
                f"version of {name}",
                installed,
                f"older than {least}, the first that was run with visrt: `pip install '{name}>={least}'`",
            )
    return list(findings.values())


def _numbers(version: str) -> tuple[int, ...]:
    """The release numbers of a version, without zeros at the end."""
    release = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in release[0].split(".")] if release else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def clashes(distributions: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Findings for the shared folders; `distributions` by the top-level folder they install."""
    owners = {folder: sorted(set(distributions.get(folder, ()))) for folder in SHARED_FOLDERS}
    return [_owners(folder, names) for folder, names in owners.items() if names]


def _owners(folder: str, names: Sequence[str]) -> Finding:
    if len(names) == 1:
        return Finding(f"{folder} comes from", names[0])
    undo = f"pip uninstall -y {' '.join(names)}"
    return Finding(
        f"{folder} comes from", " and ".join(names), f"they overwrite each other: `{undo}`, then install only one"
    )


def _installed(package: str) -> Finding:
    found = _version(package)
    if found or package == "visrt":
        # visrt is on no index: run from a checkout it may well not be installed.
        return Finding(package, found or "not installed, run from its folder")
    return Finding(package, "not installed", f"`pip install {package}`")


def _opencv() -> Finding:
    cv2, problem = _module("cv2")
    return Finding("opencv", cv2.__version__) if cv2 else Finding("opencv", "does not load", problem)


def _video() -> Finding:
    """PyAV, its decoders of common formats, and the encoder of the overlay."""
    av, problem = _module("av")
    if not av:
        return Finding("video", "PyAV does not load", problem)
    missing = [name for name in ("h264", "hevc", "vp9", "libdav1d") if name not in av.codecs_available]
    found = f"PyAV {av.__version__}, FFmpeg's avcodec {av.library_versions['libavcodec'][0]}"
    found += f", cannot decode {', '.join(missing)}" if missing else ""
    if "libx264" not in av.codecs_available:
        return Finding("video", found, "no libx264, so no overlay video: install PyAV's own wheel or use --no-overlay")
    return Finding("video", found)


def _onnxruntime() -> Finding:
    """ONNX Runtime and the providers it was built with; visrt names the ones a run really uses."""
    onnxruntime, problem = _module("onnxruntime")
    if not onnxruntime:
        return Finding("onnxruntime", "does not load", f"{problem}: install exactly one of the extras cpu and gpu")
    return Finding("onnxruntime", f"{onnxruntime.__version__}: {', '.join(onnxruntime.get_available_providers())}")


def _gpus() -> list[Finding]:
    jetson = Path("/etc/nv_tegra_release")
    if jetson.exists():
        return [Finding("gpu", f"Jetson, {jetson.read_text().splitlines()[0].lstrip('# ')}")]
    lines = _nvidia_smi()
    return [Finding("gpu", line) for line in lines] or [Finding("gpu", "no NVIDIA GPU is visible")]


def _nvidia_smi() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def _tensorrt() -> Finding:
    found = [f"{package} {installed}" for package in TENSORRT_PACKAGES if (installed := _version(package))]
    return Finding("tensorrt", ", ".join(found) or "not installed")


def _engines() -> list[Finding]:
    """Which engines a GPU could run here. That one is absent is no problem: each is a choice."""
    absences = {
        "cuda": onnxruntime_absence("CUDAExecutionProvider"),
        "tensorrt": tensorrt_absence("tensorrt"),
        "tensorrt-rtx": tensorrt_absence("tensorrt-rtx"),
    }
    return [
        Finding(f"--engine {name}", f"absent: {absence}" if absence else "can be opened")
        for name, absence in absences.items()
    ]


def _module(name: str) -> tuple[Any, str]:
    """The imported module, or why it does not load: a missing package or a library it cannot find."""
    try:
        return importlib.import_module(name), ""
    except (ImportError, OSError, RuntimeError) as error:
        return None, one_line(error)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
