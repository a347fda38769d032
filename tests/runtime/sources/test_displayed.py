"""Frames of video files as a screen shows them, and one remark where something is read in part or changed."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage
from written_clips import noise, red_square, write_clip

from visrt.runtime.sources.displayed import displayed_size
from visrt.runtime.sources.high_dynamic_range import TRANSFERS, tone_mapped
from visrt.runtime.sources.source import VideoSettings
from visrt.runtime.sources.video import open_source, read_video

LIMITED = 1


def corner(size: tuple[int, int] = (48, 64)) -> NDArray[np.uint8]:
    """Grey, red in the top left quarter."""
    picture = np.full((*size, 3), 90, np.uint8)
    picture[: size[0] // 2, : size[1] // 2] = (250, 0, 0)
    return picture


def write(
    path: Path,
    *pictures: NDArray[Any],
    codec: str = "libx264",
    pixels: str = "yuv420p",
    source: str = "rgb24",
    aspect: Fraction | None = None,
    options: Mapping[str, str] | None = None,
    colours: Mapping[str, int] | None = None,
    flip: int | None = None,
) -> Path:
    """Three frames of each picture, each in a stream of its own. flip: degrees, then mirrored."""
    with av.open(str(path), "w") as container:
        for picture in pictures:
            stream: Any = container.add_stream(codec, rate=10)
            stream.height, stream.width = picture.shape[:2]
            stream.pix_fmt = pixels
            if aspect:
                stream.codec_context.sample_aspect_ratio = aspect
            stream.codec_context.options = dict(options or {})
            for name, value in (colours or {}).items():
                setattr(stream.codec_context, name, value)
            if flip is not None:
                stream.set_display_rotation(flip, hflip=True)
        for picture, stream in zip(pictures, container.streams.video, strict=True):
            for _ in range(3):
                frame = av.VideoFrame.from_ndarray(picture, format=source)
                if colours:
                    frame.colorspace, frame.color_range = colours["colorspace"], colours["color_range"]
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def only_frame(path: Path) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """The first picture of a file, and what was said of it all."""
    source = open_source(path)
    first, *_ = source
    return first.image, source.report.remarks


@pytest.mark.parametrize(
    ("aspect", "size"),
    [(Fraction(2, 1), (48, 128)), (Fraction(64, 45), (48, 91)), (Fraction(1, 2), (96, 64)), (Fraction(8, 9), (54, 64))],
)
def test_frames_have_the_shape_that_is_displayed(tmp_path: Path, aspect: Fraction, size: tuple[int, int]) -> None:
    path = write(tmp_path / "a.mp4", corner(), aspect=aspect)

    image, [remark] = only_frame(path)

    assert image.shape == (*size, 3)
    assert open_source(path).info.size == size
    assert open_source(path).info.pixel_aspect == pytest.approx(float(aspect))
    red = image[..., 1] < 45
    assert red[: size[0] // 2 - 2, : size[1] // 2 - 2].mean() > 0.9
    assert red[:, size[1] // 2 + 2 :].mean() < 0.05
    assert f"64x48 are read as {size[1]}x{size[0]}" in remark


@pytest.mark.parametrize("aspect", [None, Fraction(0), Fraction(1)])
def test_square_pixels_stay_as_they_are(aspect: Fraction | None) -> None:
    assert displayed_size(48, 64, aspect) == (48, 64)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_mirrored_video_is_mirrored_back(tmp_path: Path, degrees: int) -> None:
    image, remarks = only_frame(write(tmp_path / "a.mp4", corner(), flip=degrees))
    expected = np.fliplr(np.rot90(corner(), degrees // 90))
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() < 8
    assert remarks == ()


def test_of_several_video_streams_the_larger_is_read_and_said(tmp_path: Path) -> None:
    small, large = corner((48, 64)), np.full((96, 128, 3), 30, np.uint8)
    for order in ((small, large), (large, small), (small, small, large)):
        image, [remark] = only_frame(write(tmp_path / "a.mkv", *order))
        assert image.shape == (96, 128, 3)
        at = next(at for at, picture in enumerate(order) if picture is large)
        assert f"{len(order)} video streams: number {at} (128x96) is read" in remark


@pytest.mark.parametrize("field", ["tff", "bff"])
def test_interlaced_frames_are_said(tmp_path: Path, field: str) -> None:
    path = write(tmp_path / "a.mp4", corner(), options={"x264-params": f"interlaced=1:{field}=1"})
    _, [remark] = only_frame(path)
    assert remark.startswith("interlaced")


@pytest.mark.parametrize(("most", "white"), [(4000, 4095), (65535, 65535)])
def test_grey_video_of_16_bits_is_mapped_and_said(tmp_path: Path, most: int, white: int) -> None:
    numbers = np.linspace(0, most, 48 * 64).reshape(48, 64).astype(np.uint16)
    path = write(tmp_path / "a.mkv", numbers, codec="ffv1", pixels="gray16le", source="gray16le")
    image, [remark] = only_frame(path)
    assert (int(image.min()), int(image.max())) == pytest.approx((0, 255 * most / white), abs=1)
    assert f"{white:g} as white" in remark


PQ, HLG = 16, 18


def high_range(path: Path, transfer: int, *codes: float) -> Path:
    """A clip of BT.2020 with a stripe for each of the code values 0..1."""
    stripes = np.repeat(np.array(codes) * 65535, 12).astype(np.uint16)
    picture = np.broadcast_to(stripes[None, :, None], (48, len(stripes), 3)).copy()
    colours = {"color_trc": transfer, "color_primaries": 9, "colorspace": 9, "color_range": LIMITED}
    options = {"x265-params": "log-level=none"}
    return write(
        path, picture, codec="libx265", pixels="yuv420p10le", source="rgb48le", colours=colours, options=options
    )


@pytest.mark.parametrize(
    ("transfer", "name", "codes"), [(PQ, "PQ", (0.0, 0.3, 0.44, 0.58, 0.75)), (HLG, "HLG", (0.0, 0.3, 0.5, 0.75, 1.0))]
)
def test_high_dynamic_range_is_tone_mapped(tmp_path: Path, transfer: int, name: str, codes: tuple[float, ...]) -> None:
    image, [remark] = only_frame(high_range(tmp_path / "a.mp4", transfer, *codes))
    shown = [int(image[24, 12 * at + 6, 0]) for at in range(5)]
    assert shown == sorted(set(shown)), "brighter light is brighter on a screen, up to the peak"
    assert shown[0] < 5
    assert shown[3] > 180, "diffuse white is nearly white"
    assert shown[4] > 245
    assert f"high dynamic range ({name})" in remark


def test_what_standard_range_can_show_keeps_its_light() -> None:
    pq = TRANSFERS[PQ]
    codes = np.full((1, 1, 3), round(0.44 * 65535), np.uint16)
    light = float(pq.linear(0.44))
    assert light < 0.6
    shown = int(tone_mapped(codes, pq)[0, 0, 0])
    assert shown == pytest.approx(255 * (1.055 * light ** (1 / 2.4) - 0.055), abs=1)


@pytest.mark.parametrize("opaque", [True, False])
def test_transparency_of_a_gif_shows_white(tmp_path: Path, opaque: bool) -> None:
    rgba = np.zeros((24, 32, 4), np.uint8)
    rgba[:, 16:] = (200, 0, 0, 255)
    if opaque:
        rgba[:, :16] = (0, 0, 200, 255)
    frames = [PillowImage.fromarray(rgba), PillowImage.fromarray(rgba[::-1, ::1])]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2)

    image, remarks = only_frame(tmp_path / "a.gif")

    assert [*image[5, 25]] == [200, 0, 0]
    assert [*image[5, 5]] == ([0, 0, 200] if opaque else [255, 255, 255])
    assert remarks == (() if opaque else ("what is transparent is read as white",))


def joined(tmp_path: Path, *scenes: Any) -> Path:
    return write_clip(tmp_path / "scenes.mp4", 10 * len(scenes), lambda index: scenes[index // 10](index))


def test_a_cut_is_found_where_the_scene_changes(tmp_path: Path) -> None:
    def stripes(index: int) -> NDArray[np.uint8]:
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[:, index % 8 :: 16] = (0, 200, 80)
        picture[24:] = picture[24:] // 2 + 100
        return picture

    def patchwork(index: int) -> NDArray[np.uint8]:
        small = np.random.default_rng(3).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        return np.kron(small, np.ones((8, 8, 1), np.uint8))

    path = joined(tmp_path, red_square, stripes, patchwork)
    cuts = [frame.index for frame in read_video(path, VideoSettings(cuts="find")) if frame.cut]
    assert cuts == [10, 20]
    assert not any(frame.cut for frame in read_video(path))


@pytest.mark.parametrize("picture", [red_square, lambda index: np.clip(noise(0) // 2 + 12 * (index % 10), 0, 255)])
def test_motion_and_exposure_are_no_cuts(tmp_path: Path, picture: Any) -> None:
    path = write_clip(tmp_path / "a.mp4", 24, picture)
    assert not [frame.index for frame in read_video(path, VideoSettings(cuts="find")) if frame.cut]
