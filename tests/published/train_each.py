"""Trains what each settings file named on the command line says, one after the other, for a launcher of processes."""

from __future__ import annotations

import sys
from pathlib import Path

from visrt.training.loop import train
from visrt.training.run_settings import run_settings_from_file

FOLDER = Path(sys.argv[1])

if __name__ == "__main__":
    for name in sys.argv[2:]:
        train(run_settings_from_file(FOLDER / f"{name}.json"), FOLDER / f"{name}_shared", print)
