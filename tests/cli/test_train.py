"""Claims about the command line of `visrt train`: its three ways, wrong combinations, and starts that fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_sets import coco_values, write_coco
from typer.testing import CliRunner, Result

from visrt.cli import app


def train(*arguments: str | int | Path) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    write_coco(tmp_path / "set", coco_values(6))
    return tmp_path / "set"


def test_own_pictures_become_weights_and_the_command_that_exports_them(data: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "mine.toml", tmp_path / "run"
    ended = train("--data", data, "--classes", "car", "--size", "64x96", "--write-recipe", recipe)
    assert ended.exit_code == 0, ended.stderr
    recipe.write_text(recipe.read_text().replace("batch = 8", "batch = 1").replace("frames = 2", "frames = 1"))
    ended = train(recipe, "--steps", 1, "--out", out)
    assert ended.exit_code == 0, ended.stderr
    assert f"trains on {data}: coco, 6 photos, car (6 objects)" in ended.stderr
    assert f"visrt export {out}/model.safetensors --size 64x96 --association " in ended.stdout
    assert "training/recipes/default/association.json --out BUNDLE" in ended.stdout
    assert (out / "model.safetensors").is_file()


def test_a_start_that_fails_does_not_block_the_next(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    common = ("--data", data, "--size", "64x96", "--steps", 1, "--out", out)
    assert train(*common, "--classes", "cat").exit_code == 2
    assert train(*common, "--from", tmp_path / "no.safetensors").exit_code == 2
    assert not out.exists()


WRONG: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "nothing to train on: give one of: `visrt train --data DIR"),
    "a file and data": (["a.json", "--data", "b"], "--data: a.json holds all of that"),
    "a recipe and classes": (["--recipe", "r", "--data", "b", "--classes", "c"], "--classes: recipe r holds that"),
    "a recipe without data": (["--recipe", "r"], "--recipe r without --data"),
    "no out": (["--data", "SET"], "--out is missing"),
    "no folder": (["--data", "nowhere", "--out", "o"], "nowhere: there is no such folder"),
    "an empty class": (["--data", "SET", "--classes", "car,", "--out", "o"], "--classes 'car,' is not understood"),
    "a size in words": (["--data", "SET", "--size", "big", "--out", "o"], "command line: setting 'size' is 'big'"),
    "a recipe of another kind": (["--data", "SET", "--write-recipe", "r.json"], "a recipe is a .toml file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_combination_is_one_clear_line(name: str, data: Path) -> None:
    arguments, message = WRONG[name]
    ended = train(*(str(data) if one == "SET" else one for one in arguments))
    assert ended.exit_code == 2
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) <= 3


def test_a_recipe_is_never_written_over(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("data = 'x'\n")
    ended = train("--data", data, "--write-recipe", tmp_path / "mine.toml")
    assert ended.exit_code == 4
    assert "is there already" in ended.stderr
    assert (tmp_path / "mine.toml").read_text() == "data = 'x'\n"
