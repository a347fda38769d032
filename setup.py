"""Maps the top-level folders to `visrt.<folder>` and adds the default bundle; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

FOLDERS = ("runtime", "models", "training", "export", "calibration", "benchmarks")
NOT_SHIPPED = ("experiments", "experiments.*")
BUNDLE = "visrt.bundles.default"
"""Data only. `runtime/bundles/bundle.py` finds it by its name."""

setup(
    packages=[
        "visrt",
        "visrt.commands",
        "visrt.commands.tracking",
        BUNDLE,
        *(f"visrt.{folder}" for folder in FOLDERS),
        *(f"visrt.{folder}.{inner}" for folder in FOLDERS for inner in find_packages(folder, exclude=NOT_SHIPPED)),
    ],
    package_dir={**{f"visrt.{folder}": folder for folder in FOLDERS}, BUNDLE: "bundles/default"},
    package_data={"visrt": ["py.typed"], BUNDLE: ["*.json", "*.onnx", "*.npz"]},
)
