"""The parts of a GPU check: each is one measurement in a process of its own, recorded when it is done."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from visrt.benchmarks.gpu_check.networks import RandomBundle
from visrt.runtime.bundles.bundle import MANIFEST, Bundle, open_bundle
from visrt.runtime.engines.backends import BACKENDS
from visrt.runtime.engines.gpus import gpu_absence
from visrt.runtime.engines.trt.cuda import LAYERS
from visrt.runtime.errors import BundleError, UsageError, install_hint

__all__ = [
    "ON_GPU",
    "CheckSettings",
    "Kind",
    "Part",
    "Subject",
    "cuda_parts",
    "engines_here",
    "given_subjects",
    "layers_here",
    "parts_of",
]

ON_GPU = tuple(name for name, backend in BACKENDS.items() if backend.on_gpu)

Kind = Literal["cuda", "export", "build", "verify", "engines", "streams"]
"""cuda: the CUDA layer alone, without a bundle and TensorRT. export: the bundle is made. build: engines are built and
opened. verify: compared with torch. engines: timed alone. streams: timed from the decoder to the masks."""


@dataclass(frozen=True)
class CheckSettings:
    """batches: the most streams that share a call of the engines. streams: at a time. frames: of each stream in a
    round; None takes FRAMES, on the CPU CPU_FRAMES. rounds: of which the median counts, after one that warms up.
    device: number of the GPU."""

    batches: tuple[int, ...] = (1, 8)
    streams: tuple[int, ...] = (1, 4, 8, 16)
    frames: int | None = None
    rounds: int = 3
    device: int = 0

    def __post_init__(self) -> None:
        if min((*self.batches, *self.streams, self.rounds, self.frames or 1)) < 1:
            raise UsageError("batches, streams, frames and rounds are numbers of 1 or more")
        if self.device < 0:
            raise UsageError(f"device {self.device}: expected the number of a GPU, from 0")

    def frames_on(self, engine: str) -> int:
        return self.frames or (FRAMES if BACKENDS[engine].on_gpu else CPU_FRAMES)


FRAMES, CPU_FRAMES = 120, 4


@dataclass(frozen=True)
class Subject:
    """A bundle at one size of its input (384x640). random: what it is made from if it is not there yet."""

    name: str
    folder: Path
    size: str
    random: RandomBundle | None = None

    @property
    def made(self) -> bool:
        return (self.folder / MANIFEST).is_file()

    def opened(self) -> Bundle:
        """The bundle of this size alone."""
        for bundle in open_bundle(self.folder).sizes:
            if bundle.manifest.input.text == self.size:
                return bundle
        raise BundleError(f"{self.folder}: has no input of {self.size} any more; it was replaced during the check")

    @property
    def sha256(self) -> str:
        """Of the manifest, which holds those of all other files."""
        return hashlib.sha256((self.folder / MANIFEST).read_bytes()).hexdigest()


FIGURES = 2
"""Raised when parts measure something else, so that none counts as done that was measured otherwise."""

CUDA = Subject("cuda", Path(), "")
"""In place of a bundle, where none is needed."""


@dataclass(frozen=True)
class Part:
    """One measurement. Fields that a kind does not have are empty or 0; frames, rounds, device: as in CheckSettings.
    engine: of kind "cuda" one of LAYERS."""

    kind: Kind
    subject: Subject
    engine: str = ""
    batch: int = 0
    streams: int = 0
    frames: int = 0
    rounds: int = 0
    clip: str = ""
    device: int = 0

    @property
    def id(self) -> str:
        """As minvis-r50-384x640-fp16/tensorrt/streams/batch8/16, or cuda/pycuda."""
        if self.kind == "cuda":
            return f"{self.subject.name}/{self.engine}"
        batch = f"batch{self.batch}" if self.batch else ""
        streams = f"{self.streams}" if self.streams else ""
        return "/".join(filter(None, (self.subject.name, self.engine, self.kind, batch, streams)))

    @property
    def lacks_bundle(self) -> bool:
        """Whether the bundle that it needs is not there."""
        return self.kind not in ("cuda", "export") and not self.subject.made

    def key(self, machine: Mapping[str, str]) -> str:
        """The hash of all that the result depends on: bundle, settings, GPU and versions; empty without a bundle."""
        if self.lacks_bundle:
            return ""
        values: dict[str, Any] = {
            **asdict(self),
            "subject": self.subject.name,
            "machine": dict(machine),
            "figures": FIGURES,
        }
        values["made_from"] = asdict(self.subject.random) if self.subject.random else None
        if self.kind == "cuda":
            values["torch"] = _version("torch")
        elif self.kind != "export":
            values["bundle"] = self.subject.sha256
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "subject": {**asdict(self.subject), "folder": str(self.subject.folder)}})

    @staticmethod
    def from_json(text: str) -> Part:
        values = json.loads(text)
        subject = values["subject"]
        random = subject["random"] and RandomBundle(**{**subject["random"], "size": tuple(subject["random"]["size"])})
        return Part(**{**values, "subject": Subject(subject["name"], Path(subject["folder"]), subject["size"], random)})


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def layers_here() -> dict[str, str]:
    """For each library that calls CUDA's driver, why this machine cannot use it, empty where it should: one that is
    installed and does not load is a failure of its part."""
    if absence := gpu_absence():
        return dict.fromkeys(LAYERS, absence)
    return {layer: _layer_absence(layer) for layer in LAYERS}


def _layer_absence(layer: str) -> str:
    module, extra = LAYER_PACKAGES[layer]
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        return f"{layer} is not installed; {install_hint(extra)}"
    except ImportError:
        # Its part says why it does not load.
        return ""
    return ""


LAYER_PACKAGES = {"pycuda": ("pycuda", "trt-pycuda"), "cuda-bindings": ("cuda.bindings", "trt")}
"""The package that is imported, which needs no driver, and the extra that installs it."""


def cuda_parts(layers: Sequence[str], device: int) -> list[Part]:
    """A part for each of `layers`, which comes before all others."""
    return [Part("cuda", CUDA, layer, device=device) for layer in layers]


def engines_here(chosen: Sequence[str] = ()) -> dict[str, str]:
    """For each engine of a GPU, or each `chosen`, why this machine cannot run it, empty where it can.

    Where none can, the CPU is added as a reference.
    """
    absences = {engine: BACKENDS[engine].absence() for engine in chosen or ON_GPU}
    if all(absences.values()):
        absences["cpu"] = BACKENDS["cpu"].absence()
    return absences


def given_subjects(folders: Sequence[Path]) -> Iterator[Subject]:
    """Every size of the bundles in `folders`, checked. Raises BundleError for one that is damaged."""
    for folder in folders:
        bundle = open_bundle(folder)
        for size in bundle.sizes:
            name, text = bundle.manifest.name, size.manifest.input.text
            yield Subject(f"{name} {text}" if bundle.manifest.other_sizes else name, folder, text)


def parts_of(subjects: Sequence[Subject], engines: Sequence[str], settings: CheckSettings, clip: Path) -> list[Part]:
    """All parts, in the order in which they are done. Raises UsageError where two bundles have one name."""
    names = [subject.name for subject in subjects]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"two bundles are called {', '.join(repeated)}; give each once, and export one under another name"
        )
    return [part for subject in subjects for part in _parts_of_one(subject, engines, settings, clip)]


def _parts_of_one(subject: Subject, engines: Sequence[str], settings: CheckSettings, clip: Path) -> Iterator[Part]:
    if subject.random:
        yield Part("export", subject)
    for engine in engines:
        frames, rounds = settings.frames_on(engine), settings.rounds
        device = settings.device if BACKENDS[engine].on_gpu else 0
        for batch in settings.batches:
            yield Part("build", subject, engine, batch, device=device)
            yield Part("verify", subject, engine, batch, device=device)
            timed = Part("engines", subject, engine, batch, 0, frames, rounds, str(clip), device)
            yield timed
            for streams in settings.streams:
                # Fewer streams than the batch never fill a call.
                if batch <= streams or batch == min(settings.batches):
                    yield replace(timed, kind="streams", streams=streams)
