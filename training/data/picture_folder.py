"""Which pictures of a set are on disk, and what becomes of videos that are listed but not there."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import Enum
from itertools import islice
from pathlib import Path

from visrt.runtime.errors import DataError
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo
from visrt.training.data.json_faults import short

__all__ = ["MissingPictures", "PictureFolder", "ReadRules", "complete_videos"]

MOST_NAMES = 10
"""Videos that an error names."""
MOST_LISTED = 5000
"""Files that are looked at for one of nearly a name."""


class MissingPictures(str, Enum):
    """What becomes of videos whose pictures are not all on disk: an error that names them, a set without them, or a
    set as it is listed, for which no picture is looked for."""

    refuse = "refuse"
    leave_out = "leave out"
    keep = "keep"


@dataclass(frozen=True)
class ReadRules:
    """How strictly a set is read. missing: for videos that are listed and not on disk. skip_faulty: faulty entries are
    left out and counted; otherwise all of them are refused at once."""

    missing: MissingPictures = MissingPictures.refuse
    skip_faulty: bool = False


class PictureFolder:
    """Which files a folder of pictures holds, at any depth; each folder in it is listed once. missing: the pictures
    that `find` did not find."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.missing: list[Path] = []
        self._files: dict[str, frozenset[str]] = {}

    def __contains__(self, name: str) -> bool:
        """Whether the path `name`, as `Path` writes it, is a file below the folder."""
        folder, _, file = name.rpartition("/")
        if folder not in self._files:
            self._files[folder] = _files_in(self.root / folder)
        # Not listed under this name is no proof: a disk may not tell upper from lower case.
        return file in self._files[folder] or os.path.isfile(self.root / name)

    def find(self, name: object, where: str) -> Path:
        """The picture `name`, which does not lead out of the folder; `where` is its json path."""
        if not isinstance(name, str):
            raise DataError(f"{where}: expected a text; found {short(name)}")
        path = Path(name)
        if "\\" in name and path.as_posix() not in self:  # written on Windows
            path = Path(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{where}: {name} leads out of {self.root.name}; expected a path within it")
        if path.as_posix() not in self:
            self.missing.append(self.root / path)
        return self.root / path


def _files_in(folder: Path) -> frozenset[str]:
    """One call for a folder where a question for each of 118,000 pictures takes a minute on a network disk."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (OSError, ValueError):
        return frozenset()


@dataclass(frozen=True)
class _Gap:
    """A video with pictures that are not on disk."""

    video: AnnotatedVideo
    missing: tuple[Path, ...]

    def __str__(self) -> str:
        count, all_frames = len(self.missing), len(self.video.pictures)
        if all_frames == 1:
            return self.missing[0].name
        if count == all_frames:
            return self.video.name
        return f"{self.video.name} ({count} of {all_frames} frames, the first {self.missing[0].name})"


def complete_videos(annotated: AnnotatedSet, folder: PictureFolder, path: Path, rule: MissingPictures) -> AnnotatedSet:
    """`annotated`, read from `path`, by `rule` for the videos that `folder` has not found whole."""
    if not folder.missing or rule is MissingPictures.keep:
        return annotated
    lost = frozenset(folder.missing)
    gaps = [_Gap(video, tuple(p for p in video.pictures if p in lost)) for video in annotated.videos]
    gaps = [gap for gap in gaps if gap.missing]
    listed = _listed(annotated, gaps, folder.root) + _nearest(folder.missing[0])
    if rule is MissingPictures.refuse:
        raise DataError(
            f"{path}: {listed}; complete the download or give the folder of pictures. `visrt eval` and `visrt data` "
            "take it with --images, and leave out what is missing with --skip-missing"
        )
    if len(gaps) == len(annotated.videos):
        raise DataError(f"{path}: {listed}, and none is left; give the folder of pictures with --images")
    left_out = {gap.video.id for gap in gaps}
    return replace(
        annotated,
        videos=tuple(video for video in annotated.videos if video.id not in left_out),
        missing=tuple(gap.video.name for gap in gaps),
        remarks=(*annotated.remarks, f"{path}: {listed}, and left out"),
    )


def _nearest(missing: Path) -> str:
    """A hint with the file that is meant, if one of nearly the name of `missing` is there: another suffix, other letter
    case, other zeros, or a folder of nearly its folder's name. The picture of another number is none."""
    wanted, folder = missing.name, missing.parent
    try:
        if not folder.is_dir():
            wanted, folder = folder.name, folder.parent
        names = [path.name for path in islice(folder.iterdir(), MOST_LISTED)]
    except (OSError, ValueError):
        return ""
    alike = [name for name in names if _plain(name) == _plain(wanted)]
    spelt = [name for name in names if re.sub(r"\d+", "#", name) != re.sub(r"\d+", "#", wanted)]
    found = [*alike, *get_close_matches(wanted, spelt, n=1, cutoff=0.7)]
    return f" (nearest to {wanted} is {folder / found[0]})" if found else ""


def _plain(name: str) -> str:
    """A file name without its suffix, zeros before numbers, and the case of its letters."""
    return re.sub(r"0+(?=\d)", "", Path(name).stem.casefold())


def _listed(annotated: AnnotatedSet, gaps: Sequence[_Gap], root: Path) -> str:
    photos = all(len(video.pictures) == 1 for video in annotated.videos)
    named = ", ".join(map(str, gaps[:MOST_NAMES]))
    more = f" and {len(gaps) - MOST_NAMES} more" if len(gaps) > MOST_NAMES else ""
    kind, state = ("photos", "are not") if photos else ("videos", "are not, or not whole,")
    return f"{len(gaps)} of {len(annotated.videos)} {kind} {state} below {root}: {named}{more}"
