"""visrt: video instance segmentation models from PyTorch training to a running deployment.

>>> import visrt
>>> for result in visrt.track("clip.mp4", classes="person"):
...     print(result.time_s, [(found.id, found.name, found.score) for found in result.objects])

Names are imported when they are first used: `import visrt` loads no heavy library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visrt.runtime.bundles.bundle import Bundle, open_bundle
    from visrt.runtime.errors import (
        BundleError,
        EngineError,
        OutputError,
        SettingsError,
        SourceError,
        UsageError,
        VisrtError,
    )
    from visrt.runtime.pipeline import Job, Pipeline, PipelineSettings
    from visrt.runtime.results import FrameResult, SessionEvents, TrackedObject
    from visrt.runtime.session import SavedStream, Session, SessionSettings
    from visrt.runtime.sinks.files_of_frames import Crops, MaskPictures, MotRows
    from visrt.runtime.sinks.journal import Journal, read_journal
    from visrt.runtime.sinks.line_count import Line, LineCount, line
    from visrt.runtime.sinks.output import Sink
    from visrt.runtime.sinks.overlay import OverlayStyle, Trails, colour_of, draw
    from visrt.runtime.sinks.overlay_video import OverlayVideo
    from visrt.runtime.sources.source import (
        Moment,
        Source,
        SourceInfo,
        SourceReport,
        VideoFrame,
        VideoSettings,
        moment,
        raw_format,
    )
    from visrt.runtime.sources.video import open_source, read_video
    from visrt.runtime.tracking import Tracking, track, track_async

    __version__: str

_HOMES = {
    "visrt.runtime.bundles.bundle": ("Bundle", "open_bundle"),
    "visrt.runtime.errors": (
        *("BundleError", "EngineError", "OutputError", "SettingsError", "SourceError", "UsageError", "VisrtError"),
    ),
    "visrt.runtime.pipeline": ("Job", "Pipeline", "PipelineSettings"),
    "visrt.runtime.results": ("FrameResult", "SessionEvents", "TrackedObject"),
    "visrt.runtime.session": ("SavedStream", "Session", "SessionSettings"),
    "visrt.runtime.sinks.files_of_frames": ("Crops", "MaskPictures", "MotRows"),
    "visrt.runtime.sinks.journal": ("Journal", "read_journal"),
    "visrt.runtime.sinks.line_count": ("Line", "LineCount", "line"),
    "visrt.runtime.sinks.output": ("Sink",),
    "visrt.runtime.sinks.overlay": ("OverlayStyle", "Trails", "colour_of", "draw"),
    "visrt.runtime.sinks.overlay_video": ("OverlayVideo",),
    "visrt.runtime.sources.source": (
        *("Moment", "Source", "SourceInfo", "SourceReport", "VideoFrame", "VideoSettings", "moment", "raw_format"),
    ),
    "visrt.runtime.sources.video": ("open_source", "read_video"),
    "visrt.runtime.tracking": ("Tracking", "track", "track_async"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Bundle",
    "BundleError",
    "Crops",
    "EngineError",
    "FrameResult",
    "Job",
    "Journal",
    "Line",
    "LineCount",
    "MaskPictures",
    "Moment",
    "MotRows",
    "OutputError",
    "OverlayStyle",
    "OverlayVideo",
    "Pipeline",
    "PipelineSettings",
    "SavedStream",
    "Session",
    "SessionEvents",
    "SessionSettings",
    "SettingsError",
    "Sink",
    "Source",
    "SourceError",
    "SourceInfo",
    "SourceReport",
    "TrackedObject",
    "Tracking",
    "Trails",
    "UsageError",
    "VideoFrame",
    "VideoSettings",
    "VisrtError",
    "__version__",
    "colour_of",
    "draw",
    "line",
    "moment",
    "open_bundle",
    "open_source",
    "raw_format",
    "read_journal",
    "read_video",
    "track",
    "track_async",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("visrt")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'visrt' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
