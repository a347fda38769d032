"""Engines that were built on this machine, cached for the next time, with what was measured and compiled for them.

Each has a sidecar, a json file that describes it and carries a keyed hash over both. The sidecar is written last, so
an engine without one is incomplete. Missing, truncated, modified or foreign engines are rebuilt; nothing is returned
unverified. The cache is never inside a bundle, which may be untrusted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from visrt.runtime.engines.trt.build import DEFAULT_LEVEL, RECIPE, BuildRefusedError, BuildRequest, BuiltEngine
from visrt.runtime.engines.trt.build_progress import Progress, ignore_progress
from visrt.runtime.engines.trt.cache_seal import Seal, UnsealedError, make_seal, read_seal
from visrt.runtime.engines.trt.library import TensorRt, cuda_build
from visrt.runtime.errors import OutputError
from visrt.runtime.json_file import parse_json
from visrt.runtime.sinks.output import write_atomically

__all__ = ["EngineCache", "EngineKey", "KeptEngine", "default_folder", "engine_key"]

LOGGER = logging.getLogger("visrt.engines")

FORGOTTEN_S = 24 * 3600
"""Age beyond which a temporary file is left over from a killed build."""

SIDECAR_BYTES_MAX = 2**20


@dataclass(frozen=True)
class EngineKey:
    """Everything that distinguishes one engine from another.

    graph: its name in the bundle. version: of TensorRT. gpu: name and compute capability of the GPU it is for, or the
    targets. cuda: the newest that the GPU's driver serves, empty with targets. profile, level: as in BuildRequest,
    sizes by symbol. package: the version of CUDA that TensorRT's wheel is for.
    """

    graph: str
    flavour: str
    version: str
    gpu: str
    cuda: str
    precision: str
    profile: tuple[tuple[str, tuple[int, int, int]], ...]
    onnx_sha256: str
    package: str = ""
    level: int = DEFAULT_LEVEL
    recipe: int = RECIPE

    @property
    def stem(self) -> str:
        """The file name of this engine's files, before the suffix."""
        readable = "".join(mark if mark.isalnum() else "-" for mark in self.graph[:40])
        return f"{readable}-{hashlib.sha256(_canonical(asdict(self))).hexdigest()[:32]}"

    @property
    def timings(self) -> str:
        """The file of TensorRT's timings, which are of the GPU and the software, whatever the graph."""
        machine = [self.flavour, self.version, self.package, self.gpu, self.cuda]
        return f"timings-{hashlib.sha256(_canonical(machine)).hexdigest()[:32]}.bin"

    @property
    def kernels(self) -> str:
        """The file of what TensorRT-RTX compiled for this engine while it ran."""
        return f"{self.stem}.kernels"


def engine_key(library: TensorRt, request: BuildRequest, gpu: str, cuda: str) -> EngineKey:
    """The key of the engine that `request` builds. `gpu` and `cuda` of this machine; targets take their place."""
    if request.targets:
        gpu, cuda = f"compute capability {', '.join(request.targets)}", ""
    return EngineKey(
        graph=request.name,
        flavour=library.flavour,
        version=library.version,
        gpu=gpu,
        cuda=cuda,
        precision=request.graph.precision,
        profile=tuple(sorted(request.profile.items())),
        onnx_sha256=hashlib.sha256(request.model).hexdigest(),
        package=cuda_build(library.flavour),
        level=request.level,
    )


@dataclass(frozen=True)
class KeptEngine:
    """The sidecar of a verified engine; `key` as in EngineKey, `precision` and messages as in BuiltEngine."""

    path: Path
    key: Mapping[str, Any]
    bytes: int
    sha256: str
    created: str
    warnings: tuple[str, ...]
    precision: Mapping[str, int]
    unaccounted: tuple[str, ...] = ()


def default_folder() -> Path:
    """$VISRT_CACHE, or `visrt` in the user's cache folder."""
    if chosen := os.environ.get("VISRT_CACHE"):
        return Path(chosen)
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "visrt"


def _log(notice: str) -> None:
    LOGGER.warning(notice)


class EngineCache:
    """The engines in one folder, for any number of processes at once.

    `notice` gets messages about what is built and why, and what could not be cached.
    """

    def __init__(self, folder: Path | None = None, notice: Callable[[str], None] = _log) -> None:
        self.folder = default_folder() if folder is None else folder
        self._notice = notice

    def get_or_build(
        self, key: EngineKey, build: Callable[[], BuiltEngine], progress: Progress = ignore_progress
    ) -> bytes:
        """The verified engine of `key`, or the one that `build` returns, which is then cached.

        If another process builds the same engine, this one waits for it and reports that to `progress`. An engine that
        cannot be cached, as on a full disk, is returned all the same.
        """
        try:
            return self._verified(key)
        except UnsealedError:
            # Another process may be half way through writing it. With the lock it is read again.
            pass
        lock = self._lock(key, progress)
        if lock is None:
            return build().data
        with lock:
            return self._found_or_built(key, build)

    def forget(self, key: EngineKey) -> None:
        """Removes the engine of `key`, which is intact but cannot be used, so that the next call builds it again."""
        try:
            with self._alone(f"{key.stem}.lock"):
                self._drop(key)
        except OutputError as error:
            self._notice(f"the engine of {key.graph} cannot be removed: {_fault(error)}")

    def holds(self, key: EngineKey) -> bool:
        """Whether an engine of `key` is there, verified or not."""
        return self._engine(key).with_suffix(".json").exists()

    def timings(self, key: EngineKey) -> bytes:
        """Kernel timings of earlier builds on the GPU of `key`; empty if there are none."""
        return self._sealed_bytes(key.timings)

    def kernels(self, key: EngineKey) -> bytes:
        """What TensorRT-RTX compiled for the engine of `key` in earlier runs; empty if there is nothing."""
        return self._sealed_bytes(key.kernels)

    def keep_kernels(self, key: EngineKey, kernels: bytes) -> None:
        """Keeps what was compiled; where it cannot be kept, that is a notice."""
        self._keep_sealed_bytes(key.kernels, kernels, "compiled kernels")

    def kept(self, onnx_sha256: str) -> list[KeptEngine]:
        """The verified engines of one ONNX file, by name."""
        return list(self._kept(onnx_sha256))

    def _kept(self, onnx_sha256: str) -> Iterator[KeptEngine]:
        for path in sorted(self.folder.glob("*.json")):
            try:
                sidecar = _sidecar(path)
                if sidecar.get("key", {}).get("onnx_sha256") != onnx_sha256:
                    continue
                self._checked(path.with_suffix(".engine"), sidecar)
            except UnsealedError:
                continue
            values = {name: sidecar[name] for name in ("key", "bytes", "sha256", "created", "precision")}
            accepted, unaccounted = (tuple(sidecar.get(name, ())) for name in ("warnings", "unaccounted"))
            yield KeptEngine(path.with_suffix(".engine"), warnings=accepted, unaccounted=unaccounted, **values)

    def _verified(self, key: EngineKey) -> bytes:
        """The engine of `key`; UnsealedError with the reason if there is none that can be trusted."""
        path = self._engine(key)
        if not os.path.lexists(path) and not os.path.lexists(path.with_suffix(".json")):
            raise UnsealedError("")
        sidecar = _sidecar(path.with_suffix(".json"))
        data = self._checked(path, sidecar)
        if _canonical(sidecar["key"]) != _canonical(asdict(key)):
            raise UnsealedError("it is another engine under this name")
        self._warn(key, sidecar["unaccounted"])
        return data

    def _warn(self, key: EngineKey, unaccounted: Sequence[str]) -> None:
        """Whoever uses an engine of which nobody knows whether it is right is told each time."""
        if unaccounted:
            self._notice(
                f"the engine of {key.graph} was built with messages that nobody has accounted for "
                f"({' | '.join(unaccounted)}): judge it with `visrt verify`"
            )

    def _checked(self, path: Path, sidecar: dict[str, Any]) -> bytes:
        data = _read(path)
        sealed = {name: value for name, value in sidecar.items() if name != "mac"}
        read_seal(self.folder).check(sidecar.get("mac"), [b"engine", _canonical(sealed), data])
        return data

    def _found_or_built(self, key: EngineKey, build: Callable[[], BuiltEngine]) -> bytes:
        """With the lock of `key`."""
        self._sweep(key)
        try:
            return self._verified(key)
        except UnsealedError as reason:
            self._say_why(key, str(reason))
        self._drop(key)
        try:
            built = build()
        except BuildRefusedError as refused:
            self._keep_timings(key, refused.timings)
            raise
        try:
            self._keep(key, built)
        except OutputError as error:
            self._drop(key)
            self._notice(f"the engine of {key.graph} is used but not kept: {_fault(error)}")
        self._keep_timings(key, built.timings)
        self._warn(key, built.unaccounted)
        return built.data

    def _say_why(self, key: EngineKey, reason: str) -> None:
        what = f"building the engine of {key.graph} for {key.gpu} in {key.precision}"
        self._notice(f"{self._engine(key)} is not used, {reason}; {what}" if reason else f"{what}, once")

    def _keep(self, key: EngineKey, built: BuiltEngine) -> None:
        """Writes engine, then sidecar: from then on it is there."""
        seal = self._own_seal()
        sealed = {
            "key": asdict(key),
            "bytes": len(built.data),
            "sha256": hashlib.sha256(built.data).hexdigest(),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "warnings": list(built.warnings),
            "unaccounted": list(built.unaccounted),
            "precision": dict(built.precision),
        }
        sidecar = {**sealed, "mac": seal.hash(b"engine", _canonical(sealed), built.data)}
        path = self._engine(key)
        write_atomically(path, [built.data])
        write_atomically(path.with_suffix(".json"), [json.dumps(sidecar, indent=1).encode()])

    def _keep_timings(self, key: EngineKey, timings: bytes) -> None:
        if timings:
            self._keep_sealed_bytes(key.timings, timings, "timings of TensorRT")

    def _sealed_bytes(self, name: str) -> bytes:
        """The verified content of file `name`; empty if there is none."""
        try:
            whole = _read(self.folder / name)
            read_seal(self.folder).check(whole[:64].decode("ascii", "replace"), _parts(name, whole[64:]))
        except UnsealedError:
            return b""
        return whole[64:]

    def _keep_sealed_bytes(self, name: str, data: bytes, what: str) -> None:
        try:
            mac = self._own_seal().hash(*_parts(name, data))
            with self._alone(f"{name}.lock"):
                write_atomically(self.folder / name, [mac.encode(), data])
        except OutputError as error:
            self._notice(f"{what} are not kept: {_fault(error)}")

    def _own_seal(self) -> Seal:
        """The cache's seal. A secret that cannot be trusted is replaced, and with it goes all it has sealed."""
        with self._alone("secret.lock"):
            try:
                return read_seal(self.folder)
            except UnsealedError:
                return make_seal(self.folder)

    def _lock(self, key: EngineKey, progress: Progress) -> Any:
        """The lock of `key`, taken; None if this cache cannot be written."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / f"{key.stem}.lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return lock.acquire(timeout=0)
        except Timeout:
            pass
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            self._notice(
                f"{self.folder} cannot be written ({reason}), engines are not kept; set VISRT_CACHE to a folder"
            )
            self._say_why(key, "")
            return None
        progress(f"waiting for another process, which builds the engine of {key.graph}", 0.0)
        return lock.acquire()

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """With the lock `name` for a moment; OutputError if the folder cannot be written."""
        from filelock import FileLock

        try:
            with FileLock(self.folder / name):
                yield
        except (OSError, NotImplementedError) as error:
            raise OutputError(f"{self.folder}: {getattr(error, 'strerror', None) or error}") from None

    def _sweep(self, key: EngineKey) -> None:
        """Removes what killed builds left: of this engine, which is locked, and whatever is old."""
        forgotten = time.time() - FORGOTTEN_S
        for path in self.folder.glob(".*.part"):
            try:
                if path.name.startswith(f".{key.stem}.") or path.stat().st_mtime < forgotten:
                    path.unlink(missing_ok=True)
            except OSError:
                continue

    def _drop(self, key: EngineKey) -> None:
        """Removes the entry of `key`, the sidecar first, with what was compiled for it."""
        for suffix in (".json", ".engine", ".kernels"):
            try:
                self._engine(key).with_suffix(suffix).unlink(missing_ok=True)
            except OSError:
                continue

    def _engine(self, key: EngineKey) -> Path:
        return self.folder / f"{key.stem}.engine"


def _parts(name: str, data: bytes) -> tuple[bytes, ...]:
    return b"file", name.encode(), data


def _fault(error: OutputError) -> str:
    """The first part of the error's message, without its advice for output folders."""
    return str(error).partition(";")[0]


def _sidecar(path: Path) -> dict[str, Any]:
    values = parse_json(_read(path, SIDECAR_BYTES_MAX), "its sidecar", "what this program wrote", UnsealedError)
    if not isinstance(values, dict) or not isinstance(values.get("key"), dict):
        raise UnsealedError("its sidecar is not of this program")
    return values


def _read(path: Path, limit: int = -1) -> bytes:
    try:
        # A pipe of this name would let us wait for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UnsealedError(f"{path.name} is not a plain file")
            return file.read(limit)
    except FileNotFoundError:
        raise UnsealedError(f"its {path.suffix} is missing") from None
    except OSError as error:
        raise UnsealedError(f"{path.name} cannot be read ({error.strerror})") from None


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
