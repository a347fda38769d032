"""One colour an id, for good: neighbours are far apart, for colour-blind eyes too."""

from __future__ import annotations

__all__ = ["Colour", "colour_of", "text_colour_on"]

Colour = tuple[int, int, int]
"""Red, green, blue, 0-255."""

HUES: tuple[Colour, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (204, 121, 167),
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
    (0, 158, 115),
)
"""Okabe and Ito's colours (2008), ordered so that neighbours differ most under protanopia and deuteranopia."""

SHADES = ((0, 0.0), (255, 0.45), (0, 0.35))
"""Grey level and share mixed in: the hues as they are, then tints, then shades."""


def colour_of(identity: int) -> Colour:
    """The colour of object `identity`; it repeats after 21 ids."""
    hue = HUES[identity % len(HUES)]
    grey, share = SHADES[identity // len(HUES) % len(SHADES)]
    red, green, blue = (round(channel * (1 - share) + grey * share) for channel in hue)
    return red, green, blue


def text_colour_on(background: Colour) -> Colour:
    """Black or white, whichever reads better on `background` (relative luminance of WCAG 2, equal contrast at 0.18)."""
    linear = [(channel / 255) ** 2.2 for channel in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.18 else (255, 255, 255)
