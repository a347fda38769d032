"""`--device`: one option for every command that runs or builds engines, so that it means the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Device"]

Device = Annotated[
    int, typer.Option("--device", min=0, help="Number of the GPU, from 0, as CUDA counts those it is shown.")
]
