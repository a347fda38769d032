"""Claims about docs/reproduce.md: each of its commands runs as it stands, from the downloads to the zip for the server.

The sets are tiny ones in official layout, the weights small random networks in files as the released ones.
"""

from __future__ import annotations

import json
import shlex
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from official_layouts import make_split
from small_weights import save_small_weights
from test_readme import BLOCKS
from typer.testing import CliRunner, Result

from visrt.benchmarks.accuracy.published import FIGURES
from visrt.cli import app
from visrt.commands.reproduce import eval_arguments, export_arguments
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.errors import DataError, ParityError, UsageError
from visrt.training.data.official_sets import OFFICIAL_SETS

COMMANDS = [
    tuple(shlex.split(line))
    for block in BLOCKS
    if block.page == "reproduce.md" and block.language == "sh"
    for line in block.text.splitlines()
]
FAMILIES = {
    "minvis": ("datasets/weights/minvis_ytvis19_R50.pth", "ytvis2019"),
    "ctvis": ("datasets/weights/ctvis_r50_ovis.pth", "ovis"),
    "genvis": ("datasets/weights/genvis_semi_r50_ytvis21.pth", "ytvis2021"),
    "inspro": ("runs/inspro-r50-ytvis21/model.safetensors", "ytvis2021"),
    "videomt": ("datasets/weights/yt_2019_vit_small_52.8.pth", "ytvis2019"),
}
"""The weights of each family on the page, and the classes they are for."""

FRAMES = 4
"""Of a video: with clips of three frames, a whole one and a short one."""


def commands_of(family: str) -> list[tuple[str, ...]]:
    return [command for command in COMMANDS if family in " ".join(command)]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder, with what the page downloads. Of each set the first video: to trace the networks for another
    aspect takes half a minute."""
    folder = tmp_path_factory.mktemp("downloads")
    for name in ("ytvis19", "ytvis21", "ovis"):
        places = make_split(folder / "datasets", name, "valid", annotated=False, frames=FRAMES)
        keep_first_video(places.folder / places.annotations)
    (folder / "datasets/ytvis_2021/valid.json").rename(folder / "datasets/ytvis_2021/valid/instances.json")
    for family, (path, classes) in FAMILIES.items():
        save_small_weights(folder / path, family, classes)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def keep_first_video(path: Path) -> None:
    values = json.loads(path.read_text())
    kept = [one for one in values["annotations"] or () if one["video_id"] == values["videos"][0]["id"]]
    path.write_text(json.dumps(values | {"videos": values["videos"][:1], "annotations": kept or None}))


@pytest.fixture(scope="module")
def minvis(downloads: Path) -> dict[str, str]:
    """What the commands of MinVIS wrote on stdout and stderr, by command."""
    return outputs_of("minvis")


def outputs_of(family: str) -> dict[str, str]:
    outputs = {}
    for program, *arguments in commands_of(family):
        assert program == "visrt"
        ended = run(*arguments)
        assert ended.exit_code == 0, f"visrt {shlex.join(arguments)}\n{ended.output}"
        outputs[shlex.join(arguments)] = ended.output
    return outputs


def tracks_in(results: Path) -> list[dict[str, Any]]:
    with zipfile.ZipFile(results / "results.zip") as archive:
        assert archive.namelist() == ["results.json"]
        tracks: list[dict[str, Any]] = json.loads(archive.read("results.json"))
    return tracks


def test_every_command_is_of_one_family() -> None:
    assert sorted(COMMANDS) == sorted(command for family in FAMILIES for command in commands_of(family))


def test_minvis_is_run_as_the_page_says(downloads: Path, minvis: dict[str, str]) -> None:
    tracks = tracks_in(downloads / "out" / "minvis" / "results")

    assert len(minvis) >= 2
    assert {track["video_id"] for track in tracks} == {1}
    assert len(tracks) == 10
    assert all(len(track["segmentations"]) == FRAMES for track in tracks)
    [of_run, *_] = minvis.values()
    assert "results.zip to CodaLab competition 7682, YouTube-VIS 2019; expected AP within 0.5 of 47.3" in of_run
    assert "visrt reproduce minvis-r50-ytvis19 --ap AP" in of_run


@pytest.mark.full_size
@pytest.mark.parametrize(("family", "tracks"), [("ctvis", None), ("genvis", 10), ("inspro", 10), ("videomt", 10)])
def test_the_other_families_are_run_as_the_page_says(family: str, tracks: int | None, downloads: Path) -> None:
    outputs_of(family)

    found = tracks_in(downloads / "out" / family / "results")
    assert {track["video_id"] for track in found} == {1}
    assert tracks is None or len(found) == tracks
    assert all(len(track["segmentations"]) == FRAMES for track in found)


def test_frames_are_resized_as_published(downloads: Path, minvis: dict[str, str]) -> None:
    """The tiny videos are 16:9."""
    spec = open_bundle(downloads / "out" / "minvis" / "bundle").manifest.input

    assert (spec.height, spec.width, spec.short_side, spec.long_side) == (384, 640, 360, 1333)


def test_what_is_finished_is_taken_as_it_is(downloads: Path, minvis: dict[str, str]) -> None:
    before = (downloads / "out" / "minvis" / "results" / "results.zip").stat().st_mtime_ns
    [again, *_] = [command for command in commands_of("minvis") if "--weights" in command]

    ended = run(*again[1:])

    assert ended.exit_code == 0, ended.output
    assert ended.output.count("taken as") == 2
    assert (downloads / "out" / "minvis" / "results" / "results.zip").stat().st_mtime_ns == before


def test_a_bundle_of_other_weights_is_refused(downloads: Path, minvis: dict[str, str], tmp_path: Path) -> None:
    save_small_weights(tmp_path / "other.pth", "ctvis", "ytvis2019")
    into = ("--data", "datasets", "--out", "out/minvis")

    ended = run("reproduce", "minvis-r50-ytvis19", "--weights", str(tmp_path / "other.pth"), *into)

    assert ended.exit_code == UsageError.exit_code
    assert "is not the bundle of" in ended.output
    assert "weights minvis_ytvis19_R50.pth" in ended.output


def test_weights_of_another_backbone_are_refused_before_the_work(downloads: Path) -> None:
    into = ("--data", "datasets", "--out", "out/large")

    ended = run("reproduce", "minvis-swinl-ytvis19", "--weights", FAMILIES["minvis"][0], *into)
    small = run("reproduce", "videomt-l-ytvis19", "--weights", FAMILIES["videomt"][0], *into)

    assert (ended.exit_code, small.exit_code) == (UsageError.exit_code, UsageError.exit_code)
    assert "minvis-swinl-ytvis19 is of MinVIS, Swin-L" in ended.output
    assert "of 12 blocks and 384 channels, table positions; videomt-l-ytvis19 is of VidEoMT, ViT-L" in small.output
    assert not (downloads / "out" / "large").exists()


def test_where_there_are_annotations_ap_is_measured_and_judged(
    downloads: Path, minvis: dict[str, str], tmp_path: Path
) -> None:
    """The bundle is there, as after an interruption; random weights do not reach the published AP."""
    places = make_split(tmp_path / "annotated", "ytvis19", "valid", frames=FRAMES)
    keep_first_video(places.folder / places.annotations)
    shutil.copytree("out/minvis/bundle", tmp_path / "out" / "bundle")
    into = ("--data", str(tmp_path / "annotated"), "--out", str(tmp_path / "out"))

    ended = run("reproduce", "minvis-r50-ytvis19", "--weights", FAMILIES["minvis"][0], *into)

    assert ended.exit_code == ParityError.exit_code, ended.output
    assert "expected AP within 0.5 of 47.3: not reproduced" in ended.output
    assert ended.output.count("taken as") == 1


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("--weights", "w.pth", "--data", "datasets"), UsageError, "give --weights, --data and --out"),
        (("--weights", "w.pth", "--data", "datasets", "--out", "o"), UsageError, "w.pth: is not there"),
        (("--weights", "w.pth", "--data", "runs", "--out", "o"), DataError, "holds no valid annotations"),
        (("--weights", "w.pth", "--ap", "47.2"), UsageError, "leave the other options out"),
    ],
)
def test_what_is_missing_is_said_before_the_work(
    arguments: tuple[str, ...], error: Any, said: str, downloads: Path
) -> None:
    ended = run("reproduce", "minvis-r50-ytvis19", *arguments)

    assert ended.exit_code == error.exit_code
    assert said in ended.output
    assert not (downloads / "o").exists()


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("ctvis-r50-ovis", "out/ctvis"),
        ("genvis-semi-r50-ytvis21", "out/genvis"),
        ("videomt-s-ytvis19", "out/videomt"),
    ],
)
def test_the_steps_on_the_page_are_those_of_the_figure(name: str, out: str, downloads: Path) -> None:
    figure = FIGURES[name]
    assert figure.checkpoint
    weights = Path("datasets/weights") / figure.checkpoint.file
    videos = OFFICIAL_SETS[figure.set].find(Path("datasets"), "valid")

    assert ("visrt", *export_arguments(figure, weights, videos, Path(out))) in COMMANDS
    assert ("visrt", *eval_arguments(figure, videos, Path(out))) in COMMANDS
