"""Outputs: what was written stays, files are whole, and a viewer knows each object by its colour."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from visrt.runtime.errors import OutputError, UsageError
from visrt.runtime.masks import Rle, decode, decode_region
from visrt.runtime.results import FrameResult, TrackedObject
from visrt.runtime.sinks.journal import Journal, read_journal
from visrt.runtime.sinks.labels import text_colour_on
from visrt.runtime.sinks.output import JOURNAL, OVERLAY, prepare_folder, write_atomically
from visrt.runtime.sinks.overlay import colour_of, draw
from visrt.runtime.sinks.overlay_video import OverlayVideo, fit
from visrt.runtime.sinks.youtube_vis import write_youtube_vis
from visrt.runtime.sources.video import read_video

CLASSES = ("person", "Fahrzeug ü")
SIZE = (120, 160)


def rle_of(mask: NDArray[Any]) -> Rle:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def square(identity: int, x: int, y: int, side: int = 30, label: int = 0, score: float = 0.5) -> TrackedObject:
    mask = np.zeros(SIZE, bool)
    mask[y : y + side, x : x + side] = True
    return TrackedObject(identity, label, score, (x, y, side, side), rle_of(mask))


def result(index: int, *objects: TrackedObject) -> FrameResult:
    return FrameResult(index, index / 10, SIZE, objects)


def grey(value: int = 100) -> NDArray[np.uint8]:
    return np.full((*SIZE, 3), value, np.uint8)


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))), st.data())
def test_a_mask_decoded_in_a_box_is_the_crop_of_the_whole_mask(mask: NDArray[np.bool_], data: st.DataObject) -> None:
    height, width = mask.shape
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = (x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y)))
    region = decode_region(rle_of(mask), box)
    assert np.array_equal(region, mask[y : y + box[3], x : x + box[2]])


def test_long_runs_are_decoded_in_a_box_too() -> None:
    mask = np.zeros((700, 900), bool)
    mask[100:690, 3:880] = True
    mask[300:400, 200:700] = False
    assert np.array_equal(decode_region(rle_of(mask), (3, 90, 877, 605)), mask[90:695, 3:880])


def test_the_overlay_touches_only_mask_outline_and_label_and_leaves_the_frame_alone() -> None:
    frame = grey()
    shown = draw(frame, result(0, square(3, 60, 60)), CLASSES)
    assert np.array_equal(frame, grey())
    untouched = np.ones(SIZE, bool)
    untouched[60:90, 60:90] = False
    untouched[30:60, 60:] = False
    assert np.array_equal(shown[untouched], frame[untouched])
    assert not np.array_equal(shown[65:85, 65:85], frame[65:85, 65:85])


def test_the_tint_is_the_colour_of_the_id_whatever_else_is_in_the_frame() -> None:
    alone = draw(grey(), result(0, square(3, 100, 80)), CLASSES)
    among = draw(grey(), result(7, square(9, 10, 30), square(3, 100, 80), square(0, 5, 100, 10)), CLASSES)
    assert np.array_equal(alone[85:105, 105:125], among[85:105, 105:125])
    tint = 0.6 * 100 + 0.4 * np.array(colour_of(3))
    assert np.abs(alone[95, 115] - tint).max() <= 1


def test_the_order_of_objects_changes_nothing() -> None:
    objects = square(0, 10, 40), square(1, 30, 50), square(2, 50, 60)
    assert np.array_equal(draw(grey(), result(0, *objects), CLASSES), draw(grey(), result(0, *objects[::-1]), CLASSES))


@pytest.mark.parametrize("corner", [(0, 0), (130, 0), (0, 90), (130, 90)])
def test_labels_stay_inside_the_frame(corner: tuple[int, int]) -> None:
    label_only = draw(grey(), result(0, square(1, *corner, label=1)), CLASSES)
    background = np.array(colour_of(1))
    assert (label_only == background).all(axis=2).sum() > 300


def test_labels_of_one_place_do_not_cover_each_other() -> None:
    shown = draw(grey(), result(0, square(0, 60, 60), square(1, 61, 61)), CLASSES)
    amounts = [(shown == np.array(colour_of(identity))).all(axis=2).sum() for identity in (0, 1)]
    assert min(amounts) > 0.7 * max(amounts)


def test_a_frame_smaller_than_its_label_is_drawn() -> None:
    mask = np.ones((1, 1), bool)
    tiny = FrameResult(0, 0.0, (1, 1), (TrackedObject(1, 0, 0.9, (0, 0, 1, 1), rle_of(mask)),))
    assert draw(np.zeros((1, 1, 3), np.uint8), tiny, CLASSES).shape == (1, 1, 3)


PROTANOPIA = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
DEUTERANOPIA = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))


@pytest.mark.parametrize("eye", [np.eye(3), np.array(PROTANOPIA), np.array(DEUTERANOPIA)])
def test_neighbouring_ids_differ_for_every_eye(eye: NDArray[np.float64]) -> None:
    """Dichromacy by Machado et al. (2009), distances in CIELAB: 2.3 is just noticeable."""
    colours = np.array([colour_of(identity) for identity in range(21)]) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ eye.T, 0, 1)
    gamma = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = cv2.cvtColor(gamma.astype(np.float32)[None], cv2.COLOR_RGB2LAB)[0]
    assert min(np.linalg.norm(one - other) for one, other in pairwise(lab)) > 20
    assert min(np.linalg.norm(lab[a] - lab[b]) for a, b in combinations(range(7), 2)) > 10


def test_twenty_one_ids_have_colours_of_their_own_and_readable_text() -> None:
    assert len({colour_of(identity) for identity in range(21)}) == 21
    for identity in range(21):
        background, text = (np.array(c) / 255 for c in (colour_of(identity), text_colour_on(colour_of(identity))))
        light, dark = sorted((float(c**2.2 @ [0.2126, 0.7152, 0.0722]) for c in (background, text)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5, "WCAG 2 asks for a contrast of 4.5"


def write_overlay(path: Path, frames: list[tuple[float, NDArray[np.uint8]]]) -> None:
    sink = OverlayVideo(path, CLASSES, fps=10)
    for index, (time_s, image) in enumerate(frames):
        sink.write(FrameResult(index, time_s, (image.shape[0], image.shape[1]), ()), image)
    sink.close()


def test_the_overlay_keeps_the_times_of_the_source(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 1.0, 1.01, 3.0]
    write_overlay(tmp_path / OVERLAY, [(time_s, grey(10 * index)) for index, time_s in enumerate(times)])
    frames = list(read_video(tmp_path / OVERLAY))
    assert [frame.time_s for frame in frames] == pytest.approx(times, abs=1e-3)
    levels = [frame.image.mean() for frame in frames]
    assert levels == pytest.approx([10 * index for index in range(6)], abs=3)


@pytest.mark.parametrize("size", [(119, 159), (2, 3), (1, 1)])
def test_odd_sizes_are_padded_to_even_ones(tmp_path: Path, size: tuple[int, int]) -> None:
    write_overlay(tmp_path / OVERLAY, [(0.0, np.full((*size, 3), 120, np.uint8))])
    [frame] = read_video(tmp_path / OVERLAY)
    assert frame.image.shape[:2] == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert np.abs(frame.image.astype(int) - 120).max() < 8, "the padding is seen"


def test_colours_survive_the_overlay_video(tmp_path: Path) -> None:
    patches = np.zeros((64, 192, 3), np.uint8)
    for index, colour in enumerate([(250, 0, 0), (0, 200, 0), (0, 0, 250)]):
        patches[:, 64 * index : 64 * (index + 1)] = colour
    write_overlay(tmp_path / OVERLAY, [(0.0, patches)])
    [frame] = read_video(tmp_path / OVERLAY)
    assert np.abs(frame.image[32, [32, 96, 160]].astype(int) - patches[32, [32, 96, 160]]).max() < 8


def test_a_new_size_is_fitted_into_the_video(tmp_path: Path) -> None:
    write_overlay(tmp_path / OVERLAY, [(0.0, grey()), (0.1, np.full((300, 100, 3), 200, np.uint8)), (0.2, grey())])
    frames = [frame.image for frame in read_video(tmp_path / OVERLAY)]
    assert {frame.shape for frame in frames} == {(*SIZE, 3)}
    assert frames[1][60, 20].mean() > 180
    assert frames[1][60, 100].mean() < 20
    assert fit(grey(), *SIZE) is not None


def test_what_was_encoded_before_a_crash_can_be_watched(tmp_path: Path) -> None:
    sink = OverlayVideo(tmp_path / OVERLAY, CLASSES, fps=10)
    for index in range(100):
        sink.write(result(index), grey(index))
    cut = tmp_path / "crashed.mp4"
    cut.write_bytes((tmp_path / OVERLAY).read_bytes())
    sink.close()
    frames = list(read_video(cut))
    assert 40 <= len(frames) < 100
    assert len(list(read_video(tmp_path / OVERLAY))) == 100


def test_an_overlay_without_frames_leaves_no_file(tmp_path: Path) -> None:
    OverlayVideo(tmp_path / OVERLAY, CLASSES, fps=10).close()
    assert not (tmp_path / OVERLAY).exists()


def write_results(folder: Path, *results: FrameResult) -> Path:
    sink = Journal(folder / JOURNAL, CLASSES)
    for given_result in results:
        sink.write(given_result, grey())
    sink.close()
    return folder / JOURNAL


def test_a_journal_line_says_everything_of_its_frame(tmp_path: Path) -> None:
    sink = Journal(tmp_path / JOURNAL, CLASSES)
    sink.write(result(0, square(4, 10, 20, label=1, score=0.75)), grey())
    [line] = read_journal(tmp_path / JOURNAL)
    sink.close()
    [shown] = line["objects"]
    rle = shown.pop("rle")
    assert (line["frame"], line["time_s"], line["size"]) == (0, 0.0, list(SIZE))
    assert shown == {"id": 4, "label": 1, "name": "Fahrzeug ü", "score": 0.75, "box": [10, 20, 30, 30]}
    assert decode(rle).sum() == 900


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Journal(tmp_path / JOURNAL, CLASSES)
    sink.write(result(0, square(1, 5, 5)), grey())
    before = (tmp_path / JOURNAL).read_bytes()
    write = os.write
    answers = iter([lambda file, data: write(file, bytes(data[:10])), full_disk])
    monkeypatch.setattr(os, "write", lambda file, data: next(answers)(file, data))
    with pytest.raises(OutputError, match="no space left"):
        sink.write(result(1, square(1, 6, 5)), grey())
    monkeypatch.undo()
    sink.close()
    assert (tmp_path / JOURNAL).read_bytes() == before


def full_disk(*given_arguments: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_torn_last_line_is_not_read(tmp_path: Path) -> None:
    path = write_results(tmp_path, result(0), result(1, square(1, 5, 5)))
    path.write_bytes(path.read_bytes()[:-20])
    assert [line["frame"] for line in read_journal(path)] == [0]


def test_youtube_vis_has_a_mask_or_null_for_every_frame_of_every_track(tmp_path: Path) -> None:
    first, second = square(0, 10, 10, score=0.4), square(0, 20, 10, label=1, score=0.8)
    path = write_results(tmp_path, result(0, first), result(1), result(2, square(5, 50, 50), second))
    assert write_youtube_vis(path, tmp_path / "results.json", video_id=7) == 2
    tracks = json.loads((tmp_path / "results.json").read_text())
    assert [track["category_id"] for track in tracks] == [2, 1]
    assert [track["score"] for track in tracks] == [0.8, 0.5]
    assert {track["video_id"] for track in tracks} == {7}
    assert [[mask is not None for mask in track["segmentations"]] for track in tracks] == [
        [True, False, True],
        [False, False, True],
    ]
    assert tracks[0]["segmentations"][2] == second.rle


def boxed(identity: int, x: int, y: int, side: int = 30) -> TrackedObject:
    """As a bundle without masks gives it."""
    return replace(square(identity, x, y, side), rle=None)


def test_boxes_alone_are_written_and_drawn_without_masks(tmp_path: Path) -> None:
    frames = [result(0, boxed(3, 10, 20)), result(1), result(2, boxed(3, 14, 20))]
    path = write_results(tmp_path, *frames)
    assert [one for line in read_journal(path) for one in line["objects"] if "rle" in one] == []
    assert write_youtube_vis(path, tmp_path / "results.json") == 1
    [track] = json.loads((tmp_path / "results.json").read_text())
    assert track.pop("bboxes") == [[10, 20, 30, 30], None, [14, 20, 30, 30]]
    assert track.keys() == {"video_id", "category_id", "score"}
    drawn = draw(grey(), result(0, boxed(3, 60, 60)), CLASSES)
    assert (drawn[75, 60] == colour_of(3)).all()
    assert (drawn[75, 89] == colour_of(3)).all()
    assert (drawn[64:86, 64:86] == 100).all(), "inside the box the frame shows"


def test_an_object_without_a_mask_says_so() -> None:
    with pytest.raises(UsageError, match="gives boxes alone; use the object's box"):
        boxed(0, 1, 1).mask()


def test_memory_saving_portions_change_no_byte(tmp_path: Path) -> None:
    frames = [result(index, *(square(identity, 3 * identity, index) for identity in range(9))) for index in range(12)]
    path = write_results(tmp_path, *frames)
    write_youtube_vis(path, tmp_path / "at_once.json")
    write_youtube_vis(path, tmp_path / "one_by_one.json", budget_bytes=1)
    assert (tmp_path / "at_once.json").read_bytes() == (tmp_path / "one_by_one.json").read_bytes()


@pytest.mark.parametrize("frames", [0, 1, 3])
def test_no_detections_give_a_valid_empty_list(tmp_path: Path, frames: int) -> None:
    path = write_results(tmp_path, *(result(index) for index in range(frames)))
    assert write_youtube_vis(path, tmp_path / "results.json") == 0
    assert json.loads((tmp_path / "results.json").read_text()) == []


def test_an_atomic_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, [b"old"])

    def chunks() -> Any:
        yield b"new"
        full_disk()

    with pytest.raises(OutputError, match="no space left"):
        write_atomically(path, chunks())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_earlier_results_are_refused_and_named_unless_replaced(tmp_path: Path) -> None:
    write_results(tmp_path)
    (tmp_path / "mine.txt").write_text("stays")
    with pytest.raises(OutputError, match=r"already holds results\.jsonl.*--overwrite"):
        prepare_folder(tmp_path, [], "refuse")
    prepare_folder(tmp_path, [], "replace")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_input_is_never_overwritten_not_even_through_a_link(tmp_path: Path) -> None:
    video = tmp_path / OVERLAY
    video.write_bytes(b"my only copy")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / OVERLAY).symlink_to(video)
    for folder in (tmp_path, tmp_path / "elsewhere"):
        with pytest.raises(OutputError, match="would overwrite the input"):
            prepare_folder(folder, [video], "replace")
    assert video.read_bytes() == b"my only copy"


def test_a_folder_that_cannot_be_written_is_refused_before_work_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        prepare_folder(tmp_path / "file", [], "refuse")

    def read_only(*given_arguments: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "fsync", read_only)
    with pytest.raises(OutputError, match="not writable"):
        prepare_folder(tmp_path / "new", [], "refuse")
