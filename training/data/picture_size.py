"""Pictures from outside, opened with suspicion: what is none, is torn or is giant is refused by its name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import PIL.Image
from PIL import ExifTags

from visrt.runtime.errors import DataError
from visrt.runtime.sources.source import VideoSettings

__all__ = ["is_turned", "opened", "refuse_pictures", "size_fault", "size_of"]

QUARTER_TURNS = (5, 6, 7, 8)
"""EXIF orientations in which width and height change places."""
TURNS = range(2, 9)
"""EXIF orientations other than as stored."""


@contextmanager
def opened(path: Path) -> Iterator[PIL.Image.Image]:
    """The picture at `path`, its head read and its size within the limit of a frame."""
    most = VideoSettings().max_pixels
    try:
        with warnings.catch_warnings():
            # Pillow warns of bombs above a size of its own; ours is checked before a pixel is decoded.
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path) as picture:
                if picture.width * picture.height > most:
                    raise DataError(f"{path}: {picture.height} x {picture.width} is beyond the limit of {most} pixels")
                yield picture
    except PIL.Image.DecompressionBombError:
        raise DataError(f"{path}: far beyond the limit of {most} pixels; scale it down first") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(f"{path}: not a readable image ({error}); replace or remove it") from None


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of the picture held upright, from the head of the file."""
    with opened(path) as picture:
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in QUARTER_TURNS
        return (picture.width, picture.height) if turned else (picture.height, picture.width)


def is_turned(path: Path) -> bool:
    """Whether the picture is shown otherwise than its pixels are stored, by its EXIF orientation."""
    with opened(path) as picture:
        return picture.getexif().get(ExifTags.Base.Orientation, 1) in TURNS


def size_fault(path: Path, found: tuple[int, int], annotated: tuple[int, int]) -> str:
    """What is wrong with a picture of size `found` (height, width) that is `annotated` at another; "" if nothing."""
    if found == annotated:
        return ""
    sizes = [f"{height} x {width}" for height, width in (found, annotated)]
    by = " as its EXIF orientation turns it" if is_turned(path) else ""
    return f"{path}: {sizes[0]} pixels (height x width){by}, its annotations say {sizes[1]}"


MOST_NAMES = 10
"""Pictures that an error names."""


def refuse_pictures(faults: Sequence[str]) -> None:
    """Raises DataError if there are `faults` of pictures."""
    if faults:
        more = f"; and {len(faults) - MOST_NAMES} more" if len(faults) > MOST_NAMES else ""
        raise DataError(f"{len(faults)} pictures cannot be used: {'; '.join(faults[:MOST_NAMES])}{more}")
