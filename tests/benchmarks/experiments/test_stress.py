"""Claims about the synthetic stress: its streams, how they are counted, and what the methods make of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visrt.benchmarks.experiments import stress as stress_module
from visrt.benchmarks.experiments.stress import CONTENDERS, follow_stream, main, stress
from visrt.benchmarks.experiments.stress_streams import NOBODY, StreamFrame, StreamSettings, make_stream
from visrt.runtime.methods.method import MasksOf, Track
from visrt.runtime.methods.queries import Queries
from visrt.runtime.methods.registry import method_from_preset

GAP = StreamSettings(gap_frames=6, before_frames=8, after_frames=8, second_starts=0.0, false_alarms=0.0, missed=0.0)


def unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)


def first_rows(frame: StreamFrame) -> dict[int, int]:
    return {int(frame.owners[row]): int(row) for row in np.flatnonzero((frame.owners != NOBODY) & ~frame.copies)}


def test_a_stream_depends_on_its_seed_only() -> None:
    one, same, other = make_stream(GAP, 3), make_stream(GAP, 3), make_stream(GAP, 4)
    for a, b in zip(one, same, strict=True):
        assert np.array_equal(a.queries.embeddings, b.queries.embeddings)
        assert np.array_equal(a.masks, b.masks)
    assert not np.array_equal(one[0].queries.embeddings, other[0].queries.embeddings)


def test_every_object_in_sight_has_one_first_query_with_a_mask_and_no_other_has() -> None:
    crowded = StreamSettings(second_starts=0.5, false_alarms=3.0, gap_frames=5)
    for frame in make_stream(crowded, 0):
        rows = first_rows(frame)
        assert set(rows) == set(np.flatnonzero(frame.present))
        assert frame.masks[list(rows.values())].any(axis=(1, 2)).all()
        assert len(frame.queries) == crowded.queries
        twice = frame.owners[frame.copies]
        assert set(twice) <= set(rows)
        assert not frame.masks[list(rows.values())].sum(axis=0).max() > 1, "visible parts do not overlap"


def test_every_second_object_is_away_for_the_gap_and_comes_back() -> None:
    away = np.stack([frame.away for frame in make_stream(GAP, 1)])
    assert (away.sum(axis=0) == np.array([6, 0] * 4)).all()
    assert not away[0].any()
    assert not away[-1].any()


def test_embeddings_are_as_alike_as_the_settings_say() -> None:
    frames = make_stream(StreamSettings(likeness=0.95, second_starts=0.5), 0)
    first, second = frames[0], frames[1]
    rows, later = first_rows(first), first_rows(second)
    now = {o: unit(first.queries.embeddings[r]) for o, r in rows.items()}
    then = {o: unit(second.queries.embeddings[r]) for o, r in later.items()}
    same = [now[o] @ then[o] for o in now if o in then]
    twins = [now[o] @ now[o + 1] for o in now if o % 2 == 0 and o + 1 in now]
    others = [now[a] @ now[b] for a in now for b in now if a // 2 < b // 2]
    copies = np.flatnonzero(first.copies)
    seconds = [now[int(first.owners[row])] @ unit(first.queries.embeddings[row]) for row in copies]
    assert np.mean(same) > 0.93
    assert 0.7 < np.mean(seconds) < 0.85
    assert 0.65 < np.mean(twins) < np.mean(same)
    assert 0.3 < np.mean(others) < 0.5


def test_masks_tell_their_row() -> None:
    frame = make_stream(GAP, 0)[0]
    logits = frame.mask_logits(frame.queries.mask_embeddings)
    rows = first_rows(frame)
    for row in rows.values():
        assert frame.row_of(logits[row]) == row
        assert np.array_equal(logits[row] > 0, frame.masks[row])


@dataclass(frozen=True)
class Scripted:
    """A family that knows the owners: object o of frame t gets the id `id_of(o, t)`; None is no report."""

    frames: list[StreamFrame]
    id_of: Any

    def start(self) -> int:
        return 0

    def associate(self, queries: Queries, masks_of: MasksOf, now_s: float, t: int) -> tuple[list[Track], int]:
        frame = self.frames[t]
        tracks = []
        for one, row in first_rows(frame).items():
            identity = self.id_of(one, t)
            if identity is not None:
                tracks.append(Track(identity, 0, 1.0, frame.mask_logits(frame.queries.mask_embeddings[[row]])[0]))
        return tracks, t + 1


def counted(id_of: Any) -> stress_module.StreamCounts:
    frames = make_stream(GAP, 1)
    return follow_stream(Scripted(frames, id_of), frames)  # type: ignore[arg-type]


def test_a_perfect_tracker_has_no_fault() -> None:
    found = counted(lambda one, t: one)
    assert found.found == found.wanted
    assert found.switches == found.lost_ids == found.duplicates == found.spurious == 0
    assert found.gaps == found.recovered == 4
    assert found.returns >= 4


def test_a_new_id_after_the_gap_is_not_recovered() -> None:
    been_away = np.cumsum([frame.away for frame in make_stream(GAP, 1)], axis=0) > 0
    found = counted(lambda one, t: one + 100 * been_away[t, one])
    assert found.gaps == found.lost_ids == 4
    assert found.recovered == found.switches == 0


def test_an_object_that_is_reported_too_late_is_not_recovered() -> None:
    late = counted(lambda one, t: None if one % 2 == 0 and 8 <= t < 23 else one)
    assert late.gaps == 4
    assert late.recovered == 0


def test_an_id_for_each_frame_switches_at_every_link() -> None:
    found = counted(lambda one, t: 100 * t + one)
    assert found.switches == found.links > 0
    assert found.lost_ids == found.returns


def test_memory_finds_ids_again_where_minvis_loses_them() -> None:
    def recovered(name: str) -> int:
        preset, changes = CONTENDERS[name]
        family = method_from_preset(preset, changes)
        return sum(follow_stream(family, make_stream(replace(GAP, gap_frames=20), seed)).recovered for seed in range(3))

    assert recovered("memory") >= 10
    assert recovered("memory") > recovered("minvis")


def test_nobody_tells_queries_apart_by_their_order() -> None:
    """The same stream with its queries in another order gives the same counts."""
    frames = make_stream(GAP, 5)
    order = np.random.default_rng(0).permutation(GAP.queries)
    permuted = [
        StreamFrame(
            replace(frame.queries.take(order), mask_embeddings=frame.queries.mask_embeddings),
            frame.masks[order],
            frame.owners[order],
            frame.copies[order],
            frame.present,
            frame.away,
        )
        for frame in frames
    ]
    for preset, changes in CONTENDERS.values():
        family = method_from_preset(preset, changes)
        assert replace(follow_stream(family, permuted), seconds=0) == replace(follow_stream(family, frames), seconds=0)


def test_the_command_writes_figures_for_every_contender_and_the_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = StreamSettings(before_frames=5, after_frames=5)
    monkeypatch.setattr(stress_module, "SCENARIOS", {"different": (short, (1, 3)), "crossing": (short, (0,))})
    out, plot = tmp_path / "stress.json", tmp_path / "stress.png"
    monkeypatch.setattr("sys.argv", ["stress", "--out", str(out), "--plot", str(plot), "--streams", "2"])
    main()
    report = json.loads(out.read_text())
    assert report["machine"]["cpu"]
    assert set(report["scenarios"]["different"]["all"]) == set(CONTENDERS)
    one = report["scenarios"]["different"]["by_gap_frames"]["3"]["minvis"]
    assert one["counts"]["frames"] == 2 * 13
    assert one["us_a_frame"] > 0
    assert report["scenarios"]["crossing"]["all"]["minvis"]["recovered"]["value"] is None
    assert plot.read_bytes()[:4] == b"\x89PNG"


def test_the_same_seed_gives_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    short = StreamSettings(before_frames=4, after_frames=4, gap_frames=2)
    monkeypatch.setattr(stress_module, "SCENARIOS", {"different": (short, (2,))})
    monkeypatch.setattr(stress_module, "CONTENDERS", {"minvis": CONTENDERS["minvis"], "ctvis": CONTENDERS["ctvis"]})
    first, second = (stress(2, seed=7)["different"]["all"] for _ in range(2))
    for name in first:
        assert {**first[name], "us_a_frame": 0} == {**second[name], "us_a_frame": 0}
