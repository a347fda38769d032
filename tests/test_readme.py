"""Claims about README.md and docs/: the Python runs, commands work, tables and links are true."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from annotated_types import Ge, Gt, Le, Lt
from data_sets import ROOT
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from visrt.cli import VERBS, app, load
from visrt.runtime import errors
from visrt.runtime.bundles.bundle import SHIPPED
from visrt.runtime.bundles.manifest import FileSpec, GraphSpec, InputSpec, Manifest, StateSpec, TensorSpec
from visrt.runtime.methods.ctvis import CtVisSettings
from visrt.runtime.methods.genvis import GenVisSettings
from visrt.runtime.methods.inspro import InsProSettings
from visrt.runtime.methods.minvis import MinVisSettings
from visrt.runtime.methods.videomt import VideoMtSettings
from visrt.runtime.pipeline import PipelineSettings
from visrt.runtime.results import FrameResult
from visrt.runtime.session import Session, SessionSettings
from visrt.runtime.sinks.journal import Journal
from visrt.runtime.sources.source import VideoSettings
from visrt.runtime.sources.video import read_video
from visrt.training.data.set_formats import Pictures, load_annotations, write_set

PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
FRAMES = 12


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. mark: the comment on the line above it."""

    page: str
    language: str
    mark: str
    text: str


def blocks_of(name: str, page: str) -> Iterator[Block]:
    for mark, language, text in re.findall(r"(?:<!-- ([^\n]*?) -->\n)?```(\w*)\n(.*?)```", page, re.DOTALL):
        yield Block(name, language, mark, text)


BLOCKS = [block for name, page in PAGES.items() for block in blocks_of(name, page)]
LINES = [
    line.partition(" #")[0].strip() for block in BLOCKS if block.language == "sh" for line in block.text.splitlines()
]
COMMANDS = sorted({line for line in LINES if line.startswith("visrt ")})
MODULES = sorted({line for line in LINES if line.startswith("python -m visrt.")})
PYTHON = [block for block in BLOCKS if block.language == "python"]
WITHOUT_VISRT = [block for block in PYTHON if block.mark == "without visrt"]
IMPORTS_ONLY = [block for block in PYTHON if block.mark == "imports only"]

PATH_OPTIONS = ("--bundle", "--data", "--classes", "--against", "--association", "--source", "--results")
"""Options whose values must be there for a command to run."""

QUICK = ("track", "inspect", "doctor", "verify", "eval", "data")
"""Verbs that take seconds."""

TOOLS = ("tracked/", "from_cvat/", "from_label_studio/", "from_labelme/", "panoptic.json")
IN_WORKSPACE = (
    "street.mp4",
    "other.mp4",
    "frames/",
    "frames/%05d.png",
    "labelled/",
    "map.json",
    "strict.json",
    "all.txt",
    *TOOLS,
)

TABLES: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        CtVisSettings,
        GenVisSettings,
        InsProSettings,
        MinVisSettings,
        PipelineSettings,
        SessionSettings,
        VideoMtSettings,
        VideoSettings,
    )
}


@pytest.fixture(scope="module")
def demo() -> list[FrameResult]:
    """The first frames of the demo clip through the default bundle."""
    results: list[FrameResult] = []
    with Session.open(ROOT / "bundles" / "default") as session:
        for frame in demo_frames():
            results += session.step(frame, len(results) / 10)
    return results


def demo_frames() -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    for frame in read_video(ROOT / "clips" / "demo.mp4"):
        if frame.index == FRAMES:
            return
        yield frame.image


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, demo: list[FrameResult]) -> Path:
    """A folder with the files that commands of the pages name: the demo clip, its frames, and a labelled set."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("bundles", "clips", "training"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("street.mp4", "other.mp4"):
        (folder / name).symlink_to(ROOT / "clips" / "demo.mp4")
    for pictures in (folder / "frames", folder / "labelled" / "JPEGImages" / "street"):
        pictures.mkdir(parents=True)
        for index, frame in enumerate(demo_frames()):
            Image.fromarray(frame).save(pictures / f"{index:05}.png")
    (folder / "labelled" / "instances.json").write_text(json.dumps(annotations_of(demo)))
    make_tool_sets(folder, demo)
    (folder / "all.txt").write_text("street.mp4\nother.mp4\n")
    (folder / "map.json").write_text('{"pedestrian": "person"}')
    (folder / "strict.json").write_text('{"birth_score": 0.9, "keep_score": 0.6}')
    return folder


def make_tool_sets(folder: Path, results: list[FrameResult]) -> None:
    """What was tracked as a run of `visrt track`, and the labelled set in the formats of labelling tools."""
    (folder / "tracked").mkdir()
    journal = Journal(folder / "tracked" / "results.jsonl", ("person", "vehicle", "animal"))
    for result, frame in zip(results, demo_frames(), strict=True):
        journal.write(result, frame)
    journal.close()
    labelled = load_annotations(folder / "labelled")
    for name in ("cvat", "label-studio"):
        write_set(labelled, folder / f"from_{name.replace('-', '_')}", name, Pictures.copy)
    height, width = results[0].size
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:20, :20, 0] = 7
    for name in ("from_labelme/a.png", "images/a.png", "panoptic/a.png"):
        (folder / name).parent.mkdir()
        Image.fromarray(picture).save(folder / name)
    shape = {"label": "person", "points": [[0, 0], [20, 0], [20, 20]], "shape_type": "polygon", "group_id": None}
    values = {"shapes": [shape], "imagePath": "a.png", "imageHeight": height, "imageWidth": width}
    (folder / "from_labelme" / "a.json").write_text(json.dumps(values))
    segments = [{"id": 7, "category_id": 1, "iscrowd": 0}]
    panoptic = {
        "images": [{"id": 1, "file_name": "a.png", "height": height, "width": width}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "person", "isthing": 1}],
    }
    (folder / "panoptic.json").write_text(json.dumps(panoptic))


def annotations_of(results: list[FrameResult]) -> dict[str, Any]:
    """What was tracked as object 0, as the annotation of a pedestrian."""
    masks = [next((o.rle for o in result.objects if o.id == 0), None) for result in results]
    height, width = results[0].size
    names = [f"street/{index:05}.png" for index in range(len(results))]
    return {
        "categories": [{"id": 1, "name": "pedestrian"}],
        "videos": [{"id": 1, "height": height, "width": width, "file_names": names}],
        "annotations": [{"id": 1, "video_id": 1, "category_id": 1, "iscrowd": 0, "segmentations": masks}],
    }


def runs(command: str) -> bool:
    """Whether a command takes seconds, and needs no GPU and no file but the workspace's."""
    _, verb, *arguments = shlex.split(command)
    paths = [option for option in PATH_OPTIONS if verb != "track" or option != "--classes"]
    needed = [value for option, value in pairwise(arguments) if option in paths]
    start = 1 if verb == "data" else 0
    pairs = pairwise(["", *arguments[start:]])
    needed += [value for before, value in pairs if not value.startswith("--") and not before.startswith("--")]
    there = all(path in IN_WORKSPACE or (ROOT / path).exists() or (SHIPPED / path).exists() for path in needed)
    return verb in QUICK and "tensorrt" not in command and there


def test_the_readme_is_short_and_begins_with_the_two_commands() -> None:
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 120
    for target in ("demo", "test"):
        assert f"make {target}" in "\n".join(lines[:15])


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {target for page in PAGES.values() for target in re.findall(r"(?:`|^)make ([\w-]+)", page, re.MULTILINE)}
    assert {"demo", "test", "bench", "gpu-check"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


RUN = [block for block in PYTHON if not block.mark]


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.page)
def test_python_runs_as_it_stands(block: Block) -> None:
    done = subprocess.run([sys.executable, "-c", block.text], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("block", IMPORTS_ONLY, ids=lambda block: block.page)
def test_python_that_needs_a_checkpoint_imports_what_exists(block: Block) -> None:
    imports = [line for line in block.text.splitlines() if line.startswith(("import ", "from "))]
    assert imports
    exec("\n".join(imports), {})


def test_pages_of_python_are_not_skipped() -> None:
    assert {"README.md", "use.md", "extend.md"} == {block.page for block in RUN}
    assert len(PYTHON) == len(RUN) + len(WITHOUT_VISRT) + len(IMPORTS_ONLY)


def test_a_bundle_runs_without_visrt_as_the_page_describes(workspace: Path, demo: list[FrameResult]) -> None:
    script = workspace / "without_visrt.py"
    script.write_text("\n".join(block.text for block in WITHOUT_VISRT))
    frames = [str(path) for path in sorted((workspace / "frames").iterdir())]
    hidden = "import runpy, sys; sys.modules['visrt'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    command = [sys.executable, "-c", hidden, str(script), str(ROOT / "bundles" / "default"), *frames]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(demo)
    classes = ("person", "vehicle", "animal")
    for line, result in zip(lines, demo, strict=True):
        assert [o["id"] for o in line["objects"]] == [o.id for o in result.objects]
        assert [o["name"] for o in line["objects"]] == [classes[o.label] for o in result.objects]
        for found, expected in zip(line["objects"], result.objects, strict=True):
            assert found["score"] == pytest.approx(expected.score, abs=1e-6)
            height, width = found["rle"]["size"]
            mask = coco_mask.decode(coco_mask.frPyObjects(found["rle"], height, width))
            np.testing.assert_array_equal(mask.astype(bool), expected.mask())
    assert sum(len(line["objects"]) for line in lines) > FRAMES


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist_with_their_options(command: str) -> None:
    _, verb, *arguments = shlex.split(command)
    assert verb in VERBS
    found = load(verb)
    if hasattr(found, "commands"):
        found = found.commands[arguments[0]]
    known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    options = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    assert options <= known


@pytest.mark.parametrize("command", [command for command in COMMANDS if runs(command)])
def test_quick_commands_run(command: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    arguments = shlex.split(command)[1:]
    ended = CliRunner().invoke(app, [*arguments, "--limit", "3"] if arguments[0] == "track" else arguments)
    assert ended.exit_code in ((0, 5) if arguments[0] == "doctor" else (0,)), ended.output


def test_commands_of_every_quick_verb_run() -> None:
    ran = {command for command in COMMANDS if runs(command)}
    assert {shlex.split(command)[1] for command in ran} == set(QUICK)
    assert len(ran) >= 12


@pytest.mark.parametrize("command", MODULES)
def test_modules_run_with_their_options(command: str) -> None:
    _, _, module, *arguments = shlex.split(command)
    shown = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert {argument for argument in arguments if argument.startswith("--")} <= set(
        re.findall(r"--[\w-]+", shown.stdout)
    )


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    folder = ROOT if name == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        path, _, anchor = target.partition("#")
        assert "://" not in target, "pages name no host"
        assert not path or (folder / path).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", (folder / path).read_text() if path else PAGES[name], re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, target


def test_no_page_installs_from_an_index_that_has_no_visrt() -> None:
    assert not [name for name, page in PAGES.items() if "visrt[" in page]


@pytest.mark.parametrize("name", TABLES)
def test_settings_tables_are_the_settings(name: str) -> None:
    rows = rows_of(PAGES["use.md"].partition(f"<!-- settings: {name} -->\n")[2])
    hints = get_type_hints(TABLES[name], include_extras=True)
    assert [row[0] for row in rows] == [f"`{f.name}`" for f in fields(TABLES[name])]
    for row, f in zip(rows, fields(TABLES[name]), strict=True):
        assert row[1] == f"`{default_of(f)}`", f.name
        assert values_of(hints[f.name]) in (None, row[2]), f.name
        assert row[3], f.name


def rows_of(text: str) -> list[list[str]]:
    """The cells of the first table of `text`, without its head."""
    table = re.match(r"(\|.*\n)+", text)
    assert table
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]]


def default_of(f: Field[Any]) -> str:
    if f.default is MISSING and f.default_factory is not MISSING:
        assert f.default_factory() == SessionSettings(in_flight=2)
        return "SessionSettings(in_flight=2)"
    return json.dumps(f.default)


def values_of(hint: Any) -> str | None:
    """The values that a type allows, as the tables write them; None where the type does not say."""
    if get_origin(hint) in (Union, UnionType):
        [inner] = [part for part in get_args(hint) if part is not NoneType]
        values = values_of(inner)
        return values and f"`null`, {values}"
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) is tuple:
        inner = values_of(get_args(hint)[0])
        return inner and f"list of {inner}"
    if not hasattr(hint, "__metadata__"):
        return None
    least, most = "", " or more"
    for bound in hint.__metadata__[0].metadata:
        if isinstance(bound, Ge | Gt):
            least = f"{bound.ge}" if isinstance(bound, Ge) else f"above {bound.gt}"
        if isinstance(bound, Le | Lt):
            most = f" to {bound.le}" if isinstance(bound, Le) else f" to below {bound.lt}"
    return least + most


def test_the_exit_codes_are_all_in_the_table() -> None:
    codes = {
        error.exit_code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.VisrtError)
    }
    shown = {int(row[0]) for row in rows_of(PAGES["use.md"].partition("### Exit codes\n\n")[2])}
    assert codes | {0, errors.PARTIAL, errors.INTERRUPTED} <= shown


def test_a_line_of_results_looks_as_shown(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    track = ["track", "street.mp4", "--bundle", "bundles/default", "--no-overlay", "--limit", "1", "--out", "out/line"]
    assert CliRunner().invoke(app, track).exit_code == 0
    written = json.loads((workspace / "out" / "line" / "results.jsonl").read_text())
    [shown] = [json.loads(block.text) for block in BLOCKS if block.page == "use.md" and block.language == "json"]
    assert shown.keys() == written.keys()
    assert shown["objects"][0].keys() == written["objects"][0].keys()


def test_the_recipe_of_the_training_page_loads(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed; pip install '.[train]'")
    from visrt.training.own_recipe import OwnRecipe, recipe_from_file

    [block] = [block for block in BLOCKS if block.mark == "recipe"]
    (tmp_path / "mine.toml").write_text(block.text)

    recipe = recipe_from_file(tmp_path / "mine.toml")

    assert recipe.classes == ("person", "car")
    assert {line.split(" = ")[0] for line in block.text.splitlines()} == {field.name for field in fields(OwnRecipe)}


def test_the_bundle_page_names_every_key_of_the_manifest() -> None:
    page = PAGES["bundle.md"]
    for model in (Manifest, InputSpec, GraphSpec, StateSpec, TensorSpec, FileSpec):
        for name, spec in model.model_fields.items():
            assert re.search(rf"\b{spec.alias or name}\b", page), name


def test_the_bundle_page_has_the_tensors_of_the_default_bundle() -> None:
    manifest = json.loads((ROOT / "bundles" / "default" / "manifest.json").read_text())
    table = rows_of(PAGES["bundle.md"].partition("any number of masks.\n\n")[2])
    shown = [(way, role.strip("`"), dtype, len(shape.split(","))) for _, way, role, dtype, shape, _ in table]
    found = [
        (way, role, tensor["dtype"], len(tensor["shape"]))
        for graph in manifest["graphs"].values()
        for way, tensors in (("in", graph["inputs"]), ("out", graph["outputs"]))
        for role, tensor in tensors.items()
    ]
    assert [(w, r, n) for w, r, _, n in shown] == [(w, r, n) for w, r, _, n in found]
    assert all(given in allowed for (_, _, allowed, _), (_, _, given, _) in zip(shown, found, strict=True))
