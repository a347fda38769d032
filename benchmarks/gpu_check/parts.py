"""The parts of a GPU check: each is one measurement in a process of its own, recorded when it is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from visrt.benchmarks.gpu_check.networks import RandomBundle
from visrt.runtime.bundles.bundle import MANIFEST, Bundle, open_bundle
from visrt.runtime.engines.backends import BACKENDS
from visrt.runtime.errors import BundleError, UsageError

__all__ = ["ON_GPU", "CheckSettings", "Kind", "Part", "Subject", "engines_here", "given_subjects", "parts_of"]

ON_GPU = tuple(name for name, backend in BACKENDS.items() if backend.on_gpu)

Kind = Literal["export", "build", "verify", "engines", "streams"]
"""export: the bundle is made. build: engines are built and opened. verify: compared with torch. engines: timed alone.
streams: timed from the decoder to the masks."""


@dataclass(frozen=True)
class CheckSettings:
    """batches: the most streams that share a call of the engines. streams: at a time. frames: of each stream in a
    round; None takes FRAMES, on the CPU CPU_FRAMES. rounds: of which the median counts, after one that warms up.
    device: number of the GPU."""

    batches: tuple[int, ...] = (1, 4)
    streams: tuple[int, ...] = (1, 8)
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


@dataclass(frozen=True)
class Part:
    """One measurement. Fields that a kind does not have are empty or 0; frames, rounds, device: as in CheckSettings."""

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
        """As minvis-r50-384x640-fp16/tensorrt/streams/batch4/8."""
        batch = f"batch{self.batch}" if self.batch else ""
        streams = f"{self.streams}" if self.streams else ""
        return "/".join(filter(None, (self.subject.name, self.engine, self.kind, batch, streams)))

    def key(self, machine: Mapping[str, str]) -> str:
        """The hash of all that the result depends on: bundle, settings, GPU and versions; empty without a bundle."""
        if self.kind != "export" and not self.subject.made:
            return ""
        values: dict[str, Any] = {**asdict(self), "subject": self.subject.name, "machine": dict(machine)}
        values["made_from"] = asdict(self.subject.random) if self.subject.random else None
        if self.kind != "export":
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
