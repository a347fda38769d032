"""One network at several sizes: which sizes videos need, and a bundle of them that was checked at each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from inspro_bundles import SETTINGS as INSPRO
from networks import LIGHT, PUBLISHED_KIND, saved
from typer.testing import CliRunner

from visrt.cli import app
from visrt.export.bundle import Export
from visrt.export.families import published_resize
from visrt.export.sizes import YTVIS_SHAPES, export_sizes, sizes_for_shapes, video_shapes
from visrt.models.checkpoints.published import ctvis, genvis, published
from visrt.models.dataset_classes import DATASET_CLASSES
from visrt.models.swin import SwinSettings
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.bundles.writer import file_spec, write_bundle
from visrt.runtime.errors import ParityError, UsageError
from visrt.runtime.parity.verify import VerifySettings, stored_reference, verify_engines

R50, SWIN_L = published("r50", 40), published("swin_l", 40)
TRAINED = SwinSettings(embed_dim=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window=12, drop_path=0.3)
"""Swin-L as it is trained."""
YTVIS2019, YTVIS2021 = DATASET_CLASSES["ytvis2019"], DATASET_CLASSES["ytvis2021"]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sizes")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    checkpoint = saved(LIGHT, folder / "model.safetensors")
    sizes = ("--size", "64x96", "--size", "96x64", "--short-side", 64)
    outcome = run("export", checkpoint, "--out", folder / "upright", *sizes)
    assert outcome.exit_code == 0, outcome.output
    assert "64x96, fp32" in outcome.stdout
    assert "96x64, fp32" in outcome.stdout
    assert outcome.stdout.rstrip().endswith("3 classes, 2 sizes")
    return open_bundle(folder / "upright")


def test_each_size_repeats_torch(bundle: Bundle) -> None:
    assert [size.manifest.input.height for size in bundle.sizes] == [64, 96]
    assert {size.manifest.input.short_side for size in bundle.sizes} == {64}
    for size in bundle.sizes:
        verification = verify_engines(size, stored_reference(size), VerifySettings(("cpu",), (1, 2)))
        verification.require("the bundle")


def test_the_second_size_adds_little(bundle: Bundle) -> None:
    """Its graph without weights; of a small network that is a larger part than of a published one."""
    frame = bundle.manifest.graphs["frame"]
    assert frame.weights is not None
    assert bundle.manifest.other_sizes[0].graphs["frame"].weights == frame.weights
    assert frame.file.bytes < 0.2 * frame.weights.bytes


def test_verify_judges_each_size(bundle: Bundle, tmp_path: Path) -> None:
    outcome = run("verify", bundle.folder, "--engine", "cpu", "--json", tmp_path / "verdict.json")

    assert outcome.exit_code == 0, outcome.output
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert {size: values["passed"] for size, values in verdict["sizes"].items()} == {"64x96": True, "96x64": True}


def test_verify_names_the_size_that_fails(bundle: Bundle, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle.folder, tmp_path / "spoilt")
    [other] = bundle.manifest.other_sizes
    reference = stored_reference(bundle.sizes[1])
    wrong = {role: values + 1 for role, values in reference.expected.items()}
    data = replace(reference, expected=wrong).to_bytes()
    spoilt = bundle.manifest.model_copy(
        update={"other_sizes": (other.model_copy(update={"reference": file_spec(other.reference.file, data)}),)}
    )
    write_bundle(folder, spoilt, {other.reference.file: data})

    outcome = run("verify", folder, "--engine", "cpu")

    assert outcome.exit_code == ParityError.exit_code
    assert f"{folder} at 96x64 on cpu" in outcome.stderr
    assert "64x96 on cpu" not in outcome.stderr


def test_verify_against_takes_the_same_size_of_the_other_bundle(bundle: Bundle) -> None:
    outcome = run("verify", bundle.folder, "--engine", "cpu", "--against", bundle.folder)

    assert outcome.exit_code == 0, outcome.output


def test_inspect_has_a_row_for_each_size(bundle: Bundle) -> None:
    shown = run("inspect", bundle.folder, "--probe")

    assert shown.exit_code == 0, shown.output
    for size in ("64x96", "96x64"):
        [row] = [line for line in shown.stdout.splitlines() if size in line and "64 " in line and "│" in line]
        assert f"{(bundle.manifest.graphs['frame'].macs or 0) / 1e6:,.1f}" in row
    assert "shared by all" in shown.stdout


def test_rtx_builds_the_graphs_of_each_size_without_a_warning(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed; pip install -r tests/requirements-rtx.txt"
    )
    monkeypatch.setenv("VISRT_CACHE", str(tmp_path / "cache"))
    arguments = ("build", "--bundle", bundle.folder, "--engine", "tensorrt-rtx", "--target", "8.9")
    built = run(*arguments, "--out-log", tmp_path / "log.json")

    assert built.exit_code == 0, built.output
    engines = json.loads((tmp_path / "log.json").read_text())["engines"]
    assert [(one["graph"], one["size"], one["source"]) for one in engines] == [
        ("frame", "64x96", "built"),
        ("masks", "64x96", "built"),
        ("frame", "96x64", "built"),
        ("masks", "96x64", "built"),
    ]
    assert not [warning for one in engines for warning in one["warnings"]]
    assert run("inspect", bundle.folder).stdout.count("engine of tensorrt-rtx") == 4


def test_modules_that_one_size_keeps_in_fp32_are_kept_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else their weights would differ from size to size, and be stored for each."""
    done: list[tuple[int, tuple[str, ...] | None]] = []

    def found_out(export: Export, **_: Any) -> Any:
        done.append((export.height, export.keep_fp32))
        found = ("backbone",) if export.height == 96 else ()
        return SimpleNamespace(folder=export.out, kept=found if export.keep_fp32 is None else export.keep_fp32)

    monkeypatch.setattr("visrt.export.sizes.export_bundle", found_out)
    monkeypatch.setattr("visrt.export.sizes.open_bundle", lambda folder: folder)
    monkeypatch.setattr("visrt.export.sizes.join_sizes", lambda *_: None)
    export = Export(tmp_path / "model.safetensors", tmp_path / "bundle", 0, 0, precision="fp16")
    export_sizes(export, [(64, 96), (96, 64)])

    assert done == [(64, None), (96, None), (64, ("backbone",))]


def test_nothing_of_the_single_sizes_is_left(bundle: Bundle, folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "upright"]
    assert {path.name for path in bundle.folder.iterdir()} == {
        "manifest.json",
        *(spec.file for spec in bundle.manifest.files()),
    }


def test_the_bundle_has_its_own_name_and_one_checkpoint(bundle: Bundle) -> None:
    manifest: Manifest = bundle.manifest
    assert manifest.name == "upright"
    assert manifest.producer.checkpoint == "model.safetensors"


@pytest.mark.parametrize(
    ("short_side", "long_side", "sizes"),
    [
        (360, 1333, [(384, 640), (640, 384), (384, 480), (480, 384)]),
        (480, 1333, [(480, 864), (864, 480), (480, 640), (640, 480)]),
        (448, None, [(448, 800), (800, 448), (448, 608), (608, 448)]),
        (360, 480, [(288, 480), (480, 288), (384, 480), (480, 384)]),
    ],
)
def test_the_sizes_of_youtube_vis(short_side: int, long_side: int | None, sizes: list[tuple[int, int]]) -> None:
    assert list(sizes_for_shapes(YTVIS_SHAPES, short_side, long_side)) == sizes


def test_the_sizes_of_a_file_are_those_of_its_videos_the_most_frequent_first(tmp_path: Path) -> None:
    """The pictures need not be on the disk."""
    file = listed(tmp_path / "valid.json", [(1280, 720), (720, 1280), (360, 640), (719, 1280), (480, 853)])

    assert sizes_for_shapes(video_shapes(file), 360, None) == {(384, 640): 3, (640, 384): 1, (384, 672): 1}


def listed(file: Path, shapes: Sequence[tuple[int, int]]) -> Path:
    """A file of YouTube-VIS for a server, with videos of `shapes` (height, width)."""
    videos = [
        {"id": i + 1, "height": height, "width": width, "length": 1, "file_names": [f"{i}/0.jpg"]}
        for i, (height, width) in enumerate(shapes)
    ]
    file.write_text(json.dumps({"videos": videos, "categories": [{"id": 1, "name": "cat"}], "annotations": None}))
    return file


@pytest.mark.parametrize(
    ("options", "resize", "sizes"),
    [
        ([], (480, 1333), [(480, 864), (480, 640)]),
        (["--short-side", 96], (96, None), [(96, 192), (96, 128)]),
        (["--short-side", 96, "--long-side", 128], (96, 128), [(96, 128)]),
    ],
)
def test_the_command_exports_the_sizes_of_a_file(
    options: list[object],
    resize: tuple[int, int | None],
    sizes: list[tuple[int, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With CTVIS's resize, unless another one was given."""
    given: list[Any] = []

    def stop(export: Export, sizes: list[tuple[int, int]], **_: Any) -> None:
        given.append(((export.short_side, export.long_side), sizes))
        raise UsageError("stop before the long work")

    monkeypatch.setattr("visrt.export.sizes.export_sizes", stop)
    file = listed(tmp_path / "valid.json", [(480, 640), (720, 1280), (360, 640)])
    checkpoint = saved(LIGHT, tmp_path / "model.safetensors")
    outcome = run("export", checkpoint, "--family", "ctvis", "--out", tmp_path / "bundle", "--sizes", file, *options)

    assert "stop before" in outcome.stderr
    assert given == [(resize, sizes)]
    height, width = sizes[0]
    assert f"{height}x{width}: {3 if len(sizes) == 1 else 2} videos" in outcome.stdout


@pytest.mark.parametrize(
    ("family", "settings", "classes", "expected"),
    [
        ("minvis", R50, YTVIS2019, (360, 1333)),
        ("minvis", SWIN_L, YTVIS2019, (480, 1333)),
        ("minvis", replace(SWIN_L, backbone=TRAINED), (), (480, 1333)),
        ("minvis", SWIN_L, YTVIS2021, (360, 1333)),
        ("ctvis", ctvis(R50), YTVIS2019, (480, 1333)),
        ("ctvis", ctvis(SWIN_L), YTVIS2021, (480, 1333)),
        ("genvis", genvis(R50), YTVIS2021, (360, 1333)),
        ("genvis", genvis(SWIN_L), YTVIS2021, (448, 1333)),
        ("inspro", INSPRO, YTVIS2019, (360, 640)),
        ("minvis", published("swin_t", 40), YTVIS2019, (360, 1333)),
    ],
)
def test_the_published_resize(family: str, settings: Any, classes: tuple[str, ...], expected: tuple[int, int]) -> None:
    resize = published_resize(family, settings, classes)

    assert (resize.short_side, resize.long_side) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "64x96", "--size", "64x96"], "size 64x96 was given more than once; give each size once"),
        (["--size", "64x96", "--size", "60x96"], "size 60x96 (height x width) cannot be used; both must be divisible"),
        (["--size", "64x96", "--size", "96x64", "--source-size", "72x128"], "give one size, or leave the source size"),
        (["--size", "64x96", "--sizes", "ytvis"], "--size and --sizes ytvis were both given; give the one or the"),
        ([], "no size was given; add --size HxW, as 384x640, or --sizes ytvis"),
        (["--size", "64x96", "--size", "96x64", "--short-side", "80"], "a short side of 80 fits in none of the sizes"),
        (["--size", "64x96", "--long-side", "80"], "a long side of 80 without a short side"),
        (["--size", "64x96", "--short-side", "64", "--long-side", "60"], "is below the short side of 64"),
        (["--sizes", "absent.json"], "sizes absent.json: there is no such file; expected an annotation file, or ytvis"),
        (["--sizes", "ytvis", "--family", "other"], "family 'other' cannot be exported"),
    ],
)
def test_sizes_that_cannot_be_are_one_line(arguments: Sequence[str], message: str, tmp_path: Path) -> None:
    checkpoint = saved(PUBLISHED_KIND, tmp_path / "model.safetensors")
    outcome = run("export", checkpoint, "--out", tmp_path / "bundle", *arguments)

    assert outcome.exit_code == UsageError.exit_code
    assert message in outcome.stderr
    assert outcome.stderr.strip().count("\n") == 0
    assert not (tmp_path / "bundle").exists()
