"""Candidates of a benchmark: they all process the same clip, one video per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any, Protocol

from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.session import Session, SessionSettings
from visrt.runtime.sinks.journal import Journal
from visrt.runtime.sources.video import read_video

__all__ = ["ENGINES", "STAGE_NAMES", "BundleCandidate", "Candidate", "Opening", "Run", "Seconds"]

Seconds = Mapping[str, float]
"""By stage, of one frame."""

STAGE_NAMES = {
    "decode": "decode",
    "preprocess": "resize and pad",
    "copy_in": "copy in",
    "frame_engine": "frame engine",
    "copy_out": "copy out",
    "clip_engine": "clip engine",
    "decoder_engine": "decoder engine",
    "head_engine": "head engine",
    "head_lite_engine": "lite head engine",
    "association": "association",
    "mask_engine": "mask engine",
    "masks": "mask resize and RLE",
    "post": "post-processing",
    "output": "output",
}
"""By stage, its name in tables and plots, in the order in which a frame passes them."""

ENGINES = ("copy_in", "copy_out", *(stage for stage in STAGE_NAMES if stage.endswith("_engine")))
"""The stages of the engines alone."""


@dataclass(frozen=True)
class Run:
    """Times of one video from its first frame to its last result.

    frames: seconds by stage, one entry per frame. cpu_s: of all threads of this process. objects: shown, summed over
    the frames.
    """

    frames: Sequence[Seconds]
    wall_s: float
    cpu_s: float
    objects: int


@dataclass(frozen=True)
class Opening:
    """open_s: seconds to open the engines. first_frame_s: from then to the first result."""

    open_s: float
    first_frame_s: float


class Candidate(Protocol):
    """One of the things that are compared; all process the same frames."""

    @property
    def name(self) -> str: ...

    def open(self) -> Opening:
        """Open it and process one frame."""
        ...

    def run(self) -> Run:
        """Process the video from its start."""
        ...

    def close(self) -> None: ...


@dataclass
class BundleCandidate:
    """The first `frames` frames of `clip` through a session on `engine`; results go to a journal on disk.

    With several frames in flight the frame engine's stage is only the time that the host waits for it. association:
    settings in place of the bundle's own, which are called `variant` in the name.
    """

    bundle: Bundle
    engine: str
    clip: Path
    frames: int
    threads: int | None = None
    in_flight: int = 1
    association: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""
    device: int = 0
    _folder: TemporaryDirectory[str] = field(init=False)

    @property
    def name(self) -> str:
        return ", ".join(filter(None, (self.plain_name, self.variant)))

    @property
    def plain_name(self) -> str:
        """Without the variant."""
        also = f", {self.in_flight} in flight" if self.in_flight > 1 else ""
        return f"{self.bundle.manifest.name} on {self.engine}{also}"

    def open(self) -> Opening:
        start = perf_counter()
        settings = SessionSettings(in_flight=self.in_flight)
        self._session = Session.open(
            self.bundle,
            self.engine,
            threads=self.threads,
            device=self.device,
            settings=settings,
            association=self.association,
        )
        self._folder = TemporaryDirectory()
        middle = perf_counter()
        for frame in islice(read_video(self.clip), 1):
            self._session.step(frame.image, frame.time_s)
        self._session.flush()
        return Opening(middle - start, perf_counter() - middle)

    def run(self) -> Run:
        session = self._session
        session.reset()
        stages: list[dict[str, float]] = []
        objects = 0
        journal = Journal(Path(self._folder.name) / "results.jsonl", session.manifest.classes)
        start, cpu = perf_counter(), process_time()
        before = start
        for frame in islice(read_video(self.clip), self.frames):
            decoded = perf_counter()
            results = session.step(frame.image, frame.time_s)
            stepped = perf_counter()
            for result in results:
                objects += len(result.objects)
                journal.write(result, frame.image)
            now = perf_counter()
            engine_stages = session.last_times.seconds if results else {}
            stages.append({"decode": decoded - before, **engine_stages, "output": now - stepped})
            before = now
        if last := session.flush():
            stages[-1] = _summed(stages[-1], session.last_times.seconds)
        for result in last:
            objects += len(result.objects)
            journal.write(result, frame.image)
        done = Run(stages, perf_counter() - start, process_time() - cpu, objects)
        journal.close()
        return done

    def close(self) -> None:
        self._session.close()
        self._folder.cleanup()


def _summed(one: Seconds, other: Seconds) -> dict[str, float]:
    return {stage: one.get(stage, 0.0) + other.get(stage, 0.0) for stage in {**one, **other}}
