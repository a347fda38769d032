"""Which frames are given: start, end, every so many-th; patterns of names; and frames from the standard input."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from written_clips import FPS, noise, red_square, write_clip

from visrt.runtime.errors import SourceError, UsageError
from visrt.runtime.sources.source import Moment, RawFormat, VideoSettings, moment, raw_format
from visrt.runtime.sources.standard_input import Pipe, RawSource
from visrt.runtime.sources.video import Images, StandardInput, find_sources, open_source, read_video
from visrt.runtime.sources.video_file import FileSource


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2.5", Moment(2.5)),
        ("2.5s", Moment(2.5)),
        (3, Moment(3.0)),
        ("1:30", Moment(90.0)),
        ("1:00:01.5", Moment(3601.5)),
        ("75f", Moment(frame=75)),
        (Moment(frame=1), Moment(frame=1)),
    ],
)
def test_a_moment_is_seconds_or_a_frame(text: str | float | Moment, expected: Moment) -> None:
    assert moment(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "-1", "nan", "1:2:3:4", "7 frames", "inf", -2])
def test_what_is_no_moment_is_refused(text: str | float) -> None:
    with pytest.raises(UsageError, match="no place in a video"):
        moment(text)


@pytest.mark.parametrize(
    ("start", "end", "every", "expected"),
    [
        ("0.5", None, 1, range(5, 20)),
        ("5f", "8f", 1, range(5, 8)),
        (None, "0.35", 1, range(4)),
        ("0.5", "12f", 3, range(5, 12, 3)),
        (None, None, 7, range(0, 20, 7)),
        ("19f", None, 4, [19]),
    ],
)
@pytest.mark.parametrize("kind", ["file", "images", "stack"])
def test_the_frames_of_a_part_keep_their_numbers_and_times(
    tmp_path: Path, start: str | None, end: str | None, every: int, expected: list[int], kind: str
) -> None:
    if kind == "file":
        path = write_clip(tmp_path / "a.mp4", 20)
    else:
        pictures = [PillowImage.fromarray(red_square(at)) for at in range(20)]
        path = tmp_path / ("a.tif" if kind == "stack" else "frames")
        if kind == "stack":
            pictures[0].save(path, save_all=True, append_images=pictures[1:])
        else:
            path.mkdir()
            for at, picture in enumerate(pictures):
                picture.save(path / f"{at}.png")
    settings = VideoSettings(
        start=None if start is None else moment(start), end=None if end is None else moment(end), every=every
    )

    source = open_source(path, settings)
    frames = list(source)

    assert [frame.index for frame in frames] == list(expected)
    assert [frame.time_s for frame in frames] == pytest.approx([at / FPS for at in expected], abs=1e-3)
    assert (source.report.decoded, source.report.end, source.report.reason) == (len(frames), "complete", "")
    for frame in frames:
        assert np.abs(frame.image.astype(int) - red_square(frame.index)).mean() < 8


@pytest.mark.parametrize(("start", "end"), [("3", "2"), ("3", "3"), ("9f", "4f"), (None, "0"), (None, "0f")])
def test_an_end_that_is_not_after_the_start_is_refused(start: str | None, end: str) -> None:
    with pytest.raises(UsageError, match="end"):
        VideoSettings(start=None if start is None else moment(start), end=moment(end))


@pytest.mark.parametrize("kind", ["file", "images"])
def test_a_start_beyond_the_end_says_where_that_is(tmp_path: Path, kind: str) -> None:
    path = write_clip(tmp_path / "a.mp4", 5) if kind == "file" else tmp_path
    PillowImage.fromarray(red_square(0)).save(tmp_path / "0.png")
    with pytest.raises(UsageError, match=r"ends after \d (frames|images).*before the start, 100 s"):
        list(read_video(path, VideoSettings(start=moment(100))))


def test_a_part_of_a_damaged_file_before_the_damage_is_whole(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "a.mp4", 40, movflags="+faststart").read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    source = open_source(tmp_path / "a.mp4", VideoSettings(end=moment("5f")))
    assert len(list(source)) == 5
    assert source.report.end == "complete"


def write_numbered(folder: Path, *names: str) -> None:
    for name in names:
        PillowImage.new("RGB", (4, 4), (int("".join(filter(str.isdecimal, name)) or 0), 0, 0)).save(folder / name)


def test_a_pattern_takes_the_images_with_its_numbers_in_order(tmp_path: Path) -> None:
    write_numbered(tmp_path, "f2.png", "f10.png", "f1.png", "f01.png", "g3.png", "f7.jpg", "f.png")
    [images] = find_sources(f"{tmp_path}/f%d.png")
    assert isinstance(images, Images)
    assert [path.name for path in images.paths] == ["f1.png", "f2.png", "f10.png"]
    assert images.remarks == ("7 numbers between f1.png and f10.png have no image; the others follow each other",)
    [padded] = find_sources(f"{tmp_path}/f%02d.png")
    assert [path.name for path in padded.paths] == ["f01.png", "f10.png"]


@pytest.mark.parametrize(
    ("pattern", "said"), [("x%04d.png", "as x0001.png"), ("f%d-%d.png", "several numbers"), ("no/f%d.png", "listed")]
)
def test_a_pattern_that_matches_nothing_says_what_would(tmp_path: Path, pattern: str, said: str) -> None:
    write_numbered(tmp_path, "f1.png")
    with pytest.raises(UsageError, match=said):
        find_sources(f"{tmp_path}/{pattern}")


@pytest.mark.parametrize("pixels", ["rgb24", "bgr24", "gray"])
def test_raw_frames_are_read_from_a_pipe(pixels: str) -> None:
    raw = raw_format(f"64x48:{pixels}", fps=5)
    pictures = [red_square(at) for at in range(4)]
    order = {"rgb24": slice(None), "bgr24": slice(None, None, -1), "gray": slice(1, 2)}[pixels]
    data = b"".join(picture[..., order].tobytes() for picture in pictures)

    source = RawSource(raw, VideoSettings(every=2), io.BytesIO(data))
    frames = list(source)

    assert [(frame.index, frame.time_s) for frame in frames] == [(0, 0.0), (2, 0.4)]
    for frame in frames:
        expected = pictures[frame.index]
        assert np.array_equal(frame.image, np.repeat(expected[..., 1:2], 3, axis=2) if pixels == "gray" else expected)
    assert source.report.end == "complete"


def test_half_a_raw_frame_at_the_end_is_said_and_none_at_all_is_an_error() -> None:
    frame = red_square(0).tobytes()
    source = RawSource(RawFormat(64, 48), VideoSettings(), io.BytesIO(frame + frame[:100]))
    assert len(list(source)) == 1
    assert (source.report.end, source.report.reason) == ("partial", "it ended 100 bytes into a frame of 64x48:rgb24")
    with pytest.raises(SourceError, match="100 bytes, not one frame"):
        list(RawSource(RawFormat(64, 48), VideoSettings(), io.BytesIO(frame[:100])))


@pytest.mark.parametrize("text", ["64", "64x48:yuv", "0x48", "axb", "64x48x3"])
def test_a_raw_format_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="WIDTHxHEIGHT"):
        raw_format(text)


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".mp4"])
def test_an_encoded_video_is_read_from_a_pipe(tmp_path: Path, suffix: str) -> None:
    fragments = "frag_keyframe+empty_moov" if suffix == ".mp4" else ""
    data = write_clip(tmp_path / f"a{suffix}", 12, movflags=fragments).read_bytes()
    source = FileSource(Path("-"), VideoSettings(), Pipe(io.BufferedReader(io.BytesIO(data))))
    assert [frame.index for frame in source] == list(range(12))
    assert source.info.name == "stdin"


def test_an_mp4_whose_index_is_at_its_end_is_refused_with_what_to_pipe(tmp_path: Path) -> None:
    data = write_clip(tmp_path / "a.mp4", 40, noise).read_bytes()
    with pytest.raises(SourceError, match="pipe matroska or mpegts"):
        list(FileSource(Path("-"), VideoSettings(), Pipe(io.BufferedReader(io.BytesIO(data)))))


def test_a_playlist_in_a_pipe_opens_no_file(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", 3)
    data = f"ffconcat version 1.0\nfile {tmp_path / 'a.mp4'}\n".encode()
    with pytest.raises(SourceError, match="playlist"):
        FileSource(Path("-"), VideoSettings(), Pipe(io.BufferedReader(io.BytesIO(data))))


def test_the_standard_input_is_a_source_where_something_is_piped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_sources("-") == (StandardInput(),)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="nothing is piped"):
        open_source("-")
