"""The output of the command line: reports on stdout, one line per fault on stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["report_console", "say"]

PIPED_WIDTH = 160
"""Columns where stdout is no terminal, so that lines others read are not wrapped."""


def report_console() -> Console:
    """A console for tables and results on stdout."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return Console(highlight=False, soft_wrap=True, width=width)


def say(line: str) -> None:
    """One line to the user on stderr."""
    print("visrt:", " ".join(line.split()), file=sys.stderr)
