"""Claims about the recipes in files: each loads strictly and can start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visrt.training.data.cutouts import DISTRACTOR
from visrt.training.loop import learner_of
from visrt.training.run_settings import run_settings_from_file

RECIPES = Path(__file__).parent.parent.parent / "training" / "recipes"
RUNS = sorted(path for path in RECIPES.glob("*/*.json") if "network" in json.loads(path.read_text()))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_is_a_run_that_can_start(path: Path) -> None:
    settings = run_settings_from_file(path)
    learner_of(settings)
    assert len(settings.data.clips.classes) == settings.network.classes
    for source in settings.data.sources:
        mapped = Path(source.class_map) if isinstance(source.class_map, str) else None
        if mapped and (RECIPES.parent.parent / mapped).exists():
            names = json.loads((RECIPES.parent.parent / mapped).read_text()).values()
            assert set(names) - {DISTRACTOR} <= set(settings.data.clips.classes)
