"""Picture files as a screen shows them: every picture of a file, all kinds of numbers, and what is said of it."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import features
from PIL.TiffImagePlugin import AppendingTiffWriter

from visrt.runtime.errors import UsageError
from visrt.runtime.sources.pictures import read_image
from visrt.runtime.sources.source import VideoFrame, VideoSettings
from visrt.runtime.sources.video import open_source

SIZE = (24, 32)


def plain(value: int) -> PillowImage.Image:
    return PillowImage.new("RGB", SIZE[::-1], (value, value, value))


def read(path: Path, settings: VideoSettings | None = None) -> tuple[list[VideoFrame], tuple[str, ...]]:
    """The frames of a source, and what was said."""
    source = open_source(path, settings or VideoSettings())
    frames = list(source)
    return frames, source.report.remarks


def values(frames: list[VideoFrame]) -> list[int]:
    return [int(frame.image[3, 3, 0]) for frame in frames]


SEVERAL = [
    "stack.tif",
    pytest.param("a.webp", marks=pytest.mark.skipif(not features.check("webp"), reason="a Pillow without WebP")),
    "a.png",
    pytest.param("a.avif", marks=pytest.mark.skipif(not features.check("avif"), reason="a Pillow without AVIF")),
    "a.gif",
]


@pytest.mark.parametrize("name", SEVERAL)
def test_every_picture_of_a_file_is_a_frame_with_its_duration(tmp_path: Path, name: str) -> None:
    first, *others = [plain(50 * at + 10) for at in range(5)]
    options: dict[str, Any] = {"lossless": True} if name == "a.webp" else {}
    if not name.endswith("tif"):
        options["duration"] = [100, 200, 300, 100, 100]
    first.save(tmp_path / name, save_all=True, append_images=others, **options)

    frames, remarks = read(tmp_path / name)

    assert values(frames) == pytest.approx([10, 60, 110, 160, 210], abs=2)
    expected = [0, 0.1, 0.2, 0.3, 0.4] if name.endswith("tif") else [0, 0.1, 0.3, 0.6, 0.7]
    assert [frame.time_s for frame in frames] == pytest.approx(expected)
    assert remarks == ()


def test_a_damaged_picture_of_a_stack_is_counted(tmp_path: Path) -> None:
    first, *others = [plain(50 * at + 10) for at in range(4)]
    first.save(tmp_path / "a.tif", save_all=True, append_images=others, compression="tiff_lzw")
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: len(data) // 2])

    source = open_source(tmp_path / "a.tif")
    frames = list(source)
    assert values(frames) == [10, 60][: len(frames)]
    assert len(frames) in (1, 2)
    assert (source.report.skipped, source.report.end) == (1, "partial")
    assert f"picture {len(frames) + 1}: not a readable image" in source.report.reason


def test_smaller_versions_of_a_page_are_no_frames(tmp_path: Path) -> None:
    with AppendingTiffWriter(str(tmp_path / "a.tif"), True) as file:
        for picture, reduced in ((plain(10), 0), (plain(200).resize((16, 12)), 1), (plain(90), 0)):
            picture.save(file, format="TIFF", tiffinfo={254: reduced})
            file.newFrame()
    frames, _ = read(tmp_path / "a.tif")
    assert values(frames) == [10, 90]


def test_in_a_folder_a_stack_gives_its_first_picture_and_a_remark(tmp_path: Path) -> None:
    for at in range(3):
        plain(40 * at).save(tmp_path / f"{at}.tif", save_all=True, append_images=[plain(250)] * 2)
    frames, [remark] = read(tmp_path)
    assert values(frames) == [0, 40, 80]
    assert "the first of each is read" in remark
    assert "0.tif holds 3" in remark


def test_the_preview_in_a_photo_is_no_frame(tmp_path: Path) -> None:
    plain(100).save(tmp_path / "photo.jpg", format="MPO", save_all=True, append_images=[plain(10)])
    frames, remarks = read(tmp_path / "photo.jpg")
    assert values(frames) == [100]
    assert remarks == ()


def write_numbers(path: Path, numbers: NDArray[Any]) -> Path:
    plain_tiff = [cv2.IMWRITE_TIFF_COMPRESSION, 1] if path.suffix == ".tif" else []
    cv2.imwrite(str(path), numbers, plain_tiff)
    return path


@pytest.mark.parametrize(
    ("name", "low", "high", "dtype", "shown"),
    [
        ("a.png", 0, 65535, np.uint16, (0, 255)),
        ("a.png", 0, 4095, np.uint16, (0, 255)),
        ("a.tif", 100, 900, np.uint16, (25, 224)),
        ("a.tif", 28000, 30000, np.uint16, (0, 255)),
        ("a.tif", 0.0, 1.0, np.float32, (0, 255)),
        ("a.tif", 0.0, 200.0, np.float32, (0, 200)),
        ("a.tif", -20.0, 35.0, np.float32, (0, 255)),
    ],
)
@pytest.mark.parametrize("colours", [1, 3])
def test_numbers_of_more_than_8_bits_are_mapped_and_the_range_is_said(
    tmp_path: Path, name: str, low: float, high: float, dtype: Any, shown: tuple[int, int], colours: int
) -> None:
    numbers = np.linspace(low, high, 24 * 32).reshape(SIZE).astype(dtype)
    numbers = numbers if colours == 1 else np.repeat(numbers[..., None], 3, axis=2)

    [frame], [remark] = read(write_numbers(tmp_path / name, numbers))

    assert frame.image.shape == (*SIZE, 3)
    assert (int(frame.image.min()), int(frame.image.max())) == pytest.approx(shown, abs=1)
    assert f"{numbers.min():g} to {numbers.max():g} in the first picture" in remark


def test_the_range_is_that_of_the_first_picture_or_the_one_that_is_given(tmp_path: Path) -> None:
    for at, most in enumerate((1000.0, 4000.0, 500.0)):
        write_numbers(tmp_path / f"{at}.tif", np.linspace(0, most, 24 * 32).reshape(SIZE).astype(np.uint16))

    frames, [remark] = read(tmp_path)
    assert [int(frame.image.max()) for frame in frames] == [249, 255, 125]
    assert "0 is read as black, 1023 as white" in remark

    frames, [remark] = read(tmp_path, VideoSettings(value_range=(0, 4000)))
    assert [int(frame.image.max()) for frame in frames] == [64, 255, 32]
    assert "4000 as white" in remark

    with pytest.raises(UsageError, match="black below white"):
        VideoSettings(value_range=(5, 5))


def test_numbers_that_are_none_are_black(tmp_path: Path) -> None:
    numbers = np.full(SIZE, 0.5, np.float32)
    numbers[:4], numbers[4:8], numbers[8] = np.nan, np.inf, 1
    [frame], _ = read(write_numbers(tmp_path / "a.tif", numbers))
    assert (int(frame.image[0, 0, 0]), int(frame.image[5, 0, 0]), int(frame.image[20, 0, 0])) == (0, 0, 128)


def test_colours_of_16_bits_keep_their_order(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif"):
        write_numbers(tmp_path / name, np.full((*SIZE, 3), (1000, 20000, 65535), np.uint16))
        [frame], _ = read(tmp_path / name)
        assert [*frame.image[0, 0]] == [255, 78, 4], name


def transparent(mode: str) -> PillowImage.Image:
    """Left half transparent, right half black."""
    alpha = np.zeros(SIZE, np.uint8)
    alpha[:, 16:] = 255
    picture = PillowImage.new("RGBA", SIZE[::-1], (0, 0, 0, 255))
    picture.putalpha(PillowImage.fromarray(alpha))
    if mode != "P":
        return picture.convert(mode)
    indexed = PillowImage.fromarray(alpha // 255).convert("P")
    indexed.putpalette([9, 9, 9, 0, 0, 0])
    return indexed


@pytest.mark.parametrize(("mode", "name"), [("RGBA", "a.png"), ("LA", "a.png"), ("P", "a.png"), ("RGBA", "a.webp")])
def test_what_is_transparent_is_white_and_said(tmp_path: Path, mode: str, name: str) -> None:
    options: dict[str, Any] = {"transparency": 0} if mode == "P" else {"lossless": True} if "webp" in name else {}
    transparent(mode).save(tmp_path / name, **options)
    [frame], remarks = read(tmp_path / name)
    assert ([*frame.image[3, 3]], [*frame.image[3, 28]]) == ([255] * 3, [0] * 3)
    assert remarks == ("what is transparent is read as white",)


@pytest.mark.parametrize(
    ("ink", "shown"), [((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))]
)
def test_cmyk_comes_as_rgb(tmp_path: Path, ink: tuple[int, ...], shown: tuple[int, ...]) -> None:
    PillowImage.new("CMYK", SIZE[::-1], ink).save(tmp_path / "a.jpg", quality=100)
    [frame], [remark] = read(tmp_path / "a.jpg")
    assert np.abs(frame.image[3, 3].astype(int) - shown).max() <= 3
    assert remark.startswith("CMYK")


def test_lab_comes_as_rgb(tmp_path: Path) -> None:
    PillowImage.new("LAB", SIZE[::-1], (128, 128, 128)).save(tmp_path / "a.tif")
    [frame], [remark] = read(tmp_path / "a.tif")
    assert np.abs(frame.image[3, 3].astype(int) - 119).max() <= 2
    assert remark.startswith("LAB")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_a_turned_photo_comes_upright(tmp_path: Path, orientation: int, deep: bool) -> None:
    picture = np.zeros((6, 8, 3), np.uint8)
    picture[:3, :4] = 255
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    PillowImage.fromarray(picture).save(path, exif=exif)
    expected = read_image(path, 10**6)
    if deep:
        data = cv2.imencode(".png", picture.astype(np.uint16) * 257)[1].tobytes()
        chunk = io.BytesIO(path.read_bytes()).getvalue()
        start = chunk.index(b"eXIf") - 4
        length = int.from_bytes(chunk[start : start + 4], "big") + 12
        after_header = 8 + 25
        path.write_bytes(data[:after_header] + chunk[start : start + length] + data[after_header:])
        assert np.array_equal(read_image(path, 10**6), expected)
    white = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert expected.shape[:2] == ((6, 8) if orientation < 5 else (8, 6))
    assert expected[white[orientation]].min() == 255


def test_formats_that_pillow_lacks_are_skipped_and_counted(tmp_path: Path) -> None:
    plain(10).save(tmp_path / "1.png")
    (tmp_path / "2.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (tmp_path / "3.HEIF").write_bytes(b"\0\0\0\x18ftypheix" + bytes(100))
    plain(90).save(tmp_path / "4.png")
    source = open_source(tmp_path)
    assert [(frame.index, frame.time_s) for frame in source] == [(0, 0.0), (1, 0.3)]
    assert (source.report.skipped, source.report.end) == (2, "partial")
    assert "save it as JPEG or PNG" in source.report.reason


@pytest.mark.skipif(not features.check("avif"), reason="a Pillow without AVIF")
def test_avif_in_a_folder_is_read(tmp_path: Path) -> None:
    for at in range(3):
        plain(80 * at).save(tmp_path / f"{at}.avif")
    frames, _ = read(tmp_path)
    assert values(frames) == pytest.approx([0, 80, 160], abs=3)


@pytest.mark.parametrize(
    ("names", "kept", "said"),
    [
        (("0001.jpg", "0001.png", "0002.jpg", "0002.png"), (0, 2), "2 images come twice: 0001.jpg is read"),
        (("a.png", "a.webp", "b.webp"), (1, 2), "1 images come twice: a.webp is read as a frame, a.png is not"),
    ],
)
def test_frames_and_masks_of_one_stem_are_not_both_frames(
    tmp_path: Path, names: tuple[str, ...], kept: tuple[int, ...], said: str
) -> None:
    for at, name in enumerate(names):
        plain(60 * at).save(tmp_path / name, **({"lossless": True} if "webp" in name else {}))  # type: ignore[arg-type]
    frames, [remark] = read(tmp_path)
    assert values(frames) == pytest.approx([60 * at for at in kept], abs=2)
    assert said in remark


def test_videos_in_a_folder_of_images_are_named_and_other_files_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain(10).save(tmp_path / "1.png")
    for name in ("a.mp4", "b.MP4", "c.gif", "notes.txt", "labels.json"):
        (tmp_path / name).write_text("x")
    with caplog.at_level(logging.WARNING):
        _, [remark] = read(tmp_path)
    assert remark == "files that are no frames were left out: 1 .gif, 2 .mp4"
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path.name}: {remark}"]
