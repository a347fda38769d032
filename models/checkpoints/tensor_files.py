"""Reads one file of weights, whatever its format, as tensors; nothing in it is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from visrt.models.checkpoints.pickles import read_pickle
from visrt.runtime.errors import CheckpointError

__all__ = ["read_tensor_file"]


def read_tensor_file(path: Path) -> tuple[Any, dict[str, str]]:
    """The contents of the file, arrays as tensors on the CPU, and the metadata of a safetensors file."""
    try:
        if path.suffix != ".safetensors":
            return read_pickle(path), {}
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); copy or download it again") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None
