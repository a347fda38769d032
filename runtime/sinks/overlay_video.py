"""The overlay as an H.264 video that keeps the source's times and survives a crash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import cv2

from visrt.runtime.errors import OutputError
from visrt.runtime.results import FrameResult
from visrt.runtime.sinks.output import cannot_write
from visrt.runtime.sinks.overlay import STYLE, OverlayStyle, Trails, draw
from visrt.runtime.sources.source import Image

__all__ = ["OverlayVideo", "VideoCoding"]

TIME_BASE = Fraction(1, 90_000)
SMPTE170M = 6
LIMITED_RANGE = 1


@dataclass(frozen=True)
class VideoCoding:
    """Encoding of the overlay. crf: 0 (lossless) to 51. keyframe_s: what a crash may cost at most, in seconds."""

    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium"] = "veryfast"
    crf: int = 23
    keyframe_s: float = 2.0


CODING = VideoCoding()


class OverlayVideo:
    """A sink that draws each result over its frame. The first frame sets the size, and later ones are fitted inside."""

    def __init__(
        self,
        path: Path,
        classes: Sequence[str] = (),
        fps: float = 25.0,
        coding: VideoCoding = CODING,
        style: OverlayStyle = STYLE,
    ) -> None:
        """classes: their names, where the objects do not carry them. `style` may be replaced between frames."""
        self._path, self._classes, self._fps = path, classes, fps
        self._coding, self.style = coding, style
        self._trails = Trails(style.trail_frames)
        self._container: Any = None
        self._stream: Any = None

    def write(self, result: FrameResult, image: Image) -> None:
        self._trails.add(result)
        picture = draw(image, result, self._classes, self.style, self._trails)
        try:
            if self._container is None:
                self._begin(picture)
            self._encode(self._video_frame(picture, result.time_s))
        except (av.error.FFmpegError, OSError) as error:
            raise self._gave_up(error) from None

    def close(self) -> None:
        """Ends the file. After a failed write it only lets go of it: the fragments on disk are whole."""
        if self._container is None:
            return
        try:
            self._encode(None)
            self._container.close()
        except (av.error.FFmpegError, OSError) as error:
            raise self._gave_up(error) from None
        self._container = None

    def _begin(self, picture: Image) -> None:
        height, width = picture.shape[:2]
        # Fragments that are flushed, as a plain mp4 cut short by a crash holds not one frame.
        options = {"movflags": "+frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
        self._container = av.open(str(self._path), "w", format="mp4", options=options)
        rate = Fraction(self._fps).limit_denominator(1001)
        stream = self._container.add_stream("libx264", rate=rate)
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = TIME_BASE
        context.gop_size = max(1, round(self._fps * self._coding.keyframe_s))
        context.colorspace, context.color_range = SMPTE170M, LIMITED_RANGE
        # No B-frames: in a fragmented file their reordering would shift every timestamp.
        context.options = {"preset": self._coding.preset, "crf": str(self._coding.crf), "bf": "0"}
        self._stream = stream

    def _video_frame(self, picture: Image, time_s: float) -> Any:
        fitted = fit(picture, self._stream.height, self._stream.width)
        # Three times faster than swscale; it has the matrix of BT.601 only, which the file then declares.
        frame = av.VideoFrame.from_ndarray(cv2.cvtColor(fitted, cv2.COLOR_RGB2YUV_I420), format="yuv420p")
        frame.pts = round(time_s / TIME_BASE)
        frame.time_base = TIME_BASE
        return frame

    def _encode(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def _gave_up(self, error: OSError | av.error.FFmpegError) -> OutputError:
        container, self._container = self._container, None
        try:
            if container is not None:
                container.close()
        except (av.error.FFmpegError, OSError):
            pass  # the first error is the one to tell
        return cannot_write(self._path, error)


def fit(picture: Image, height: int, width: int) -> Image:
    """`picture` in a frame of height x width, top left: as it is where it fits, scaled down where it does not."""
    picture = _scaled_inside(picture, height, width)
    below, right = height - picture.shape[0], width - picture.shape[1]
    # One row or column is the padding of an odd size; a black line there would be seen.
    border = cv2.BORDER_REPLICATE if below <= 1 and right <= 1 else cv2.BORDER_CONSTANT
    fitted: Image = cv2.copyMakeBorder(picture, 0, below, 0, right, border) if below or right else picture
    return fitted


def _scaled_inside(picture: Image, height: int, width: int) -> Image:
    scale = min(height / picture.shape[0], width / picture.shape[1])
    if scale >= 1:
        return picture
    size = (max(1, int(picture.shape[1] * scale)), max(1, int(picture.shape[0] * scale)))
    scaled: Image = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return scaled
