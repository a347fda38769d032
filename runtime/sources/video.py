"""Video in: what the user names becomes sources, and a source becomes frames."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from visrt.runtime.errors import SourceError, UsageError
from visrt.runtime.sources.camera import CameraSource
from visrt.runtime.sources.image_folder import IMAGE_SUFFIXES, ImageSource, images_in, natural_order
from visrt.runtime.sources.source import Source, SourceInfo, SourceReport, VideoFrame, VideoSettings
from visrt.runtime.sources.video_file import FileSource

__all__ = [
    "Camera",
    "Images",
    "Source",
    "SourceInfo",
    "SourceReport",
    "SourceSpec",
    "VideoFile",
    "VideoFrame",
    "VideoSettings",
    "find_sources",
    "open_source",
    "read_video",
]


@dataclass(frozen=True)
class VideoFile:
    """A video file."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path,)


@dataclass(frozen=True)
class Images:
    """Images that are the frames of one video, in order."""

    name: str
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Camera:
    """A camera of this machine, by its number."""

    index: int

    @property
    def name(self) -> str:
        return f"camera{self.index}"

    @property
    def paths(self) -> tuple[Path, ...]:
        return ()


SourceSpec = VideoFile | Images | Camera
DEFAULTS = VideoSettings()


def read_video(source: str | Path, settings: VideoSettings = DEFAULTS) -> Iterator[VideoFrame]:
    """The frames of one file, folder of images, glob of images or camera number, decoded on request."""
    opened = open_source(source, settings)
    try:
        yield from opened
    finally:
        opened.close()


def open_source(source: str | Path | SourceSpec, settings: VideoSettings = DEFAULTS) -> Source:
    """One source, opened. Raises UsageError for a path that is not there, SourceError for one that cannot be read."""
    if isinstance(source, str | Path):
        source = _only(find_sources(source), source)
    if isinstance(source, Camera):
        return CameraSource(source.index)
    if isinstance(source, Images):
        return ImageSource(source.name, source.paths, settings)
    try:
        return FileSource(source.path, settings)
    except PermissionError:
        raise SourceError(f"{source.path}: no permission to read it; change its mode or owner") from None


def find_sources(source: str | Path) -> tuple[SourceSpec, ...]:
    """The sources a user means by a file, a folder of images, a glob, or the number of a camera.

    The images of a glob are one video; every other file it finds is a video of its own.
    """
    text = str(source)
    path = Path(source)
    if isinstance(source, str) and text.isdecimal() and not path.exists():
        return (Camera(int(text)),)
    if "://" in text:
        raise UsageError(
            "addresses such as rtsp:// cannot be read; expected a file, a folder of images, a glob or a camera"
        )
    if path.is_dir():
        return (_folder(path),)
    if path.exists():
        return (_file(path),)
    if glob.has_magic(text):
        return _matches(text)
    raise UsageError(
        f"{source}: no such file or folder; expected a video, a folder of images, a glob or a camera number"
    )


def _only(found: tuple[SourceSpec, ...], source: str | Path) -> SourceSpec:
    if len(found) > 1:
        raise UsageError(f"{source}: means {len(found)} videos, expected one; open them one by one")
    return found[0]


def _folder(folder: Path) -> Images:
    try:
        paths = images_in(folder)
    except PermissionError:
        raise UsageError(f"{folder}: no permission to list it; change its mode or owner") from None
    if not paths:
        raise UsageError(
            f"{folder}: no images in this folder; expected frames such as 00001.jpg, or give its videos by a glob"
        )
    return Images(folder.resolve().name, paths)


def _file(path: Path) -> SourceSpec:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Images(path.stem, (path,))
    return VideoFile(path)


def _matches(pattern: str) -> tuple[SourceSpec, ...]:
    files = sorted((Path(p) for p in glob.glob(pattern, recursive=True)), key=natural_order)
    images = tuple(p for p in files if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES)
    folders = (Images(p.name, found) for p in files if p.is_dir() and (found := images_in(p)))
    videos = (VideoFile(p) for p in files if p.is_file() and p.suffix.lower() not in IMAGE_SUFFIXES)
    matches: tuple[SourceSpec, ...] = (*_as_one(images), *folders, *videos)
    if not matches:
        raise UsageError(f"{pattern}: matches no video and no image; expected at least one")
    return matches


def _as_one(images: Iterable[Path]) -> Iterator[Images]:
    paths = tuple(images)
    if paths:
        yield Images(paths[0].parent.resolve().name, paths)
