"""Video in: whatever a source does, its frames are upright, in order, in time, and all accounted for."""

from __future__ import annotations

import gc
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PillowImage
from written_clips import FPS, noise, red_square, write_clip, write_sound

from visrt.runtime.clock import Clock
from visrt.runtime.errors import SourceError, UsageError
from visrt.runtime.sources import containers, video_file
from visrt.runtime.sources.displayed import Displayed
from visrt.runtime.sources.source import Source, VideoFrame, VideoSettings
from visrt.runtime.sources.video import Camera, Images, VideoFile, find_sources, open_source, read_video


def read_all(source: Source) -> list[VideoFrame]:
    frames = list(source)
    source.close()
    return frames


def close_to(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    """Equal but for what H.264 loses."""
    return a.shape == b.shape and float(np.abs(a.astype(int) - b).mean()) < 6


def test_every_frame_of_a_file_is_given_once_in_order_with_its_time(tmp_path: Path) -> None:
    source = open_source(write_clip(tmp_path / "a.mp4", 30))
    frames = read_all(source)
    assert [frame.index for frame in frames] == list(range(30))
    assert [frame.time_s for frame in frames] == pytest.approx([index / FPS for index in range(30)], abs=1e-3)
    assert all(close_to(frame.image, red_square(frame.index)) for frame in frames)
    assert (source.info.frames, source.info.size, source.report.end) == (30, (48, 64), "complete")


def test_frames_and_decoders_are_freed_at_once_and_not_when_python_looks_for_cycles(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 8)
    (tmp_path / "pictures").mkdir()
    for name in ("1.png", "2.png"):
        PillowImage.new("RGB", (8, 6)).save(tmp_path / "pictures" / name)
    for path in (tmp_path / "clip.mp4", tmp_path / "pictures"):
        gc.collect()
        gc.disable()
        try:
            assert len(list(read_video(path))) in (8, 2)
            # The one frame of a file that was asked for its side data, with these.
            assert gc.collect() <= 5, f"{path.name}: what refers to itself holds frames and decoders"
        finally:
            gc.enable()


def test_read_video_gives_the_same_frames_as_the_source(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 5)
    again = read_all(open_source(path))
    for one, other in zip(read_video(path), again, strict=True):
        assert np.array_equal(one.image, other.image)


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".h264"])
def test_other_containers_start_at_time_zero_even_without_timestamps_or_count(tmp_path: Path, suffix: str) -> None:
    source = open_source(write_clip(tmp_path / f"a{suffix}", 12))
    times = [frame.time_s for frame in read_all(source)]
    assert len(times) == 12
    assert times[0] == 0
    assert all(later > earlier for earlier, later in pairwise(times))
    assert source.report.end == "complete"


def test_variable_frame_rate_keeps_its_timestamps(tmp_path: Path) -> None:
    times = [0, 0.1, 0.15, 0.9, 1.0, 2.5]
    frames = read_all(open_source(write_clip(tmp_path / "a.mp4", 6, times_s=times)))
    assert [frame.time_s for frame in frames] == pytest.approx(times, abs=2e-3)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotated_video_comes_upright(tmp_path: Path, rotation: int) -> None:
    frame = next(iter(read_video(write_clip(tmp_path / "a.mp4", 2, rotation=rotation))))
    assert close_to(frame.image, np.rot90(red_square(0), rotation // 90))
    assert frame.image.flags.c_contiguous


def test_a_size_change_within_the_stream_is_passed_on(tmp_path: Path) -> None:
    small = write_clip(tmp_path / "1.ts", 10)
    large = write_clip(tmp_path / "2.ts", 10, picture=lambda index: red_square(index, (96, 80)))
    (tmp_path / "both.ts").write_bytes(small.read_bytes() + large.read_bytes())
    frames = read_all(open_source(tmp_path / "both.ts"))
    sizes = [frame.image.shape[:2] for frame in frames]
    assert (sizes[0], sizes[-1]) == ((48, 64), (96, 80))
    assert np.all(np.diff([frame.time_s for frame in frames]) > 0), "time went back where the second part begins"


def test_a_truncated_file_is_partial_and_says_how_much_is_missing(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "a.mp4", 60, noise, movflags="+faststart").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    source = open_source(tmp_path / "cut.mp4")
    decoded = len(read_all(source))
    assert 20 < decoded < 40
    assert source.report.end == "partial"
    assert source.report.reason.endswith(f"short: decoded {decoded} of 60")


def test_damage_in_the_middle_is_skipped_and_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    whole = bytearray(write_clip(tmp_path / "a.mp4", 60, noise, movflags="+faststart").read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 60_000] = np.random.default_rng(0).bytes(60_000)
    (tmp_path / "bad.mp4").write_bytes(whole)
    source = open_source(tmp_path / "bad.mp4")
    frames = read_all(source)
    report = source.report
    assert report.corrupt + report.damaged > 0
    assert report.decoded + report.corrupt == 60
    assert frames[-1].time_s == pytest.approx(5.9, abs=0.01), "the frames after the damage were lost"
    assert report.end == "partial"


def test_flagged_frames_can_be_dropped_instead_of_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 10)

    class Flagged:
        def __init__(self, frame: Any) -> None:
            self.frame, self.is_corrupt = frame, frame.pts % 1024 == 0 and frame.time > 0.5

        def __getattr__(self, name: str) -> Any:
            return getattr(self.frame, name)

    decoded, picture = video_file.FileSource._decoded, Displayed.picture
    monkeypatch.setattr(Displayed, "picture", lambda self, flagged: picture(self, flagged.frame))
    monkeypatch.setattr(video_file.FileSource, "_decoded", lambda self: map(Flagged, decoded(self)))
    kept, dropped = open_source(path), open_source(path, VideoSettings(damaged="drop"))
    assert [frame.corrupt for frame in read_all(kept)] == [False] * 6 + [True] * 4
    assert (kept.report.decoded, kept.report.damaged, kept.report.corrupt) == (10, 4, 0)
    assert len(read_all(dropped)) == 6
    assert (dropped.report.decoded, dropped.report.corrupt) == (6, 4)


def test_too_many_bad_packets_in_a_row_stop_the_source(tmp_path: Path) -> None:
    whole = bytearray(write_clip(tmp_path / "a.mp4", 60, noise, movflags="+faststart").read_bytes())
    half = len(whole) // 2
    whole[half:] = bytes(len(whole) - half)
    (tmp_path / "bad.mp4").write_bytes(whole)
    source = open_source(tmp_path / "bad.mp4", VideoSettings(max_bad_packets=5))
    assert 20 < len(read_all(source)) < 40
    assert source.report.reason.startswith("stopped after 6 undecodable packets in a row")


def test_a_file_of_which_nothing_decodes_is_an_error(tmp_path: Path) -> None:
    whole = bytearray(write_clip(tmp_path / "a.mp4", 20, noise, movflags="+faststart").read_bytes())
    data = whole.index(b"mdat") + 4
    whole[data:] = bytes(len(whole) - data)
    (tmp_path / "bad.mp4").write_bytes(whole)
    with pytest.raises(SourceError, match=r"bad\.mp4: no frame could be decoded"):
        read_all(open_source(tmp_path / "bad.mp4"))


def unreadable(folder: Path) -> dict[str, bytes]:
    whole = write_clip(folder / "whole.mp4", 20).read_bytes()
    assert whole.index(b"moov") > whole.index(b"mdat")
    return {
        "empty": b"",
        "it is text": b"not a video\n" * 20,
        "FFmpeg says": np.random.default_rng(3).bytes(5000),
        "moov": whole[: whole.index(b"moov") - 8],
        "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }


@pytest.mark.parametrize("hint", ["empty", "it is text", "FFmpeg says", "moov", "git lfs pull"])
def test_what_is_no_video_is_refused_with_a_hint(tmp_path: Path, hint: str) -> None:
    path = tmp_path / "named.mp4"
    path.write_bytes(unreadable(tmp_path)[hint])
    with pytest.raises(SourceError, match=hint) as refused:
        open_source(path)
    assert "named.mp4" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_without_pictures_is_refused_and_its_streams_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no video stream, it holds audio"):
        open_source(write_sound(tmp_path / "a.m4a"))


def test_a_missing_decoder_is_told(tmp_path: Path) -> None:
    stream = SimpleNamespace(codec_context=None, disposition=None, type="video")
    container = SimpleNamespace(streams=SimpleNamespace(video=[stream]), close=lambda: None)
    with pytest.raises(SourceError, match="no decoder"):
        containers.video_stream(container, tmp_path / "a.mp4")


@pytest.mark.parametrize("version", ["14.2.0", "17.0.1", "16.1.0rc2"])
def test_a_pyav_that_is_too_old_is_told_with_what_to_install(
    tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / "a.mp4", 1)
    monkeypatch.setattr(av, "__version__", version)
    with pytest.raises(SourceError, match=rf"PyAV {version} is too old.*pip install 'av>=17.1.0'"):
        open_source(path)


def test_giant_frames_are_refused_before_a_frame_is_decoded(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 2)
    with pytest.raises(SourceError, match=r"64x48 pixels, expected at most 3071"):
        open_source(path, VideoSettings(max_pixels=64 * 48 - 1))
    assert len(read_all(open_source(path, VideoSettings(max_pixels=64 * 48 * 4)))) == 2


def test_frames_that_become_giant_later_are_not_allocated(tmp_path: Path) -> None:
    small = write_clip(tmp_path / "1.ts", 10)
    large = write_clip(tmp_path / "2.ts", 10, picture=lambda index: red_square(index, (480, 640)))
    (tmp_path / "both.ts").write_bytes(small.read_bytes() + large.read_bytes())
    source = open_source(tmp_path / "both.ts", VideoSettings(max_pixels=100_000))
    assert {frame.image.shape for frame in read_all(source)} == {(48, 64, 3)}
    assert source.report.end == "partial"


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{child}\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize("name", ["evil.m3u8", "evil.mp4"])
@pytest.mark.parametrize("guard", ["head and formats", "formats alone"])
def test_a_playlist_opens_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, guard: str) -> None:
    child = write_clip(tmp_path / "secret.ts", 5)
    (tmp_path / name).write_text(PLAYLIST.format(child=f"file://{child}"))
    if guard == "formats alone":
        monkeypatch.setattr(containers, "_refuse_playlist", lambda *given: None)
    with pytest.raises(SourceError):
        open_source(tmp_path / name)


def test_a_playlist_reaches_no_server(tmp_path: Path) -> None:
    hits: list[str] = []

    class Canary(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *values: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Canary)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    evil = tmp_path / "evil.m3u8"
    evil.write_text(PLAYLIST.format(child=f"http://127.0.0.1:{server.server_port}/child.ts"))
    try:
        for settings in (VideoSettings(), VideoSettings(playlists="allow")):
            with pytest.raises(SourceError):
                read_all(open_source(evil, settings))
    finally:
        server.shutdown()
        server.server_close()
    assert not hits


def test_ffconcat_is_refused_under_any_name_and_read_when_allowed(tmp_path: Path) -> None:
    write_clip(tmp_path / "part.mp4", 5)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile part.mp4\n")
    with pytest.raises(SourceError, match="playlist"):
        open_source(tmp_path / "list.mp4")
    assert len(read_all(open_source(tmp_path / "list.mp4", VideoSettings(playlists="allow")))) == 5


def write_image(path: Path, value: int, size: tuple[int, int] = (8, 6)) -> None:
    PillowImage.new("RGB", size, (value, 0, 0)).save(path)


def test_images_come_in_natural_order_with_any_name_and_size(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_image(tmp_path / f"Bild_ü{number}.png", number, size=(8 + number, 6))
    (tmp_path / "notes.txt").write_text("not a frame")
    source = open_source(tmp_path, VideoSettings(image_fps=4))
    frames = read_all(source)
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [1, 2, 10]
    assert [frame.image.shape[1] for frame in frames] == [9, 10, 18]
    assert [frame.time_s for frame in frames] == [0, 0.25, 0.5]
    assert source.report.end == "complete"


def test_unreadable_images_are_skipped_counted_and_leave_a_gap_in_time(tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / f"{number}.png", number)
    (tmp_path / "1.png").write_text("broken")
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    source = open_source(tmp_path)
    assert [(frame.index, round(frame.time_s, 3)) for frame in read_all(source)] == [(0, 0), (1, 0.3)]
    assert (source.report.decoded, source.report.skipped, source.report.end) == (2, 2, "partial")
    assert "1.png" in source.report.reason


def test_an_image_bomb_is_not_decoded(tmp_path: Path) -> None:
    write_image(tmp_path / "bomb.png", 1, size=(1000, 1000))
    with pytest.raises(SourceError, match="1000x1000"):
        read_all(open_source(tmp_path / "bomb.png", VideoSettings(max_pixels=999_999)))
    PillowImage.new("1", (16_000, 16_000)).save(tmp_path / "huge.png")
    with pytest.raises(SourceError, match=r"huge\.png"):
        read_all(open_source(tmp_path / "huge.png"))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    PillowImage.fromarray(np.full((4, 5), 0x8000, np.uint16)).save(tmp_path / "grey.png")
    [frame] = read_all(open_source(tmp_path / "grey.png"))
    assert frame.image.shape == (4, 5, 3)
    assert set(frame.image.ravel()) == {128}


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = PillowImage.new("RGB", (8, 6))
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    [frame] = read_all(open_source(tmp_path / "a.jpg"))
    assert frame.image.shape == (8, 6, 3)


def test_a_glob_of_images_is_one_video_and_of_videos_several(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        write_image(tmp_path / f"{number}.png", number)
        write_clip(tmp_path / f"{number}.mp4", 1)
    [images] = find_sources(str(tmp_path / "*.png"))
    assert isinstance(images, Images)
    assert [path.stem for path in images.paths] == ["1", "2", "10"]
    videos = find_sources(str(tmp_path / "*.mp4"))
    assert [video.name for video in videos] == ["1", "2", "10"]
    assert all(isinstance(video, VideoFile) for video in videos)
    with pytest.raises(UsageError, match="means 3 videos"):
        open_source(str(tmp_path / "*.mp4"))


def test_a_path_that_leads_nowhere_is_a_usage_error_that_names_it(tmp_path: Path) -> None:
    for wrong in (tmp_path / "missing.mp4", tmp_path, f"{tmp_path}/*.mp4"):
        with pytest.raises(UsageError) as refused:
            find_sources(wrong)
        assert str(wrong) in str(refused.value)
        assert refused.value.exit_code == 2


def test_an_address_is_refused_without_repeating_its_password() -> None:
    with pytest.raises(UsageError) as refused:
        find_sources("rtsp://user:secret@camera/1")
    assert "secret" not in str(refused.value)


class FakeCamera:
    """Three blue frames, then nothing, as from a camera that was unplugged."""

    opened = True
    released = False

    def __init__(self, index: int) -> None:
        self.left = 3

    def isOpened(self) -> bool:  # noqa: N802
        return self.opened

    def get(self, key: int) -> float:
        return 15.0 if key == cv2.CAP_PROP_FPS else 0.0

    def read(self) -> tuple[bool, Any]:
        self.left -= 1
        blue = np.zeros((4, 6, 3), np.uint8)
        blue[..., 0] = 200
        return (True, blue) if self.left >= 0 else (False, None)

    def release(self) -> None:
        type(self).released = True


def test_a_camera_gives_rgb_and_its_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera)
    assert find_sources("0") == (Camera(0),)
    source = open_source("0")
    frames = read_all(source)
    assert len(frames) == 3
    assert tuple(frames[0].image[0, 0]) == (0, 0, 200)
    assert (source.info.live, source.info.fps, source.report.end) == (True, 15.0, "partial")
    assert "stopped giving frames" in source.report.reason
    assert FakeCamera.released


def test_an_absent_camera_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", type("Absent", (FakeCamera,), {"opened": False}))
    with pytest.raises(SourceError, match="camera 7: absent"):
        open_source("7")


def times_of(clock: Clock, stamps_s: list[float | None]) -> list[float]:
    times = []
    for stamp_s in stamps_s:
        clock = clock.at(stamp_s)
        assert clock.time_s is not None
        times.append(clock.time_s)
    return times


stamps = st.lists(st.none() | st.floats(-1e5, 1e5, allow_nan=False), max_size=50)


@given(stamps)
def test_the_clock_only_goes_forward_whatever_the_timestamps_do(stamps_s: list[float | None]) -> None:
    times = times_of(Clock(step_s=0.04), stamps_s)
    assert all(later > earlier for earlier, later in pairwise(times))


def test_the_clock_follows_sound_timestamps_and_bridges_a_restart() -> None:
    times = times_of(Clock(step_s=0.1), [0.0, 0.1, 0.3, 0.3, 0.4, None, 0.6])
    assert times[:3] == [0.0, 0.1, 0.3], "sound timestamps are kept"
    assert times[4] == 0.4, "a repeated timestamp does not shift what follows"
    assert times[6] == 0.6
    restarted = times_of(Clock(0.1), [100.0, 0.0, 0.25])
    assert restarted == pytest.approx([100.0, 100.1, 100.35]), "after a restart the spacing is the new recording's"


def test_the_log_level_of_ffmpeg_is_never_set() -> None:
    """It hung runs with threaded decoding that were closed early."""
    folder = Path(video_file.__file__).resolve().parents[1]
    assert not [path.name for path in folder.rglob("*.py") if "set_level" in path.read_text()]
    assert av.logging.get_level() is None
