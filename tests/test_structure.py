"""Limits that keep the structure simple: how far a frame travels, how large folders grow, where families are named.

Where a limit is exceeded, look for a simpler way first. Where a number has fallen, lower its limit.
"""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from fakes import ColourEngine, MasksEngine, fake_manifest, patches

from visrt.runtime.arrays import Feed
from visrt.runtime.methods.registry import METHODS
from visrt.runtime.session import Session

FILES_A_FOLDER = 25
FAMILY_NAMES = 0
RECORD_TYPES = 7
FILES_BEFORE_THE_ENGINE = 5
FILES_A_FRAME = 18
FUNCTIONS_A_FRAME = 133

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("visrt", "runtime", "models", "training", "export", "calibration", "benchmarks")
REGISTRIES = (
    "runtime/methods/registry.py",
    "runtime/methods/presets.py",
    "export/families.py",
    "training/run_settings.py",
    "training/published_recipes.py",
    "benchmarks/accuracy/published.py",
    "benchmarks/gpu_check/networks.py",
    "models/checkpoints/conversion.py",
)
"""Each maps the names of families to what does the work."""

NOT_THE_FRAME = (
    "SessionEvents",
    "Clock",
    "Shown",
    "StageTimes",
    "MinVisState",
    "Slots",
    "HostTensor",
    "Letterbox",
    "SourceMask",
)
"""Records that are made while a frame passes but do not carry it: counters and objects of the stream, single values."""


def product_files() -> list[Path]:
    """Python files of the product, without experiments and recipes."""
    files = [path for folder in PRODUCT for path in sorted((ROOT / folder).rglob("*.py"))]
    # Where rglob follows the links in visrt/, it finds the files of the other folders a second time.
    once = [path for path in files if path.resolve() == path]
    return [path for path in once if not {"experiments", "recipes"} & {*path.relative_to(ROOT).parts}]


@dataclass
class Visits:
    """Files, functions and records that a frame meets in a session; a function for `sys.setprofile`."""

    files: list[Path] = field(default_factory=list)
    functions: set[tuple[Path, int]] = field(default_factory=set)
    records: set[type] = field(default_factory=set)
    before_the_engine: set[Path] | None = None

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code.co_filename == "<string>":
            self._see_record(frame)
            return
        file = Path(code.co_filename).resolve()
        if file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in PRODUCT:
            self.files.append(file)
            self.functions.add((file, code.co_firstlineno))

    def engine_called(self) -> None:
        if self.before_the_engine is None:
            self.before_the_engine = set(self.files)

    def _see_record(self, frame: FrameType) -> None:
        """Adds the class whose generated code runs: `__init__` of a dataclass or `__new__` of a NamedTuple."""
        made = frame.f_locals.get("_cls") or type(frame.f_locals.get("self"))
        is_record = dataclasses.is_dataclass(made) or hasattr(made, "_fields")
        if is_record and made.__module__.startswith("visrt."):
            self.records.add(made)


@dataclass
class WatchedEngine(ColourEngine):
    """Reports its calls to `visits`."""

    visits: Visits = field(default_factory=Visits)

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Any]:
        self.visits.engine_called()
        return super().__call__(feeds)


@pytest.fixture(scope="module")
def visits() -> Visits:
    """One frame with two objects, after two others, so that nothing is done for the first time."""
    manifest = fake_manifest()
    engine = WatchedEngine(manifest.graphs["frame"], np.random.default_rng(0))
    frames = [patches((128, 192), (0, 8 + 4 * t, 16, 48, 40), (1, 120 - 4 * t, 72, 40, 40)) for t in range(3)]
    with Session(manifest, {"frame": engine, "masks": MasksEngine(manifest.graphs["masks"])}) as session:
        for frame in frames[:-1]:
            session.step(frame)
        engine.visits = found = Visits()
        before = sys.getprofile()
        sys.setprofile(found)
        try:
            [result] = session.step(frames[-1])
        finally:
            sys.setprofile(before)
    assert len(result.objects) == 2
    return found


def names(files: set[Path]) -> str:
    return ", ".join(sorted(str(path.relative_to(ROOT)) for path in files))


def test_a_folder_holds_no_more_files_than_one_can_know() -> None:
    files = [*product_files(), *(ROOT / "tests").rglob("*.py")]
    folders = Counter(path.parent.relative_to(ROOT) for path in files)

    assert folders[Path("runtime")] > 0
    assert not {str(folder): count for folder, count in folders.items() if count > FILES_A_FOLDER}


def test_few_files_are_entered_before_the_engine_is_called(visits: Visits) -> None:
    assert visits.before_the_engine, "the engine was not called"
    assert ROOT / "runtime" / "session.py" in visits.before_the_engine
    assert len(visits.before_the_engine) <= FILES_BEFORE_THE_ENGINE, names(visits.before_the_engine)


def test_few_record_types_carry_a_frame_from_the_caller_to_its_result(visits: Visits) -> None:
    found = sorted(record.__name__ for record in visits.records if record.__name__ not in NOT_THE_FRAME)

    assert {"FrameResult", "TrackedObject"} <= {*found}
    assert len(found) <= RECORD_TYPES, found


def test_a_frame_visits_few_files_and_functions(visits: Visits) -> None:
    files = set(visits.files)

    assert len(files) <= FILES_A_FRAME, names(files)
    assert len(visits.functions) <= FUNCTIONS_A_FRAME


def test_families_are_named_in_registries_and_their_own_files_only() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.value!r}"
        for path in product_files()
        if str(path.relative_to(ROOT)) not in REGISTRIES
        for node in family_names(ast.parse(path.read_text()))
        if not path.stem.startswith(str(node.value).split("_")[0])
    ]

    assert all((ROOT / name).is_file() for name in REGISTRIES)
    assert len(found) <= FAMILY_NAMES, "\n".join(found)


def family_names(tree: ast.AST) -> Iterator[ast.Constant]:
    """String literals that are the name of a family. Entries of `__all__` name functions."""
    exported = {
        id(entry)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "__all__" for to in node.targets)
        for entry in ast.walk(node.value)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in METHODS and id(node) not in exported:
            yield node


def test_the_name_of_a_family_is_found_wherever_it_is_written() -> None:
    code = (
        '__all__ = ["genvis"]\nif kind == "genvis" or kind in ("minvis", "other"):\n    """genvis is no match here"""\n'
    )

    assert [node.value for node in family_names(ast.parse(code))] == ["genvis", "minvis"]
