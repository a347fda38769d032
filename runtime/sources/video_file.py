"""Video files, read with PyAV: real timestamps, frames as displayed, damage counted, other files never opened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import av.error

from visrt.runtime.clock import Clock
from visrt.runtime.errors import SourceError, UsageError
from visrt.runtime.sources.containers import MOOV_IN_A_PIPE, open_container, refuse_giant, video_stream, which_of
from visrt.runtime.sources.cuts import CutDetector
from visrt.runtime.sources.displayed import Displayed, displayed_size
from visrt.runtime.sources.source import (
    ReportedSource,
    Selector,
    SourceInfo,
    SourceReport,
    VideoFrame,
    VideoSettings,
)
from visrt.runtime.sources.standard_input import Pipe

__all__ = ["FileSource"]

DEFAULT_FPS = 25.0


class FileSource(ReportedSource):
    """One video file, decoded with FFmpeg's own threads."""

    def __init__(self, path: Path, settings: VideoSettings, pipe: Pipe | None = None) -> None:
        """`pipe` is read in place of the file; `path` then is what messages call it."""
        self._path, self._settings, self._pipe = path, settings, pipe
        self._container = open_container(path, settings, pipe)
        self._stream, others = video_stream(self._container, path)
        aspect = self._stream.sample_aspect_ratio
        refuse_giant(self._stream, aspect, path, settings)
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.options = {"max_pixels": str(settings.max_pixels)}
        self._displayed = Displayed(aspect, self._remark_of_a_part(), settings.value_range)
        self._info = _info(self._container, self._stream, path)
        self._report = SourceReport()
        if others:
            self._remark(which_of(self._stream, others))
        self._read = 0
        self._bad_in_a_row = 0
        self._discarded = 0
        self._to_show = 0

    def close(self) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[VideoFrame]:
        """Frames in order of display. Undecodable packets are counted as corrupt and skipped."""
        clock = Clock(step_s=1 / (self._info.fps or DEFAULT_FPS))
        first_s: float | None = None
        selector, cuts = Selector(self._settings), CutDetector(self._settings)
        for frame in self._decoded():
            clock = clock.at(self._stamp_s(frame))
            first_s = clock.time_s if first_s is None else first_s
            if frame.is_corrupt and self._settings.damaged == "drop":
                self._count(corrupt=1)
                continue
            index, now_s = self._read, clock.time_s or 0.0
            self._read += 1
            if selector.takes(index, now_s):
                self._count(decoded=1, damaged=int(frame.is_corrupt))
                image = self._displayed.picture(frame)
                yield VideoFrame(index, now_s, image, bool(frame.is_corrupt), cuts.cuts(image))
            elif selector.over:
                break
        self._end(first_s, clock, selector)

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
            self._count(corrupt=max(0, self._to_show - self._read - report.corrupt))

    def _end(self, first_s: float | None, clock: Clock, selector: Selector) -> None:
        """`selector` may have ended it before the file does; what is missing after that is not missed."""
        if not selector.over:
            self._count_swallowed()
        shortfall = "" if selector.over else self._shortfall(first_s, clock)
        reasons = [reason for reason in (self._damage(), shortfall) if reason]
        if self._read and not self._report.decoded:
            raise UsageError(
                f"{self._path}: it ends after {self._read} frames and {clock.time_s or 0:.1f} s, before the start, "
                f"{self._settings.start}; give an earlier one"
            )
        if not self._report.decoded and self._pipe and self._pipe.head[4:8] == b"ftyp":
            raise SourceError(f"{self._path}: no frame could be decoded: {MOOV_IN_A_PIPE}")
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
        got = self._read + report.corrupt
        if not declared or got >= declared - self._discarded:
            return ""
        missing_s = self._missing_s(first_s, clock)
        if missing_s is not None and missing_s <= 2 * clock.step_s:
            return ""
        return f"short: decoded {self._read} of {declared}"

    def _missing_s(self, first_s: float | None, clock: Clock) -> float | None:
        """Seconds of the declared duration before the first or after the last frame; None where it is not declared."""
        if self._info.duration_s is None or first_s is None or clock.time_s is None:
            return None
        return max(first_s, self._info.duration_s - clock.time_s - clock.step_s)


def _info(container: Any, stream: Any, path: Path) -> SourceInfo:
    rate = stream.average_rate or stream.guessed_rate
    fps = float(rate) if rate and 0 < rate < 1000 else None
    aspect = stream.sample_aspect_ratio
    return SourceInfo(
        name="stdin" if path == Path("-") else path.name,
        kind="file",
        frames=stream.frames if stream.frames > 0 else None,
        fps=fps,
        duration_s=_duration_s(container, stream),
        size=displayed_size(stream.height, stream.width, aspect) if stream.height and stream.width else None,
        pixel_aspect=float(aspect or 1),
    )


def _duration_s(container: Any, stream: Any) -> float | None:
    if stream.duration is not None and stream.duration > 0 and stream.time_base:
        return float(stream.duration) * float(stream.time_base)
    if container.duration is not None and container.duration > 0:
        return float(container.duration / av.time_base)
    return None
