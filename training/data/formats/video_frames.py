"""The frames of a video file as pictures: those of a run of `visrt track`, or those that a labelling tool numbered."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

import PIL.Image

from visrt.runtime.errors import DataError, VisrtError
from visrt.runtime.sources.image_folder import images_in
from visrt.runtime.sources.video import read_video
from visrt.training.data.picture_size import size_of

__all__ = ["frame_pictures", "is_temporary"]

QUALITY = 95
"""Of the jpegs that frames of a video become."""


TEMPORARY: set[Path] = set()
"""Folders of frames that go when the program ends."""


def is_temporary(picture: Path) -> bool:
    """Whether a picture is a frame that was taken out of a video and goes when the program ends."""
    return picture.parent in TEMPORARY


def frame_pictures(source: Path, wanted: Collection[int] | None = None) -> dict[int, Path]:
    """By the number of the frame, from 0, the pictures of a video file or of a folder of images.

    wanted: these frames only. Those of a video file are written as jpeg to a folder for temporary files, which goes
    when the program ends. A folder's pictures that cannot be read have no number, as `visrt track` skips them.
    """
    if source.is_dir():
        pictures = [path for path in images_in(source) if _is_picture(path)]
        found = dict(enumerate(pictures))
    elif source.is_file():
        found = _extracted(source, wanted)
    else:
        raise DataError(f"{source}: there is no such video or folder of pictures; give it with --images")
    missing = sorted(set(wanted or ()) - found.keys())
    if missing:
        raise DataError(f"{source}: has no frame {missing[0]}, counted from 0; is it another video?")
    return found if wanted is None else {number: found[number] for number in wanted}


def _is_picture(path: Path) -> bool:
    try:
        size_of(path)
    except VisrtError:
        return False
    return True


def _extracted(video: Path, wanted: Collection[int] | None) -> dict[int, Path]:
    folder = Path(tempfile.mkdtemp(prefix="visrt-frames-"))
    TEMPORARY.add(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    kept = None if wanted is None else frozenset(wanted)
    last = None if kept is None else max(kept, default=-1)
    found = {}
    for frame in read_video(video):
        if last is not None and frame.index > last:
            break
        if kept is None or frame.index in kept:
            found[frame.index] = folder / f"{video.stem}_{frame.index:06d}.jpg"
            PIL.Image.fromarray(frame.image).save(found[frame.index], quality=QUALITY)
    return found
