"""visrt: video instance segmentation models from PyTorch training to a running deployment.

>>> import visrt
>>> with visrt.Session.open("bundle") as session:
...     for frame in visrt.read_video("clip.mp4"):
...         for result in session.step(frame.image, frame.time_s):
...             print(result.time_s, [(found.id, found.label, found.score) for found in result.objects])

Names are imported when they are first used: `import visrt` loads no heavy library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visrt.runtime.bundles.bundle import open_bundle
    from visrt.runtime.errors import VisrtError
    from visrt.runtime.results import FrameResult, TrackedObject
    from visrt.runtime.session import Session
    from visrt.runtime.sources.video import read_video

    __version__: str

__all__ = [
    "FrameResult",
    "Session",
    "TrackedObject",
    "VisrtError",
    "__version__",
    "open_bundle",
    "read_video",
]

_HOMES = {
    "FrameResult": "visrt.runtime.results",
    "Session": "visrt.runtime.session",
    "TrackedObject": "visrt.runtime.results",
    "VisrtError": "visrt.runtime.errors",
    "open_bundle": "visrt.runtime.bundles.bundle",
    "read_video": "visrt.runtime.sources.video",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("visrt")
    if name not in _HOMES:
        raise AttributeError(f"module 'visrt' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
