"""Maps the top-level folders to `visrt.<folder>`; everything else is in pyproject.toml."""

from setuptools import setup

FOLDERS = ("runtime", "models", "training", "export", "calibration", "benchmarks")

setup(
    packages=["visrt", "visrt.commands", *(f"visrt.{folder}" for folder in FOLDERS)],
    package_dir={f"visrt.{folder}": folder for folder in FOLDERS},
)
