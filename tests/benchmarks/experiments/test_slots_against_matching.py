"""GenVIS's slots against MinVIS's matching: the same thresholds for both, nothing averaged over nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from visrt.benchmarks.experiments.genvis_training import compared, rules_of
from visrt.runtime.methods.registry import METHODS
from visrt.runtime.settings import settings_from_file
from visrt.training.settings import TrainSettings

RECIPE = Path(__file__).parents[3] / "training" / "recipes" / "genvis" / "small.json"
NOTHING = float("nan")


def test_both_arms_have_the_same_thresholds_under_the_same_names() -> None:
    minvis, genvis = rules_of("minvis"), rules_of("genvis")
    assert genvis
    for name, rule in genvis.items():
        assert minvis[name] == rule
    for family, rules in (("minvis", minvis), ("genvis", genvis)):
        for rule in rules.values():
            settings = METHODS[family](rule).settings
            assert {name: getattr(settings, name) for name in rule} == rule


def test_seeds_are_averaged_and_a_share_of_nothing_is_not() -> None:
    table = compared({"a: x": 2.0, "b: x": NOTHING}, [{"a: x": 1.0}, {"a: x": NOTHING}, {"a: x": 4.0}])
    assert table["a: x"]["minvis"] == 2.0
    assert table["a: x"]["genvis"] == [1.0, None, 4.0]
    assert table["a: x"]["genvis_mean"] == 2.5
    assert table["a: x"]["genvis_stdev"] == pytest.approx(4.5**0.5)
    assert table["b: x"] == {"minvis": None}


def test_the_small_recipe_trains_genvis_on_the_shipped_architecture_with_returns() -> None:
    settings = settings_from_file(TrainSettings, RECIPE)
    assert settings.genvis is not None
    assert settings.data.clips.returning > 0
    ctvis = settings_from_file(TrainSettings, RECIPE.parents[1] / "ctvis" / "small.json")
    assert settings.init == ctvis.init
    assert settings.data.clips.classes == ctvis.data.clips.classes
