"""Video in: what the user names becomes sources, and a source becomes frames."""

from __future__ import annotations

import glob
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from visrt.runtime.errors import SourceError, UsageError
from visrt.runtime.sources.camera import CameraSource
from visrt.runtime.sources.image_folder import IMAGE_SUFFIXES, ImageSource, images_in, natural_order
from visrt.runtime.sources.source import (
    Moment,
    RawFormat,
    Source,
    SourceInfo,
    SourceReport,
    VideoFrame,
    VideoSettings,
    moment,
    raw_format,
)
from visrt.runtime.sources.standard_input import RawSource, piped_video
from visrt.runtime.sources.video_file import FileSource

__all__ = [
    "Camera",
    "Images",
    "Moment",
    "RawFormat",
    "Source",
    "SourceInfo",
    "SourceReport",
    "SourceSpec",
    "StandardInput",
    "VideoFile",
    "VideoFrame",
    "VideoSettings",
    "find_sources",
    "moment",
    "open_source",
    "raw_format",
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
    """Images that are the frames of one video, in order. remarks: what was left out, in words."""

    name: str
    paths: tuple[Path, ...]
    remarks: tuple[str, ...] = ()


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


@dataclass(frozen=True)
class StandardInput:
    """What another program writes: an encoded video, or raw frames where the settings say how they look."""

    name = "stdin"
    paths: tuple[Path, ...] = ()


SourceSpec = VideoFile | Images | Camera | StandardInput
DEFAULTS = VideoSettings()
OTHER_SUFFIXES = frozenset(
    {
        *(".gif", ".apng", ".exr", ".hdr", ".psd", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"),
        *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".ts", ".mts", ".m4v", ".wmv", ".mpg", ".mpeg"),
    }
)
"""Names of pictures and videos that are no frames of a folder; other files there are not spoken of."""


def read_video(source: str | Path, settings: VideoSettings = DEFAULTS) -> Iterator[VideoFrame]:
    """The frames of one file, folder, glob or pattern of images, camera number, or "-" for the standard input, decoded
    on request."""
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
        return CameraSource(source.index, settings)
    if isinstance(source, StandardInput):
        return RawSource(settings.raw, settings) if settings.raw else FileSource(Path("-"), settings, piped_video())
    if isinstance(source, Images):
        return ImageSource(source.name, source.paths, settings, source.remarks)
    try:
        return FileSource(source.path, settings)
    except PermissionError:
        raise SourceError(f"{source.path}: no permission to read it; change its mode or owner") from None


def find_sources(source: str | Path) -> tuple[SourceSpec, ...]:
    """The sources a user means by a file, a folder of images, a glob, a printf pattern of images, the number of a
    camera, or "-", the standard input.

    The images of a glob are one video; every other file it finds is a video of its own.
    """
    text = str(source)
    path = Path(source)
    if text == "-":
        return (StandardInput(),)
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
    if re.search(PRINTF, path.name):
        return (_pattern(path),)
    if glob.has_magic(text):
        return _matches(text)
    raise UsageError(
        f"{source}: no such file or folder; expected a video, a folder of images, a glob, a pattern as %04d.png, a "
        "camera number, or - for the standard input"
    )


def _only(found: tuple[SourceSpec, ...], source: str | Path) -> SourceSpec:
    if len(found) > 1:
        raise UsageError(f"{source}: means {len(found)} videos, expected one; open them one by one")
    return found[0]


def _folder(folder: Path) -> Images:
    try:
        paths, remarks = _frames_of(images_in(folder))
        others = Counter(path.suffix.lower() for path in folder.iterdir() if path.suffix.lower() in OTHER_SUFFIXES)
    except PermissionError:
        raise UsageError(f"{folder}: no permission to list it; change its mode or owner") from None
    if others:
        found = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        remarks = (*remarks, f"files that are no frames were left out: {found}")
    if not paths:
        raise UsageError(
            f"{folder}: no images in this folder; expected frames such as 00001.jpg, or give its videos by a glob"
        )
    return Images(folder.resolve().name, paths, remarks)


def _frames_of(paths: tuple[Path, ...]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The images that are frames, and a remark where images of one stem, 1.jpg and 1.png, are in a folder.

    The PNGs are then no frames: they are masks of the others, mostly.
    """
    by_stem = defaultdict(list)
    for path in paths:
        by_stem[path.stem].append(path)
    twice = [found for found in by_stem.values() if len(found) > 1]
    if not twice:
        return paths, ()
    kept = {min(found, key=lambda path: (path.suffix.lower() == ".png", path.name)) for found in by_stem.values()}
    frame = next(path for path in twice[0] if path in kept)
    other = next(path for path in twice[0] if path not in kept)
    remark = (
        f"{len(twice)} images come twice: {frame.name} is read as a frame, {other.name} is not; "
        "give a glob to choose others"
    )
    return tuple(path for path in paths if path in kept), (remark,)


PRINTF = r"%(?:0?(\d+))?d"


def _pattern(pattern: Path) -> Images:
    """The images whose names have a number where `pattern` has %d or %05d, in order of these numbers."""
    before, *numbers, after = re.split(r"%(?:0?\d+)?d", pattern.name)
    if numbers:
        raise UsageError(f"{pattern}: several numbers in one pattern; expected one, as frame%04d.png")
    width = int(re.search(PRINTF, pattern.name)[1] or 1)  # type: ignore[index]
    name = re.compile(re.escape(before.replace("%%", "%")) + r"(\d+)" + re.escape(after.replace("%%", "%")))
    folder = pattern.parent
    files = [(match[1], path) for path in _listed(folder) if (match := name.fullmatch(path.name))]
    found = sorted((int(number), path) for number, path in files if len(str(int(number)).zfill(width)) == len(number))
    if not found:
        raise UsageError(f"{pattern}: matches no image; expected at least one, as {before}{'1'.zfill(width)}{after}")
    paths = tuple(path for _, path in found)
    missing = found[-1][0] - found[0][0] + 1 - len(found)
    gap = f"{missing} numbers between {paths[0].name} and {paths[-1].name} have no image; the others follow each other"
    return Images(folder.resolve().name, paths, (gap,) if missing else ())


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise UsageError(f"{folder}: cannot be listed ({error.strerror}); expected a folder of images") from None


def _file(path: Path) -> SourceSpec:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Images(path.stem, (path,))
    return VideoFile(path)


def _matches(pattern: str) -> tuple[SourceSpec, ...]:
    files = sorted((Path(p) for p in glob.glob(pattern, recursive=True)), key=natural_order)
    images = tuple(p for p in files if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES)
    folders = (_folder(p) for p in files if p.is_dir() and images_in(p))
    videos = (VideoFile(p) for p in files if p.is_file() and p.suffix.lower() not in IMAGE_SUFFIXES)
    matches: tuple[SourceSpec, ...] = (*_as_one(images), *folders, *videos)
    if not matches:
        raise UsageError(f"{pattern}: matches no video and no image; expected at least one")
    return matches


def _as_one(images: Iterable[Path]) -> Iterator[Images]:
    paths = tuple(images)
    if paths:
        yield Images(paths[0].parent.resolve().name, paths)
