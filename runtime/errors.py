"""All errors of visrt, in one tree. Each message tells the reader what was given, what was expected and what to do.

The command line prints one line for a `VisrtError` and leaves with its `exit_code`; any other exception is a bug
and keeps its traceback.
"""


def one_line(error: Exception) -> str:
    """The text of another library's error without line breaks, at most 300 characters."""
    return " ".join(str(error).split())[:300]


class VisrtError(Exception):
    """Everything visrt refuses on purpose."""

    exit_code = 1


class UsageError(VisrtError):
    """A request that cannot be met: a missing path, an unknown option value, sizes that do not fit."""

    exit_code = 2


class SettingsError(UsageError):
    """A settings file or a settings value that is unknown, misspelt or out of range."""


class DataError(VisrtError):
    """Annotations, results files or data sets that break their format; names the first fault by its json path."""

    exit_code = 2


class SourceError(VisrtError):
    """A video, image folder or camera that cannot be read."""

    exit_code = 4


class OutputError(VisrtError):
    """A result that cannot be written: disk full, read-only, already there."""

    exit_code = 4


class BundleError(VisrtError):
    """A bundle whose manifest or files are missing, altered or of another version."""

    exit_code = 5


class EngineError(VisrtError):
    """An inference backend that is absent, refuses a graph or fails while it runs."""

    exit_code = 5


class NumericalError(EngineError):
    """NaN or infinity where the network should have given numbers."""


class CheckpointError(VisrtError):
    """A checkpoint with missing, unexpected or misshapen keys, or of another family."""

    exit_code = 5


class ParityError(VisrtError):
    """An exported graph or engine that does not compute what PyTorch computed, or an AP that is not the published."""

    exit_code = 5


def install_hint(extra: str) -> str:
    """The command that installs the optional packages `extra`: "cpu", "train" ..., for error messages.

    visrt is on no index, so it is never named as if it were: in a checkout it is the folder, from a wheel the packages
    of the extra themselves.
    """
    from importlib.metadata import PackageNotFoundError, requires
    from pathlib import Path

    if not (Path(__file__).resolve().parents[1] / "pyproject.toml").is_file():
        try:
            declared = requires("visrt") or []
        except PackageNotFoundError:
            declared = []
        marked = (line.partition(";") for line in declared)
        needed = [
            f"'{package.strip()}'"
            for package, _, mark in marked
            if f"extra == '{extra}'" in mark.replace('"', "'") and not _is_for_older_python(mark)
        ]
        if needed and not any("visrt" in package for package in needed):
            return f"pip install {' '.join(needed)}"
    return f"pip install '.[{extra}]' in the folder of visrt's source"


def _is_for_older_python(mark: str) -> bool:
    """Whether a marker of package metadata asks for a Python that is older than this one."""
    import re
    import sys

    below = re.search(r"python_version < ['\"](\d+)\.(\d+)", mark)
    return below is not None and sys.version_info[:2] >= (int(below[1]), int(below[2]))


PARTIAL = 3
"""Exit code when results were written but a source was short, damaged or stopped early."""

INTERRUPTED = 130
"""Exit code after Ctrl-C; what was finished is on disk."""
