from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from collections.abc import Callable
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_sets import coco_values, video_values, write_coco, write_video

from visrt.runtime.errors import DataError
from visrt.training.data import set_cache
from visrt.training.data.clips import ClipDataset, ClipSettings
from visrt.training.data.set_cache import ReadColumns, read_columns
from visrt.training.data.set_columns import COLUMNS, SetColumns
from visrt.training.data.set_formats import SetPlaces, read_set
from visrt.training.data.sources import SourceSettings, load_pool


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cached sets, of sets of any size."""
    monkeypatch.setenv("VISRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(set_cache, "WORTH_BYTES", 0)
    return tmp_path / "cache" / "sets"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The sets that are read from their annotations."""
    found: list[Path] = []

    def counted(places: SetPlaces, name: str | None = None, *, skip_faulty: bool = False) -> Any:
        found.append(places.folder)
        return read_set(places, name, skip_faulty=skip_faulty)

    monkeypatch.setattr(set_cache, "read_set", counted)
    return found


def photos(folder: Path, count: int = 3) -> Path:
    write_coco(folder, coco_values(count))
    return folder


def read(folder: Path) -> ReadColumns:
    return read_columns(SetPlaces(folder), "coco", folder / "images")


def same(a: SetColumns, b: SetColumns) -> bool:
    known = (a.categories, a.remarks, a.boxes_only) == (b.categories, b.remarks, b.boxes_only)
    return known and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in COLUMNS)


def test_the_second_start_reads_no_annotations_and_finds_the_same(
    tmp_path: Path, cache: Path, reads: list[Path]
) -> None:
    folder = photos(tmp_path / "set")
    first, second = read(folder), read(folder)
    assert len(reads) == 1
    assert same(first.columns, second.columns)
    assert second.path == folder / "instances.json"
    assert second.columns.text_of_runs(1) == coco_values(3)["annotations"][1]["segmentation"]["counts"]


def test_clips_from_the_cache_are_those_from_the_annotations(tmp_path: Path, cache: Path, reads: list[Path]) -> None:
    write_video(tmp_path / "set", video_values(6))
    source = SourceSettings("youtube_vis", str(tmp_path / "set"))
    one, two = (ClipDataset([source], ClipSettings(frames=3), 4, 0) for _ in range(2))
    assert len(reads) == 1
    for i in range(4):
        assert np.array_equal(one[i].frames, two[i].frames)
        assert np.array_equal(one[i].masks, two[i].masks)


def test_a_small_file_leaves_no_cache(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_cache, "WORTH_BYTES", 2**22)
    read(photos(tmp_path / "set"))
    assert not cache.exists()


def one_photo_less(folder: Path) -> None:
    (folder / "instances.json").write_text(json.dumps(coco_values(2)))


def another_time(folder: Path) -> None:
    status = (folder / "instances.json").stat()
    os.utime(folder / "instances.json", ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("change", [one_photo_less, another_time])
def test_changed_annotations_are_read_again(
    tmp_path: Path, cache: Path, reads: list[Path], change: Callable[[Path], None]
) -> None:
    folder = photos(tmp_path / "set")
    read(folder)
    change(folder)
    count = len(json.loads((folder / "instances.json").read_text())["images"])
    assert read(folder).columns.frames == read(folder).columns.frames == count
    assert len(reads) == 2
    assert len([*cache.glob("*.set")]) == 1


def test_what_another_reader_made_is_read_again(
    tmp_path: Path, cache: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos(tmp_path / "set")
    read(folder)
    monkeypatch.setattr(set_cache, "READERS", set_cache.READERS[:-1])
    read(folder)
    assert len(reads) == 2


def cut_short(data: bytes) -> bytes:
    return data[:-1]


def other_bit(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE = [cut_short, *map(other_bit, (0, 9, 17, 60, -40, -1 - 8)), lambda _: b"", lambda data: data[:30]]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_again(
    tmp_path: Path, cache: Path, reads: list[Path], damage: Callable[[bytes], bytes]
) -> None:
    folder = photos(tmp_path / "set")
    first = read(folder)
    [file] = cache.glob("*.set")
    data = file.read_bytes()
    # A new file, as the old one is mapped.
    file.unlink()
    file.write_bytes(damage(data))
    assert same(read(folder).columns, first.columns)
    assert len(reads) == 2
    assert file.read_bytes() == data


def test_a_picture_that_is_gone_is_named_though_the_annotations_are_cached(tmp_path: Path, cache: Path) -> None:
    folder = photos(tmp_path / "set")
    read(folder)
    (folder / "images" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 photos are not below .*: 1\.png"):
        read(folder)


def test_a_folder_that_cannot_be_written_is_said_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(set_cache, "WORTH_BYTES", 0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("VISRT_CACHE", str(tmp_path / "file" / "cache"))
    sources = [SourceSettings("coco", str(photos(tmp_path / name))) for name in ("one", "two")]
    pool = load_pool(sources, ClipSettings())
    assert len(pool.bases) == 6
    [remark] = pool.remarks
    assert "cannot be written (Not a directory)" in remark
    assert "VISRT_CACHE" in remark


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    folder = photos(tmp_path / "set")
    monkeypatch.setattr(os, "fsync", full)
    found = read(folder)
    assert found.columns.frames == 3
    assert "No space left on device" in found.remarks[0]
    assert not [path for path in cache.iterdir() if path.suffix != ".lock"]


def _start(folder: Path, cache_folder: str) -> tuple[int, str]:
    """In a process of its own: number of frames, and the runs of the first mask."""
    os.environ["VISRT_CACHE"] = cache_folder
    set_cache.WORTH_BYTES = 0
    columns = read(folder).columns
    return columns.frames, columns.text_of_runs(0)


def test_processes_that_start_at_once_all_find_the_set(tmp_path: Path, cache: Path) -> None:
    folder = photos(tmp_path / "set", 40)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        starts: list[AsyncResult[tuple[int, str]]] = [
            pool.apply_async(_start, (folder, str(cache.parent))) for _ in range(6)
        ]
        found = [start.get(timeout=120) for start in starts]
    counts = coco_values(1)["annotations"][0]["segmentation"]["counts"]
    assert found == [(40, counts)] * 6
    assert len([*cache.glob("*.set")]) == 1
    assert not [*cache.glob(".*.part")]


def test_a_worker_is_sent_the_place_of_the_cache_and_not_its_content(tmp_path: Path, cache: Path) -> None:
    folder = photos(tmp_path / "set", 40)
    columns = read(folder).columns
    sent = pickle.dumps(columns)
    assert len(sent) < 400
    assert same(pickle.loads(sent), columns)


def test_a_worker_does_not_take_another_set_for_the_one_it_was_sent(tmp_path: Path, cache: Path) -> None:
    folder = photos(tmp_path / "set")
    sent = pickle.dumps(read(folder).columns)
    one_photo_less(folder)
    read(folder)
    with pytest.raises(DataError, match="Start the run again"):
        pickle.loads(sent)


def test_a_set_that_is_not_cached_is_sent_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = read(photos(tmp_path / "set")).columns
    assert columns.place is None
    assert same(pickle.loads(pickle.dumps(columns)), columns)


def test_a_name_that_is_no_utf_8_is_kept(tmp_path: Path, cache: Path) -> None:
    """As Linux has them from old archives; json holds them as surrogates."""
    folder = photos(tmp_path / "set", 1)
    name = os.fsdecode(b"caf\xe9.png")
    (folder / "images" / "0.png").rename(folder / "images" / name)
    values = coco_values(1)
    values["images"][0]["file_name"] = name
    (folder / "instances.json").write_text(json.dumps(values))
    read(folder)
    assert [*read(folder).columns.all_names()] == [name]
    pool = load_pool([SourceSettings("coco", str(folder))], ClipSettings())
    assert pool.bases[0].frames[0].path == folder / "images" / name
