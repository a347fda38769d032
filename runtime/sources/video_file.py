"""Video files, read with PyAV: real timestamps, upright frames, damage counted, other files never opened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from visrt.runtime.errors import SourceError
from visrt.runtime.sources.source import Image, ReportedSource, SourceInfo, SourceReport, VideoFrame, VideoSettings

__all__ = ["Clock", "FileSource"]

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h261,h263,h264,hevc,vvc,av1,obu,ivf,flv,asf,"
    "ogg,mxf,nut,dv,rm,mjpeg,mpjpeg,yuv4mpegpipe,gif,apng,wtv,vc1,cavsvideo,dirac,dnxhd,evc,webp"
)
"""Formats that hold their own pictures; `protocol_whitelist=file` alone would let a playlist open other files."""

PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"[playlist]")
DEFAULT_FPS = 25.0


JUMP_S = 1.0
"""A step back larger than this is a new start of the stream's clock (two recordings in one file), not jitter."""

TICK_S = 0.001
"""The step by which a repeated or slightly backward timestamp moves the clock, in seconds."""


@dataclass(frozen=True)
class Clock:
    """A clock that only goes forward, whatever the timestamps of a stream do. time_s: of the last frame, None before
    it.

    step_s: frame time assumed where a timestamp is missing. offset_s: added to timestamps after jumps back.
    """

    step_s: float
    time_s: float | None = None
    offset_s: float = 0.0

    def at(self, stamp_s: float | None) -> Clock:
        """The clock at the next frame, whose timestamp is `stamp_s`, or None where the stream has none."""
        if self.time_s is None:
            return replace(self, time_s=max(0.0, stamp_s or 0.0))
        if stamp_s is None:
            return replace(self, time_s=self.time_s + self.step_s)
        now_s = stamp_s + self.offset_s
        if now_s > self.time_s:
            return replace(self, time_s=now_s)
        if self.time_s - now_s < JUMP_S:
            return replace(self, time_s=self.time_s + TICK_S)
        now_s = self.time_s + self.step_s
        return replace(self, time_s=now_s, offset_s=now_s - stamp_s)


class FileSource(ReportedSource):
    """One video file, decoded with FFmpeg's own threads."""

    def __init__(self, path: Path, settings: VideoSettings) -> None:
        self._path, self._settings = path, settings
        self._container = _open(path, settings)
        self._stream = _video_stream(self._container, path)
        _refuse_giant(self._stream, path, settings)
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.options = {"max_pixels": str(settings.max_pixels)}
        # One converter a source: FFmpeg 8's keeps megabytes of state, so one a frame would show in memory.
        self._converter = VideoReformatter()
        self._info = _info(self._container, self._stream, path)
        self._report = SourceReport()
        self._bad_in_a_row = 0
        self._discarded = 0
        self._to_show = 0

    def close(self) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[VideoFrame]:
        """Frames in order of display. Undecodable packets are counted as corrupt and skipped."""
        clock = Clock(step_s=1 / (self._info.fps or DEFAULT_FPS))
        first_s: float | None = None
        for frame in self._decoded():
            clock = clock.at(self._stamp_s(frame))
            first_s = clock.time_s if first_s is None else first_s
            if frame.is_corrupt and self._settings.damaged == "drop":
                self._count(corrupt=1)
                continue
            yield self._given(frame, clock)
        self._end(first_s, clock)

    def _given(self, frame: Any, clock: Clock) -> VideoFrame:
        index = self._report.decoded
        self._count(decoded=1, damaged=int(frame.is_corrupt))
        assert clock.time_s is not None
        return VideoFrame(index, clock.time_s, upright_rgb(frame, self._converter), bool(frame.is_corrupt))

    def _decoded(self) -> Iterator[Any]:
        for packet in self._packets():
            self._discarded += bool(packet.is_discard)
            self._to_show += bool(packet.size and not packet.is_discard)
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                self._count_bad_packet()
                if self._too_damaged():
                    return
                continue
            if frames:
                self._bad_in_a_row = 0
            yield from frames

    def _packets(self) -> Iterator[Any]:
        """Packets of the stream; a demuxing error ends PyAV's generator, not the file, so it is started again."""
        packets = self._container.demux(self._stream)
        while not self._too_damaged():
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError:
                self._count_bad_packet()
                packets = self._container.demux(self._stream)
                continue
            yield packet

    def _stamp_s(self, frame: Any) -> float | None:
        """Presentation time counted from the start of the file, which a transport stream does not begin at zero."""
        if frame.time is None:
            return None
        start_s: float = (self._container.start_time or 0) / av.time_base
        return float(frame.time) - start_s

    def _count_bad_packet(self) -> None:
        self._bad_in_a_row += 1
        self._count(corrupt=1)

    def _too_damaged(self) -> bool:
        return self._bad_in_a_row > self._settings.max_bad_packets

    def _count(self, decoded: int = 0, damaged: int = 0, corrupt: int = 0) -> None:
        now = self._report
        self._report = replace(
            now, decoded=now.decoded + decoded, damaged=now.damaged + damaged, corrupt=now.corrupt + corrupt
        )

    def _count_swallowed(self) -> None:
        """Frames that a decoder swallowed without reporting damage.

        Only where a count is declared, as then a packet is a frame; VP8, for one, has packets that are never shown.
        """
        report = self._report
        if self._info.frames and (report.corrupt or report.damaged):
            self._count(corrupt=max(0, self._to_show - report.decoded - report.corrupt))

    def _end(self, first_s: float | None, clock: Clock) -> None:
        self._count_swallowed()
        reasons = [reason for reason in (self._damage(), self._shortfall(first_s, clock)) if reason]
        if not self._report.decoded:
            raise SourceError(
                f"{self._path}: no frame could be decoded ({'; '.join(reasons) or 'it holds no frames'}); "
                "expected a video that plays: check it with a player or copy it again"
            )
        self._report = replace(self._report, end="partial" if reasons else "complete", reason="; ".join(reasons))

    def _damage(self) -> str:
        report = self._report
        if self._too_damaged():
            return f"stopped after {self._bad_in_a_row} undecodable packets in a row"
        if report.corrupt or report.damaged:
            return f"damaged: {report.corrupt} frames lost, {report.damaged} flagged by the decoder"
        return ""

    def _shortfall(self, first_s: float | None, clock: Clock) -> str:
        """A cut file ends cleanly: only the declared count, and time missing at one end, give it away.

        The count alone would accuse old AVI files, which declare the repeats of a frame as frames.
        """
        report, declared = self._report, self._info.frames
        got = report.decoded + report.corrupt
        if not declared or got >= declared - self._discarded:
            return ""
        missing_s = self._missing_s(first_s, clock)
        if missing_s is not None and missing_s <= 2 * clock.step_s:
            return ""
        return f"short: decoded {report.decoded} of {declared}"

    def _missing_s(self, first_s: float | None, clock: Clock) -> float | None:
        """Seconds of the declared duration before the first or after the last frame; None where it is not declared."""
        if self._info.duration_s is None or first_s is None or clock.time_s is None:
            return None
        return max(first_s, self._info.duration_s - clock.time_s - clock.step_s)


def upright_rgb(frame: Any, converter: VideoReformatter) -> Image:
    """A decoded frame as RGB [H, W, 3], turned as its display matrix says (degrees counter-clockwise, as rot90)."""
    image: Image = np.asarray(converter.reformat(frame, format="rgb24").to_ndarray(), np.uint8)
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image


def _open(path: Path, settings: VideoSettings) -> Any:
    head = _head(path)
    _refuse_playlist(path, head, settings)
    options = {"protocol_whitelist": "file", "max_pixels": str(settings.max_pixels)}
    if settings.playlists == "refuse":
        options["format_whitelist"] = FORMATS
    try:
        return av.open(f"file:{path.absolute()}", options=options)
    except av.error.FFmpegError as error:
        raise SourceError(f"{path}: not a readable video: {_hint(path, head, error)}") from None


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


def _video_stream(container: Any, path: Path) -> Any:
    pictures = [s for s in container.streams.video if not _is_cover(s)]
    if not pictures:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        container.close()
        raise SourceError(f"{path}: no video stream, it holds {kinds}; expected a video")
    if pictures[0].codec_context is None:
        container.close()
        raise SourceError(
            f"{path}: no decoder for its codec in this build of FFmpeg (PyAV {av.__version__}); "
            "convert it to H.264, for instance `ffmpeg -i IN -c:v libx264 OUT.mp4`"
        )
    return pictures[0]


def _is_cover(stream: Any) -> bool:
    """The cover picture of a song is stored as a video stream of one frame."""
    disposition = getattr(stream, "disposition", None)
    return bool(disposition is not None and getattr(disposition, "attached_pic", 0) & int(disposition))


def _refuse_giant(stream: Any, path: Path, settings: VideoSettings) -> None:
    height, width = stream.height or 0, stream.width or 0
    if height * width > settings.max_pixels:
        raise SourceError(
            f"{path}: frames of {width}x{height} pixels, expected at most {settings.max_pixels} pixels (max_pixels); "
            "scale the video down first"
        )


def _info(container: Any, stream: Any, path: Path) -> SourceInfo:
    rate = stream.average_rate or stream.guessed_rate
    fps = float(rate) if rate and 0 < rate < 1000 else None
    return SourceInfo(
        name=path.name,
        kind="file",
        frames=stream.frames if stream.frames > 0 else None,
        fps=fps,
        duration_s=_duration_s(container, stream),
        size=(stream.height, stream.width) if stream.height and stream.width else None,
    )


def _duration_s(container: Any, stream: Any) -> float | None:
    if stream.duration is not None and stream.duration > 0 and stream.time_base:
        return float(stream.duration) * float(stream.time_base)
    if container.duration is not None and container.duration > 0:
        return float(container.duration / av.time_base)
    return None
