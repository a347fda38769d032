"""Outputs of a network, kept in memory or on disk, so that association runs many times and the network once.

A frame's outputs do not depend on how objects are associated. A recording is a folder with one .npz per video and
record.json, which identifies the frame graph. Either way a frame takes about 1 MB at 192x320 with 128 channels. Only
mask features are rounded to half precision: embeddings and logits, and so the association, stay exact to the last bit.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np

from visrt.benchmarks.accuracy.evaluate import pictures_of
from visrt.runtime.arrays import Array, HostTensor, Tensor
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.engines.engine import Engine
from visrt.runtime.errors import DataError, EngineError, NumericalError
from visrt.runtime.json_file import read_json_object
from visrt.runtime.network import Network
from visrt.runtime.sinks.output import write_atomically
from visrt.runtime.times import Stopwatch
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo

__all__ = ["CachedEngine", "Precision", "RecordingEngine", "ReplayEngine", "feeds_key", "record_outputs"]

Precision = Literal["float16", "float32"]
INDEX = "record.json"
RECORDING = "the index that `record_outputs` wrote"
KEYS = "keys"
LARGE = "mask_features"


def record_outputs(
    manifest: Manifest,
    engine: Engine,
    annotated: AnnotatedSet,
    folder: Path,
    precision: Precision = "float16",
    on_video: Callable[[str], None] = lambda _: None,
) -> None:
    """Run `engine`, the frame graph of `manifest`, over every picture and keep its outputs in `folder`.

    Videos that `folder` already holds are skipped. Raises DataError if it is of another graph, precision or engine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claim = {"frame_sha256": manifest.graphs["frame"].file.sha256, "precision": precision, "provider": engine.provider}
    if (folder / INDEX).exists():
        _require(folder, claim)
    else:
        write_atomically(folder / INDEX, [json.dumps(claim, indent=1).encode() + b"\n"])
    for video in annotated.videos:
        path = folder / _file_of(video)
        if not path.exists():
            _record_video(manifest, engine, video, path, precision)
        on_video(video.name)


def _record_video(manifest: Manifest, engine: Engine, video: AnnotatedVideo, path: Path, precision: Precision) -> None:
    recording = RecordingEngine(engine, precision)
    network = Network({"frame": recording}, manifest, Stopwatch())
    for picture in pictures_of(video):
        network.run_frames([picture])
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **recording.stacked())
    temporary.replace(path)


def _file_of(video: AnnotatedVideo) -> str:
    """File name from the video's name and a hash of its picture paths."""
    digest = blake2b("\n".join(str(path.resolve()) for path in video.pictures).encode(), digest_size=6)
    return f"{video.name}-{digest.hexdigest()}.npz"


def _require(folder: Path, claim: Mapping[str, str]) -> None:
    held = read_json_object(folder / INDEX, RECORDING)
    for key, value in claim.items():
        if held.get(key) != value:
            raise DataError(
                f"{folder / INDEX}: {key} is {held.get(key)!r}, expected {value!r}; record into another folder"
            )


class CachedEngine:
    """Runs `engine` once per distinct input and returns the kept outputs after that; mask features in half precision
    both times."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[bytes, dict[str, Array]] = {}

    @property
    def provider(self) -> str:
        return self._engine.provider

    def __call__(self, feeds: Mapping[str, Array | Tensor]) -> dict[str, Tensor]:
        key = feeds_key(feeds).tobytes()
        if key not in self._known:
            outputs = {role: tensor.numpy() for role, tensor in self._engine(feeds).items()}
            self._known[key] = {
                role: array.astype(np.float16) if role == LARGE else array.copy() for role, array in outputs.items()
            }
        return {role: HostTensor(array.astype(np.float32)) for role, array in self._known[key].items()}

    def close(self) -> None:
        self._known.clear()
        self._engine.close()


class RecordingEngine:
    """Returns what `engine` returns, and keeps the outputs of every call; one frame per call."""

    def __init__(self, engine: Engine, precision: Precision) -> None:
        self._engine, self._precision = engine, precision
        self._rows: list[dict[str, Array]] = []

    @property
    def provider(self) -> str:
        return self._engine.provider

    def __call__(self, feeds: Mapping[str, Array | Tensor]) -> dict[str, Tensor]:
        answer = self._engine(feeds)
        row = {role: tensor.row(0).numpy().copy() for role, tensor in answer.items()}
        row[LARGE] = _rounded(row[LARGE], self._precision)
        self._rows.append({KEYS: feeds_key(feeds), **row})
        return answer

    def stacked(self) -> dict[str, Array]:
        """By role, the outputs [T, ...] so far, and the keys [T, 16] of their inputs."""
        return {role: np.stack([row[role] for row in self._rows]) for role in self._rows[0]}

    def close(self) -> None:
        self._engine.close()


def _rounded(features: Array, precision: Precision) -> Array:
    with np.errstate(over="ignore"):
        rounded = features.astype(precision)
    if np.isfinite(features).all() and not np.isfinite(rounded).all():
        raise NumericalError(f"{LARGE} reach {np.abs(features).max():.3g}, beyond {precision}; record as float32")
    return rounded


class ReplayEngine:
    """The frame engine of a recording: outputs from disk, one video in memory at a time."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Raises DataError if the recording in `folder` is of another frame graph than that of `manifest`."""
        if not (folder / INDEX).is_file():
            raise DataError(f"{folder / INDEX}: no such file; record the videos first")
        _require(folder, {"frame_sha256": manifest.graphs["frame"].file.sha256})
        self._folder = folder
        self._place = {key: place for path in sorted(folder.glob("*.npz")) for key, place in _places(path)}
        self._open: tuple[Path, dict[str, Array]] | None = None

    @property
    def provider(self) -> str:
        return f"replay of {read_json_object(self._folder / INDEX, RECORDING)['provider']}"

    def __call__(self, feeds: Mapping[str, Array | Tensor]) -> dict[str, Tensor]:
        key = feeds_key(feeds).tobytes()
        if key not in self._place:
            raise EngineError(
                f"{self._folder} does not hold this frame; record its video (into another folder, if its pictures have "
                "changed), and feed frames one by one"
            )
        path, row = self._place[key]
        arrays = self._video(path)
        return {role: HostTensor(arrays[role][row : row + 1].astype(np.float32)) for role in arrays if role != KEYS}

    def close(self) -> None:
        self._open = None

    def _video(self, path: Path) -> dict[str, Array]:
        if self._open is None or self._open[0] != path:
            self._open = None
            with path.open("rb") as file, np.load(file) as arrays:
                self._open = path, dict(arrays.items())
        return self._open[1]


def _places(path: Path) -> list[tuple[bytes, tuple[Path, int]]]:
    """For each key of a video's file: the file and the row of its outputs."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            keys = arrays[KEYS]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a video of a recording ({error}); delete it and record again") from None
    return [(key.tobytes(), (path, row)) for row, key in enumerate(keys)]


def feeds_key(feeds: Mapping[str, Any]) -> Array:
    """A hash [16] uint8 of the names, shapes, types and values of `feeds`."""
    digest = blake2b(digest_size=16)
    for role in sorted(feeds):
        value = feeds[role]
        array = np.ascontiguousarray(value if isinstance(value, np.ndarray) else value.numpy())
        digest.update(f"{role} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return np.frombuffer(digest.digest(), dtype=np.uint8)
