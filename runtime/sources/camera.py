"""Local cameras, through OpenCV."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import cv2

from visrt.runtime.errors import SourceError
from visrt.runtime.sources.cuts import CutDetector
from visrt.runtime.sources.source import (
    ReportedSource,
    Selector,
    SourceInfo,
    SourceReport,
    VideoFrame,
    VideoSettings,
)

__all__ = ["CameraSource"]


class CameraSource(ReportedSource):
    """Camera `index` of this machine. Time runs from the first frame by the monotonic clock."""

    def __init__(self, index: int, settings: VideoSettings) -> None:
        self._settings = settings
        self._camera = cv2.VideoCapture(index)
        self._report = SourceReport()
        if not self._camera.isOpened():
            self._camera.release()
            raise SourceError(f"camera {index}: absent, busy or not permitted; expected the number of a free camera")
        self._info = SourceInfo(f"camera{index}", "camera", fps=self._property(cv2.CAP_PROP_FPS), live=True)

    def close(self) -> None:
        self._camera.release()

    def __iter__(self) -> Iterator[VideoFrame]:
        """Frames until the camera stops giving them, which is always an early end."""
        start_s: float | None = None
        selector, cuts, seen = Selector(self._settings), CutDetector(self._settings), 0
        while True:
            given, image = self._camera.read()
            if not given or image is None:
                return self._end()
            now_s = time.monotonic()
            start_s = now_s if start_s is None else start_s
            index, seen = seen, seen + 1
            if not selector.takes(index, now_s - start_s):
                if selector.over:
                    self._report = replace(self._report, end="complete")
                    return
                continue
            self._report = replace(self._report, decoded=self._report.decoded + 1)
            picture = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            yield VideoFrame(index, now_s - start_s, picture, cut=cuts.cuts(picture))

    def _end(self) -> None:
        if not self._report.decoded:
            raise SourceError(f"{self._info.name}: opened but gave no frame; close other programs that use it")
        reason = f"{self._info.name} stopped giving frames after {self._report.decoded}"
        self._report = replace(self._report, end="partial", reason=reason)

    def _property(self, key: int) -> float | None:
        value = float(self._camera.get(key))
        return value if value > 0 else None
