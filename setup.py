"""Maps the top-level folders to `visrt.<folder>`; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

FOLDERS = ("runtime", "models", "training", "export", "calibration", "benchmarks")
NOT_SHIPPED = ("experiments", "experiments.*")

setup(
    packages=[
        "visrt",
        "visrt.commands",
        *(f"visrt.{folder}" for folder in FOLDERS),
        *(f"visrt.{folder}.{inner}" for folder in FOLDERS for inner in find_packages(folder, exclude=NOT_SHIPPED)),
    ],
    package_dir={f"visrt.{folder}": folder for folder in FOLDERS},
)
