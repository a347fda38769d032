"""Engines are kept once, verified always, and never half: the cache with builders that need no TensorRT."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from fakes import graph_spec

from visrt.runtime.engines.trt import engine_cache
from visrt.runtime.engines.trt.build import BuildRefusedError, BuildRequest, BuiltEngine
from visrt.runtime.engines.trt.cache_seal import SECRET
from visrt.runtime.engines.trt.engine_cache import EngineCache, EngineKey, default_folder, engine_key
from visrt.runtime.engines.trt.library import TensorRt
from visrt.runtime.sinks import output

KEY = EngineKey(
    graph="frame",
    flavour="tensorrt",
    version="10.3.0",
    gpu="NVIDIA Orin 8.7",
    cuda="12.6",
    precision="fp16",
    profile=(("batch", (1, 2, 4)),),
    onnx_sha256="a" * 64,
)
ENGINE = b"an engine " * 1000
BUILT = BuiltEngine(ENGINE, {"convolution fp16": 3}, ("a harmless warning",))
SPAWN = multiprocessing.get_context("spawn")
PATIENCE_S = 30


class Rig:
    """A cache in a folder of its own, what it says, and a builder that counts."""

    def __init__(self, folder: Path) -> None:
        self.said: list[str] = []
        self.builds = 0
        self.cache = EngineCache(folder, self.said.append)

    def build(self) -> BuiltEngine:
        self.builds += 1
        return BUILT

    def get(self, key: EngineKey = KEY) -> bytes:
        return self.cache.get_or_build(key, self.build)

    @property
    def engine(self) -> Path:
        (path,) = self.cache.folder.glob("*.engine")
        return path

    @property
    def sidecar(self) -> Path:
        return self.engine.with_suffix(".json")

    def leftovers(self) -> list[str]:
        """Files that are neither an entry, its lock nor the secret."""
        return [path.name for path in self.cache.folder.iterdir() if path.suffix == ".part"]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "cache")


@pytest.fixture
def filled(rig: Rig) -> Rig:
    """With the engine of KEY in it, and nothing said or built since."""
    rig.get()
    rig.said.clear()
    rig.builds = 0
    return rig


# What is kept


def test_an_engine_is_built_once_and_said_to_be(rig: Rig) -> None:
    assert rig.get() == rig.get() == ENGINE
    assert rig.builds == 1
    assert rig.said == ["building the engine of frame for NVIDIA Orin 8.7 in fp16, once"]
    assert not rig.leftovers()


def test_another_session_finds_it(filled: Rig) -> None:
    other = Rig(filled.cache.folder)
    assert other.get() == ENGINE
    assert (other.builds, other.said) == (0, [])


@pytest.mark.parametrize(
    "change",
    [
        {"graph": "masks"},
        {"flavour": "tensorrt-rtx"},
        {"version": "10.3.1"},
        {"gpu": "NVIDIA Orin 8.6"},
        {"cuda": "12.8"},
        {"precision": "int8"},
        {"profile": (("batch", (1, 2, 8)),)},
        {"onnx_sha256": "b" * 64},
        {"package": "cu13"},
        {"level": 5},
        {"recipe": 99},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_differs_makes_another_engine(filled: Rig, change: dict[str, Any]) -> None:
    filled.get(replace(KEY, **change))
    assert filled.builds == 1
    filled.get()
    assert filled.builds == 1


def test_every_part_of_the_key_was_tried_above() -> None:
    tried = test_whatever_differs_makes_another_engine.pytestmark[0].args[1]
    assert {name for change in tried for name in change} == {field.name for field in fields(EngineKey)}


def test_the_sidecar_tells_all_there_is_to_know(filled: Rig) -> None:
    (kept,) = filled.cache.kept(KEY.onnx_sha256)
    assert kept.path == filled.engine
    assert kept.key["gpu"] == KEY.gpu
    assert kept.key["profile"] == [["batch", [1, 2, 4]]]
    assert kept.bytes == len(ENGINE)
    assert kept.warnings == BUILT.warnings
    assert kept.precision == BUILT.precision
    assert json.loads(filled.sidecar.read_text())["sha256"] == kept.sha256
    assert not filled.cache.kept("b" * 64)


def test_an_engine_with_messages_that_nobody_knows_says_so_each_time(rig: Rig) -> None:
    marked = replace(BUILT, unaccounted=("a strange warning",))
    rig.cache.get_or_build(KEY, lambda: marked)
    assert "built with messages that nobody has accounted for (a strange warning)" in rig.said[-1]
    rig.said.clear()
    assert rig.get() == ENGINE
    assert ["strange" in said for said in rig.said] == [True]
    (kept,) = rig.cache.kept(KEY.onnx_sha256)
    assert kept.unaccounted == marked.unaccounted


def test_an_engine_that_is_there_is_held(filled: Rig) -> None:
    assert filled.cache.holds(KEY)
    assert not filled.cache.holds(replace(KEY, level=5))


def test_only_verified_engines_are_told(filled: Rig) -> None:
    filled.engine.write_bytes(ENGINE[:-1])
    assert not filled.cache.kept(KEY.onnx_sha256)


def test_the_key_is_made_from_the_request() -> None:
    graph = graph_spec({"x": ("float32", ("batch", 3))}, {"y": ("float32", ("batch", 3))})
    request = BuildRequest("frame", graph, b"onnx", {"batch": (1, 2, 4)})
    library = TensorRt(None, "tensorrt-rtx", "1.7.1")
    here = engine_key(library, request, "RTX 4090 8.9", "13.0")
    assert (here.gpu, here.cuda) == ("RTX 4090 8.9", "13.0")
    elsewhere = engine_key(library, replace(request, targets=("8.6", "8.9")), "RTX 4090 8.9", "13.0")
    assert (elsewhere.gpu, elsewhere.cuda) == ("compute capability 8.6, 8.9", "")
    assert engine_key(library, replace(request, model=b"other"), "RTX 4090 8.9", "13.0").stem != here.stem


def test_an_engine_that_was_forgotten_is_built_again(filled: Rig) -> None:
    filled.cache.forget(KEY)
    assert not list(filled.cache.folder.glob("*.engine"))
    assert filled.get() == ENGINE
    assert filled.builds == 1


# What is not believed


def cut(rig: Rig) -> None:
    rig.engine.write_bytes(ENGINE[:-1])


def grown(rig: Rig) -> None:
    rig.engine.write_bytes(ENGINE + b"x")


def one_bit(rig: Rig) -> None:
    data = bytearray(ENGINE)
    data[len(data) // 2] ^= 1
    rig.engine.write_bytes(data)


def emptied(rig: Rig) -> None:
    rig.engine.write_bytes(b"")


def gone(rig: Rig) -> None:
    rig.engine.unlink()


def a_pipe(rig: Rig) -> None:
    path = rig.engine
    path.unlink()
    os.mkfifo(path)


def sidecar_gone(rig: Rig) -> None:
    rig.sidecar.unlink()


def sidecar_cut(rig: Rig) -> None:
    rig.sidecar.write_text(rig.sidecar.read_text()[:-20])


def sidecar_of_another_kind(rig: Rig) -> None:
    rig.sidecar.write_text("[1, 2]")


def sidecar_not_text(rig: Rig) -> None:
    rig.sidecar.write_bytes(b"\xff\xfe\x00")


def sidecar_deep(rig: Rig) -> None:
    rig.sidecar.write_text("[" * 100_000)


def sidecar_altered(rig: Rig) -> None:
    told = json.loads(rig.sidecar.read_text())
    rig.sidecar.write_text(json.dumps({**told, "warnings": []}))


def hash_gone(rig: Rig) -> None:
    told = json.loads(rig.sidecar.read_text())
    del told["mac"]
    rig.sidecar.write_text(json.dumps(told))


def hash_of_another_type(rig: Rig) -> None:
    told = json.loads(rig.sidecar.read_text())
    rig.sidecar.write_text(json.dumps({**told, "mac": 7}))


def hash_without_the_secret(rig: Rig) -> None:
    """Engine and sidecar fit each other, as anyone can make them."""
    forged = b"forged " * 1000
    told = json.loads(rig.sidecar.read_text())
    told |= {"bytes": len(forged), "sha256": hashlib.sha256(forged).hexdigest()}
    rig.engine.write_bytes(forged)
    rig.sidecar.write_text(json.dumps(told))


def of_another_cache(rig: Rig) -> None:
    other = Rig(rig.cache.folder.parent / "elsewhere")
    other.get()
    rig.engine.write_bytes(other.engine.read_bytes())
    rig.sidecar.write_bytes(other.sidecar.read_bytes())


def renamed(rig: Rig) -> None:
    """An engine of this cache, sealed well, under the name of another."""
    other = replace(KEY, gpu="another GPU")
    path, sidecar = rig.engine, rig.sidecar
    rig.cache.get_or_build(other, lambda: BuiltEngine(b"for another GPU", {}))
    stranger = rig.cache.folder / f"{other.stem}.engine"
    os.replace(stranger, path)
    os.replace(stranger.with_suffix(".json"), sidecar)
    rig.said.clear()


def secret_gone(rig: Rig) -> None:
    (rig.cache.folder / SECRET).unlink()


def secret_cut(rig: Rig) -> None:
    (rig.cache.folder / SECRET).write_bytes(b"short")


def secret_readable_by_others(rig: Rig) -> None:
    (rig.cache.folder / SECRET).chmod(0o644)


def secret_a_link(rig: Rig) -> None:
    path = rig.cache.folder / SECRET
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


ALTERATIONS = [
    cut,
    grown,
    one_bit,
    emptied,
    gone,
    a_pipe,
    sidecar_gone,
    sidecar_cut,
    sidecar_of_another_kind,
    sidecar_not_text,
    sidecar_deep,
    sidecar_altered,
    hash_gone,
    hash_of_another_type,
    hash_without_the_secret,
    of_another_cache,
    renamed,
    secret_gone,
    secret_cut,
    secret_readable_by_others,
    secret_a_link,
]


@pytest.mark.parametrize("alter", ALTERATIONS, ids=lambda alter: alter.__name__)
def test_what_was_altered_is_built_anew_and_said_why(filled: Rig, alter: Callable[[Rig], None]) -> None:
    alter(filled)
    assert filled.get() == ENGINE
    assert filled.builds == 1
    assert [notice for notice in filled.said if "is not used, " in notice]
    filled.said.clear()
    assert filled.get() == ENGINE
    assert (filled.builds, filled.said) == (1, [])


def test_what_cannot_be_replaced_costs_the_keeping_and_not_the_engine(filled: Rig) -> None:
    path = filled.engine
    path.unlink()
    path.mkdir()
    assert filled.get() == filled.get() == ENGINE
    assert filled.builds == 2
    assert ".engine is not used, " in filled.said[0]
    assert "used but not kept" in filled.said[1]
    assert not filled.leftovers()


def test_an_engine_without_a_sidecar_is_not_there(filled: Rig) -> None:
    sidecar_gone(filled)
    filled.get()
    assert "its .json is missing" in filled.said[0]


def test_the_secret_is_for_its_owner_alone(filled: Rig) -> None:
    status = (filled.cache.folder / SECRET).stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == 32
    assert stat.S_IMODE(filled.cache.folder.stat().st_mode) == 0o700


def test_two_caches_have_two_secrets(rig: Rig, tmp_path: Path) -> None:
    other = Rig(tmp_path / "other")
    rig.get()
    other.get()
    assert (rig.cache.folder / SECRET).read_bytes() != (other.cache.folder / SECRET).read_bytes()


# What cannot be kept


def full_disk(monkeypatch: pytest.MonkeyPatch, number: int, suffix: str) -> None:
    """Files of `suffix` are written to their first half, then the disk is full or read-only."""
    write = output.write_atomically

    def chunks(data: bytes) -> Any:
        yield data[: len(data) // 2]
        raise OSError(number, os.strerror(number))

    def broken(path: Path, parts: Any) -> None:
        write(path, chunks(b"".join(parts)) if path.suffix == suffix else parts)

    monkeypatch.setattr(engine_cache, "write_atomically", broken)


@pytest.mark.parametrize("suffix", [".engine", ".json"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_a_full_disk_costs_the_keeping_and_not_the_engine(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, number: int, suffix: str
) -> None:
    full_disk(monkeypatch, number, suffix)
    assert rig.get() == ENGINE
    assert "used but not kept" in rig.said[-1]
    assert not [path for path in rig.cache.folder.iterdir() if path.suffix in (".engine", ".json", ".part")]


def test_a_disk_that_has_space_again_keeps_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        full_disk(broken, errno.ENOSPC, ".engine")
        rig.get()
    rig.get()
    rig.get()
    assert rig.builds == 2


def test_a_secret_that_cannot_be_made_keeps_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(engine_cache, "make_seal", full)
    assert rig.get() == ENGINE
    assert "No space left" in rig.said[-1]
    assert not list(rig.cache.folder.glob("*.engine"))


def test_a_folder_that_cannot_be_made_costs_the_keeping_and_not_the_engine(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    rig = Rig(tmp_path / "file" / "cache")
    assert rig.get() == rig.get() == ENGINE
    assert rig.builds == 2
    assert "cannot be written" in rig.said[0]
    assert "VISRT_CACHE" in rig.said[0]


def test_what_a_read_only_cache_holds_is_used(filled: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert filled.get() == ENGINE
    assert (filled.builds, filled.said) == (0, [])
    assert filled.get(replace(KEY, graph="masks")) == ENGINE
    assert "cannot be written (Read-only file system)" in filled.said[0]


# Builds that fail


def test_a_build_that_fails_leaves_nothing_and_the_next_one_builds(rig: Rig) -> None:
    class RefusedError(Exception):
        pass

    def refused() -> BuiltEngine:
        raise RefusedError

    with pytest.raises(RefusedError):
        rig.cache.get_or_build(KEY, refused)
    assert not list(rig.cache.folder.glob("*.engine"))
    assert rig.get() == ENGINE


def test_what_killed_writers_left_is_cleaned_and_what_others_write_is_not(filled: Rig) -> None:
    cut(filled)
    folder = filled.cache.folder
    ours = folder / f".{KEY.stem}.engine.1234.part"
    old, fresh = folder / ".masks-0.engine.1.part", folder / ".masks-1.engine.1.part"
    for path in (ours, old, fresh):
        path.touch()
    yesterday = time.time() - engine_cache.FORGOTTEN_S - 60
    os.utime(old, (yesterday, yesterday))
    filled.get()
    assert [path.exists() for path in (ours, old, fresh)] == [False, False, True]


def test_a_secret_that_a_killed_process_left_half_written_is_in_nobody_s_way(rig: Rig) -> None:
    rig.cache.folder.mkdir()
    (rig.cache.folder / f".{SECRET}.{os.getpid()}.part").write_bytes(b"half")
    rig.get()
    rig.get()
    assert rig.builds == 1


# Several at once


def building(folder: Path, slowly: Any, told: Any) -> None:
    """In a process of its own: builds when `slowly` is set, and tells what it got and what it heard."""

    def build() -> BuiltEngine:
        told.put("building")
        assert slowly.wait(PATIENCE_S)
        return BUILT

    cache = EngineCache(folder, lambda notice: None)
    data = cache.get_or_build(KEY, build, lambda phase, fraction: told.put(phase))
    told.put(len(data))


def started(folder: Path) -> tuple[Any, Any, Any]:
    """A process that builds, the event that lets it end, and the queue it tells into."""
    slowly, told = SPAWN.Event(), SPAWN.Queue()
    process = SPAWN.Process(target=building, args=(folder, slowly, told), daemon=True)
    process.start()
    return process, slowly, told


def test_of_two_processes_the_second_waits_and_takes_the_first_s(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first, slowly, told = started(folder)
    assert told.get(timeout=PATIENCE_S) == "building"
    second, _, heard = started(folder)
    assert "waiting for another process" in heard.get(timeout=PATIENCE_S)
    slowly.set()
    assert told.get(timeout=PATIENCE_S) == len(ENGINE)
    assert heard.get(timeout=PATIENCE_S) == len(ENGINE)
    for process in (first, second):
        process.join(PATIENCE_S)
        assert process.exitcode == 0


def test_a_builder_that_is_killed_leaves_no_entry_and_no_lock(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "cache")
    process, _, told = started(rig.cache.folder)
    assert told.get(timeout=PATIENCE_S) == "building"
    process.kill()
    process.join(PATIENCE_S)
    assert not list(rig.cache.folder.glob("*.engine"))
    waited: list[str] = []
    assert rig.cache.get_or_build(KEY, rig.build, lambda phase, fraction: waited.append(phase)) == ENGINE
    assert rig.builds == 1
    assert not waited


def writing(folder: Path, told: Any) -> None:
    """In a process of its own: stops for good when half of the engine is written."""

    def half(descriptor: int) -> None:
        told.put("written")
        time.sleep(PATIENCE_S)

    os.fsync = half  # type: ignore[assignment]
    EngineCache(folder, lambda notice: None).get_or_build(KEY, lambda: BUILT)


def test_a_writer_that_is_killed_leaves_no_entry_and_its_traces_are_cleaned(filled: Rig) -> None:
    gone(filled)
    told = SPAWN.Queue()
    process = SPAWN.Process(target=writing, args=(filled.cache.folder, told), daemon=True)
    process.start()
    assert told.get(timeout=PATIENCE_S) == "written"
    process.kill()
    process.join(PATIENCE_S)
    assert filled.leftovers()
    assert not list(filled.cache.folder.glob("*.engine"))
    assert filled.get() == ENGINE
    assert filled.builds == 1
    assert not filled.leftovers()


def test_of_two_threads_one_builds(rig: Rig) -> None:
    slowly, begun = threading.Event(), threading.Event()

    def build() -> BuiltEngine:
        begun.set()
        assert slowly.wait(PATIENCE_S)
        return rig.build()

    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(rig.cache.get_or_build(KEY, build))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert begun.wait(PATIENCE_S)
    slowly.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert got == [ENGINE, ENGINE]
    assert rig.builds == 1


# Timings


def test_timings_are_kept_for_all_graphs_of_a_gpu_and_no_other(rig: Rig) -> None:
    rig.cache.get_or_build(KEY, lambda: replace(BUILT, timings=b"measured"))
    assert rig.cache.timings(KEY) == b"measured"
    assert rig.cache.timings(replace(KEY, graph="masks", precision="int8")) == b"measured"
    for change in ({"gpu": "other"}, {"cuda": "1"}, {"version": "11.0"}, {"flavour": "tensorrt-rtx"}):
        assert rig.cache.timings(replace(KEY, **change)) == b""  # type: ignore[arg-type]


def test_timings_of_an_engine_that_was_refused_are_kept(rig: Rig) -> None:
    def refuse() -> BuiltEngine:
        raise BuildRefusedError("messages that nobody has accounted for", b"measured")

    with pytest.raises(BuildRefusedError):
        rig.cache.get_or_build(KEY, refuse)
    assert rig.cache.timings(KEY) == b"measured"
    assert not list(rig.cache.folder.glob("*.engine"))


# What TensorRT-RTX compiled


def test_kernels_are_of_one_engine_on_one_gpu(filled: Rig) -> None:
    filled.cache.keep_kernels(KEY, b"compiled")
    assert filled.cache.kernels(KEY) == b"compiled"
    for change in ({"gpu": "other"}, {"cuda": "1"}, {"version": "11.0"}, {"graph": "masks"}, {"onnx_sha256": "b" * 64}):
        assert filled.cache.kernels(replace(KEY, **change)) == b""  # type: ignore[arg-type]
    filled.cache.forget(KEY)
    assert filled.cache.kernels(KEY) == b""


@pytest.mark.parametrize("data", [b"", b"short", b"0" * 64 + b"compiled"])
def test_kernels_that_were_altered_are_not_there(filled: Rig, data: bytes) -> None:
    filled.cache.keep_kernels(KEY, b"compiled")
    (filled.cache.folder / KEY.kernels).write_bytes(data)
    assert filled.cache.kernels(KEY) == b""


def test_kernels_are_not_taken_for_timings(filled: Rig) -> None:
    filled.cache.keep_kernels(KEY, b"compiled")
    (filled.cache.folder / KEY.kernels).rename(filled.cache.folder / KEY.timings)
    assert filled.cache.timings(KEY) == b""


def test_kernels_that_cannot_be_kept_are_a_notice(filled: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk(monkeypatch, errno.ENOSPC, ".kernels")
    filled.cache.keep_kernels(KEY, b"compiled")
    assert "compiled kernels are not kept" in filled.said[-1]


def test_timings_that_cannot_be_kept_cost_the_timings_only(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk(monkeypatch, errno.ENOSPC, ".bin")
    rig.cache.get_or_build(KEY, lambda: replace(BUILT, timings=b"measured"))
    assert "timings of TensorRT are not kept" in rig.said[-1]
    assert rig.cache.timings(KEY) == b""
    assert rig.get() == ENGINE
    assert not rig.builds


@pytest.mark.parametrize("data", [b"", b"short", b"0" * 64 + b"measured", b"\xff" * 100])
def test_timings_that_were_altered_are_not_there(rig: Rig, data: bytes) -> None:
    rig.cache.get_or_build(KEY, lambda: replace(BUILT, timings=b"measured"))
    (rig.cache.folder / KEY.timings).write_bytes(data)
    assert rig.cache.timings(KEY) == b""


# Where it is


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"VISRT_CACHE": "/chosen", "XDG_CACHE_HOME": "/xdg"}, "/chosen"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/visrt"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/someone/.cache/visrt"),
        ({"XDG_CACHE_HOME": "", "VISRT_CACHE": ""}, "/home/someone/.cache/visrt"),
    ],
)
def test_the_cache_is_the_user_s_or_where_he_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for name in ("VISRT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_folder() == EngineCache().folder == Path(expected)
