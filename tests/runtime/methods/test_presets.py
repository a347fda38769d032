"""Named methods: each makes a family, runs on any per-frame bundle, and takes changes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from fakes import colour_session, fake_manifest, patches

from visrt.runtime.engines.engine import Engine
from visrt.runtime.errors import SettingsError, UsageError
from visrt.runtime.methods.ctvis import CtVis, CtVisSettings
from visrt.runtime.methods.genvis import GenVis
from visrt.runtime.methods.minvis import MinVis, MinVisSettings
from visrt.runtime.methods.presets import PRESETS
from visrt.runtime.methods.registry import METHODS, method_from_preset, method_of
from visrt.runtime.session import Session

NO_ENGINES: Mapping[str, Engine] = {}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_follows_two_objects_on_a_bundle_of_another_family(name: str) -> None:
    plain = colour_session()
    other = {"minvis": "ctvis", "ctvis": "minvis"}[PRESETS[name].family]
    manifest = plain.manifest.model_copy(update={"family": other})
    session = Session(manifest, plain.network._engines, preset=name)

    results = [session.step(patches((128, 192), (0, 8 + 4 * t, 16, 48, 40), (1, 80, 72, 40, 40)))[0] for t in range(6)]

    labels = [{o.id: o.label for o in result.objects} for result in results[3:]]
    assert sorted(labels[0].items()) in ([(0, 0), (1, 1)], [(0, 1), (1, 0)])
    assert labels == [labels[0]] * 3


def test_the_published_methods_are_the_defaults_of_their_families() -> None:
    assert method_from_preset("minvis") == MinVis(MinVisSettings())
    assert method_from_preset("ctvis") == CtVis(CtVisSettings())


def test_the_rows_of_minvis_s_table_4_are_minvis_with_another_similarity() -> None:
    assert method_from_preset("minvis-heuristics") == MinVis(MinVisSettings(similarity="matching_cost"))
    both = MinVis(MinVisSettings(similarity="matching_cost_and_cosine"))
    assert method_from_preset("minvis-heuristics+query") == both


def test_a_preset_takes_nothing_from_the_bundle_and_changes_come_last() -> None:
    manifest = fake_manifest(association={"birth_score": 0.9})

    family = method_of(manifest, {"keep_score": 0.2}, "ctvis")

    assert family == CtVis(CtVisSettings(keep_score=0.2))


def test_a_preset_that_is_unknown_or_for_another_kind_of_bundle_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="preset 'ctviz' is unknown; choose one of minvis, ctvis, memory"):
        method_from_preset("ctviz")
    with pytest.raises(SettingsError, match="unknown setting 'birth_skore'; known here: keep_score"):
        method_from_preset("ctvis", {"birth_skore": 1})
    monkeypatch.setitem(METHODS, "clips", lambda association: GenVis())
    with pytest.raises(UsageError, match="of family 'clips'; presets are for bundles of ctvis, eomt, minvis"):
        method_of(fake_manifest().model_copy(update={"family": "clips"}), preset="ctvis")
