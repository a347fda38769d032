"""Files of video, opened: other files are never opened, what is none is refused with a hint, one stream is chosen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import av.error

from visrt.runtime.errors import SourceError
from visrt.runtime.sources.displayed import displayed_size
from visrt.runtime.sources.source import VideoSettings
from visrt.runtime.sources.standard_input import Pipe

__all__ = ["MOOV_IN_A_PIPE", "OLDEST_PYAV", "open_container", "refuse_giant", "video_stream", "which_of"]

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h261,h263,h264,hevc,vvc,av1,obu,ivf,flv,asf,"
    "ogg,mxf,nut,dv,rm,mjpeg,mpjpeg,yuv4mpegpipe,gif,apng,wtv,vc1,cavsvideo,dirac,dnxhd,evc,webp"
)
"""Formats that hold their own pictures; `protocol_whitelist=file` alone would let a playlist open other files."""

MOOV_IN_A_PIPE = (
    "the index of an mp4 may lie at its end, which a pipe cannot reach; pipe matroska or mpegts, or give the file"
)
PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"[playlist]")
OLDEST_PYAV = "17.1.0"
"""Older ones lack what tells how a frame is displayed, and convert BT.709 by the matrix of BT.601."""


def open_container(path: Path, settings: VideoSettings, pipe: Pipe | None) -> Any:
    if _release(av.__version__) < _release(OLDEST_PYAV):
        raise SourceError(
            f"{path}: PyAV {av.__version__} is too old to read videos as they are displayed; run "
            f"`pip install 'av>={OLDEST_PYAV}'`"
        )
    head = pipe.head if pipe else _head(path)
    _refuse_playlist(path, head, settings)
    options = {"protocol_whitelist": "file", "max_pixels": str(settings.max_pixels)}
    if settings.playlists == "refuse":
        options["format_whitelist"] = FORMATS
    try:
        return av.open(pipe or f"file:{path.absolute()}", options=options)
    except av.error.FFmpegError as error:
        raise SourceError(f"{path}: not a readable video: {_hint(path, head, error)}") from None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


def _refuse_playlist(path: Path, head: bytes, settings: VideoSettings) -> None:
    if settings.playlists == "refuse" and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(PLAYLISTS):
        raise SourceError(
            f"{path}: a playlist, which may open other files and addresses; expected one video file: "
            "give the videos themselves, or --allow-playlists if you trust it"
        )


def _hint(path: Path, head: bytes, error: Exception) -> str:
    if not head:
        return "the file is empty; copy or record it again"
    if head.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer; run `git lfs pull`"
    if head[4:8] == b"ftyp":
        return "its index (moov) is missing, the recording was cut; re-mux it from the original or repair it"
    if _is_text(head):
        return "it is text; expected a video such as mp4, mkv, avi or ts"
    return f"FFmpeg says {getattr(error, 'strerror', None) or error}; expected a video such as mp4, mkv, avi or ts"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8", errors="strict")
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char.isspace() for char in text)


def video_stream(container: Any, path: Path) -> tuple[Any, list[Any]]:
    """The video stream of the most pixels, the first of equals, and the others; covers are none."""
    pictures = [s for s in container.streams.video if not _is_cover(s)]
    if not pictures:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        container.close()
        raise SourceError(f"{path}: no video stream, it holds {kinds}; expected a video")
    decodable = [stream for stream in pictures if stream.codec_context is not None]
    if not decodable:
        container.close()
        raise SourceError(
            f"{path}: no decoder for its codec in this build of FFmpeg (PyAV {av.__version__}); "
            "convert it to H.264, for instance `ffmpeg -i IN -c:v libx264 OUT.mp4`"
        )
    largest = max(decodable, key=_pixels)
    return largest, [stream for stream in pictures if stream is not largest]


def _pixels(stream: Any) -> int:
    return int(stream.height or 0) * int(stream.width or 0)


def which_of(stream: Any, others: Sequence[Any]) -> str:
    """The remark for a file of several video streams."""
    left_out = ", ".join(
        f"{other.index} ({other.width}x{other.height})" if other.codec_context else f"{other.index} (no decoder)"
        for other in others
    )
    return (
        f"{len(others) + 1} video streams: number {stream.index} ({stream.width}x{stream.height}) is read, "
        f"{left_out} not"
    )


def _is_cover(stream: Any) -> bool:
    """The cover picture of a song is stored as a video stream of one frame."""
    disposition = getattr(stream, "disposition", None)
    cover = getattr(type(disposition), "attached_pic", None)
    # Not by int(): before PyAV 17.1 a disposition is a plain Flag.
    return bool(disposition is not None and cover is not None and disposition & cover)


def refuse_giant(stream: Any, aspect: Any, path: Path, settings: VideoSettings) -> None:
    height, width = displayed_size(stream.height or 0, stream.width or 0, aspect)
    if height * width > settings.max_pixels:
        raise SourceError(
            f"{path}: frames of {width}x{height} pixels, expected at most {settings.max_pixels} pixels (max_pixels); "
            "scale the video down first"
        )
