"""`visrt.track`: results with their image from one call, changed while they come, in a loop or awaited."""

from __future__ import annotations

import asyncio
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_bundle
from fake_sources import FakeSource, ListSink
from fakes import colour_session, patches
from written_clips import red_square, write_clip

import visrt
from visrt.runtime.errors import OutputError, SettingsError, SourceError, UsageError
from visrt.runtime.results import FrameResult, Shown, TrackedObject, labels_of
from visrt.runtime.session import SessionSettings

FRAMES = 12


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "red")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "street.mp4", FRAMES)


def moving(index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return patches((128, 192), (0, 8 + 4 * index, 16, 48, 40), (1, 120 - 4 * index, 72, 40, 40))


def test_results_have_image_names_and_arrays(bundle: Path, clip: Path) -> None:
    results = list(visrt.track(clip, bundle, threads=1))
    assert [(one.index, round(one.time_s, 3)) for one in results] == [(at, at / 10) for at in range(FRAMES)]
    for at, result in enumerate(results):
        assert result.image is not None
        assert np.abs(result.image.astype(int) - red_square(at)).mean() < 8
        [found] = result.objects
        x, y, width, height = found.box
        assert (found.name, found.xyxy) == ("person", (x, y, x + width, y + height))
        assert result.boxes.tolist() == [list(map(float, found.xyxy))]
        assert (result.ids.tolist(), result.labels.tolist()) == ([0], [0])
        assert result.scores[0] == pytest.approx(found.score)
        assert np.array_equal(result.masks, found.mask()[None])


def test_without_objects_arrays_are_empty_and_keep_their_axes() -> None:
    empty = FrameResult(0, 0.0, (4, 6), ())
    assert [empty.boxes.shape, empty.masks.shape, empty.ids.shape] == [(0, 4), (0, 4, 6), (0,)]
    assert [str(empty.labels.dtype), str(empty.masks.dtype)] == ["int64", "bool"]


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_a_part_of_the_source_is_given_with_its_numbers(bundle: Path, clip: Path, in_flight: int) -> None:
    options = {"start": 0.2, "end": "11f", "every": 3, "in_flight": in_flight}
    results = list(visrt.track(clip, bundle, threads=1, **options))  # type: ignore[arg-type]
    assert [one.index for one in results] == [2, 5, 8]
    for result in results:
        assert result.image is not None
        assert np.abs(result.image.astype(int) - red_square(result.index)).mean() < 8


def test_frames_of_a_program_are_a_source() -> None:
    session = colour_session()
    plain = list(visrt.track((moving(at) for at in range(4)), session=session))
    assert [one.ids.tolist() for one in plain] == [[0, 1]] * 4
    timed = list(visrt.track([(moving(at), 60.0 * at) for at in range(3)], session=session))
    assert [(one.time_s, one.ids.tolist()) for one in timed] == [(0, [0, 1]), (60, [0, 1]), (120, [0, 1])]
    with pytest.raises(UsageError, match="frame 0 is a str"):
        list(visrt.track(["a.png"], session=session))  # type: ignore[list-item]
    with pytest.raises(UsageError, match="source is a float"):
        visrt.track(2.5, session=session)  # type: ignore[arg-type]


def test_classes_and_scores_change_while_it_runs() -> None:
    session, seen = colour_session(), []
    tracking = visrt.track((moving(at) for at in range(6)), session=session, classes="person")
    for result in tracking:
        seen.append(result.ids.tolist())
        if result.index == 1:
            session.show()
        if result.index == 3:
            session.show(classes=["vehicle"], score=0.1)
    assert seen == [[1], [1], [0, 1], [0, 1], [0], [0]]


def test_thresholds_change_without_a_new_engine_and_objects_stay() -> None:
    session = colour_session()
    first = session.step(moving(0))[0]
    session.change(birth_score=0.9, keep_score=0.3, max_objects=50)
    second = session.step(moving(1))[0]
    assert first.ids.tolist() == second.ids.tolist() == [0, 1]
    assert (session.method.settings.birth_score, session.method.settings.max_objects) == (0.9, 50)
    assert session.events.cuts == 0

    session.change(keep_score=1.0, birth_score=1.0)
    assert session.step(moving(2))[0].objects == ()
    session.change(keep_score=0.4, birth_score=0.5)
    assert session.method.settings.max_objects == 50, "what was changed before stays"


def test_a_setting_that_shapes_the_memory_ends_all_tracks() -> None:
    session = colour_session()
    session.step(moving(0))
    session.change(similarity="matching_cost")
    assert session.step(moving(1))[0].ids.tolist() == [2, 3]
    assert session.events.cuts == 1


@pytest.mark.parametrize(
    ("preset", "changes", "cuts"),
    [
        ("ctvis", {"show_score": 0.5, "lost_s": 9.0}, 0),
        ("ctvis", {"memory_frames": 3}, 1),
        ("memory", {"nms_iou": 0.9}, 0),
        ("ctvis", {"nms_iou": 1.0}, 1),
    ],
)
def test_every_method_goes_on_after_a_change(
    bundle: Path, clip: Path, preset: str, changes: dict[str, Any], cuts: int
) -> None:
    with visrt.Session.open(bundle, threads=1, preset=preset) as session:
        tracking = visrt.track(clip, session=session)
        for result in tracking:
            if result.index == 5:
                session.change(**changes)
        assert session.events.cuts == cuts
        assert [session.step(red_square(at))[0].size for at in range(2)] == [(48, 64)] * 2


def test_changes_that_cannot_be_are_refused_and_change_nothing() -> None:
    session = colour_session(SessionSettings(in_flight=2))
    before = session.method
    with pytest.raises(SettingsError, match="birth_scor"):
        session.change(birth_scor=0.5)
    session.step(moving(0))
    with pytest.raises(UsageError, match=r"change: results of 1 calls are not taken yet; call flush\(\) first"):
        session.change(birth_score=0.5)
    assert session.method is before
    session.flush()
    with pytest.raises(UsageError, match="nearest: person"):
        session.show(classes="persom")
    with pytest.raises(UsageError, match="score is 2"):
        session.show(score=2)
    assert session.shown == Shown(session.shown.classes)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("persn,bus", "'persn' \\(nearest: person\\); 'bus'\\. It has person, Car"),
        (["car"], "'car' \\(nearest: Car\\)"),
        ("", "''"),
        ([], "no name was given"),
    ],
)
def test_classes_that_the_bundle_lacks_are_named_with_the_nearest(chosen: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        labels_of(("person", "Car"), chosen)
    assert labels_of(("person", "Car"), " Car , person ") == frozenset({0, 1})
    assert labels_of(("person", "Car"), None) is None


def test_sinks_are_written_and_closed(bundle: Path, clip: Path, tmp_path: Path) -> None:
    journal, count = visrt.Journal(tmp_path / "a.jsonl"), visrt.LineCount(visrt.line("20,0,20,48"))
    video = visrt.OverlayVideo(tmp_path / "a.mp4", fps=10, style=visrt.OverlayStyle(boxes=True))
    for result in visrt.track(clip, bundle, threads=1, sinks=[journal, count, video], every=2):
        if result.index == 4:
            video.style = visrt.OverlayStyle(labels=False)
    lines = list(visrt.read_journal(tmp_path / "a.jsonl"))
    assert [line["frame"] for line in lines] == list(range(0, FRAMES, 2))
    assert {found["name"] for line in lines for found in line["objects"]} == {"person"}
    assert count.summary()["counts"] == {"person": {"to_right": 0, "to_left": 1}}
    assert len(list(visrt.read_video(tmp_path / "a.mp4"))) == FRAMES // 2


def test_files_are_written_by_the_names_of_the_command(bundle: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tracking = visrt.track(
        clip,
        bundle,
        threads=1,
        out=out,
        overlay=True,
        masks="png",
        crops=True,
        mot=True,
        every=2,
        style=visrt.OverlayStyle(trails=True),
        count_line=["20,0,20,48", visrt.line("0,40,64,40")],
    )
    assert len(list(tracking)) == FRAMES // 2
    assert {path.name for path in out.iterdir()} == {"results.jsonl", "overlay.mp4", "masks", "crops", "mot.txt"}
    assert len(list((out / "masks").iterdir())) == len(list((out / "crops/0-person").iterdir())) == FRAMES // 2
    assert [one["counts"] for one in tracking.line_counts] == [{"person": {"to_right": 0, "to_left": 1}}, {}]
    with pytest.raises(OutputError, match="already holds"):
        visrt.track(clip, bundle, threads=1, out=out)
    assert len(list(visrt.track(clip, bundle, threads=1, out=out, overwrite=True, limit=1))) == 1
    assert not (out / "mot.txt").exists()


def test_what_ends_early_closes_everything(bundle: Path, clip: Path) -> None:
    session = colour_session()
    sink, source = ListSink(), FakeSource(9)
    with visrt.track(source, session=session, sinks=[sink]) as tracking:
        next(tracking)
    assert (sink.closed, source.closed, len(sink.got)) == (True, True, 1)
    assert list(tracking) == []

    failing = ListSink(fails_at=2)
    with pytest.raises(OutputError, match="disk full"):
        list(visrt.track(FakeSource(9), session=session, sinks=[failing]))
    assert failing.closed
    with pytest.raises(SourceError, match="unplugged"):
        list(visrt.track(FakeSource(3, then=SourceError("unplugged")), session=session))
    session.step(moving(0))  # a session that was given stays open

    own = visrt.track(clip, bundle, threads=1, limit=2)
    assert len(list(own)) == 2
    with pytest.raises(UsageError, match="closed"):
        own.session.step(red_square(0))


def test_a_session_begins_a_new_stream_each_time() -> None:
    session = colour_session()
    for _ in range(2):
        results = list(visrt.track([moving(0), moving(1)], session=session))
        assert [one.ids.tolist() for one in results] == [[0, 1]] * 2


def test_a_cut_of_the_source_ends_tracks() -> None:
    frames = [visrt.VideoFrame(at, at / 10, moving(at % 3), cut=at == 3) for at in range(6)]
    for in_flight in (1, 2):
        session = colour_session(SessionSettings(in_flight=in_flight))
        results = list(visrt.track(frames, session=session))
        assert [one.ids.tolist() for one in results] == [[0, 1]] * 3 + [[2, 3]] * 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": 0}, "limit is 0"),
        ({"start": 5, "end": 2}, "not after the start"),
        ({"every": 0}, "every is 0"),
        ({"preset": "ctvis"}, "of the session that is given"),
        ({"classes": "dog"}, "'dog'"),
        ({"masks": "png", "mot": True}, "masks, mot: no folder"),
        ({"count_line": "1,1"}, "x,y,x,y"),
        ({"value_range": (3, 1)}, "black below white"),
    ],
)
def test_what_cannot_be_is_refused_by_the_call(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        visrt.track([moving(0)], session=colour_session(), **options)


def test_of_a_live_source_the_newest_frame_is_taken() -> None:
    source = FakeSource(400, live=True)
    results = list(visrt.track(source, session=colour_session()))
    indices = [one.index for one in results]
    assert indices == sorted(set(indices))
    assert indices[-1] == 399
    assert source.closed


@dataclass
class Ticking:
    """An event loop that is not held up."""

    ticks: int = 0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0.001)
            self.ticks += 1


def test_results_can_be_awaited(bundle: Path, clip: Path) -> None:
    async def main() -> tuple[list[int], int]:
        ticking = Ticking()
        other = asyncio.create_task(ticking.run())
        found = [result.index async for result in visrt.track_async(clip, bundle, threads=1, every=2)]
        other.cancel()
        return found, ticking.ticks

    indices, ticks = asyncio.run(main())
    assert indices == list(range(0, FRAMES, 2))
    assert ticks > 3


def test_what_is_awaited_can_be_left(bundle: Path, clip: Path) -> None:
    source = FakeSource(50)

    async def main() -> list[int]:
        seen = []
        results = visrt.track_async(source, session=colour_session())
        async for result in results:
            seen.append(result.index)
            if len(seen) == 4:
                break
        await results.aclose()
        return seen

    assert asyncio.run(main()) == [0, 1, 2, 3]
    assert source.closed


@pytest.fixture
def supervision(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The package, or where it is not installed a stand-in that keeps what it is given."""
    try:
        import supervision
    except ImportError:
        supervision = types.ModuleType("supervision")
        monkeypatch.setattr(supervision, "Detections", types.SimpleNamespace, raising=False)
        monkeypatch.setitem(sys.modules, "supervision", supervision)
    assert isinstance(supervision, types.ModuleType)
    return supervision


def test_results_become_detections(supervision: types.ModuleType, bundle: Path, clip: Path) -> None:
    result = next(visrt.track(clip, bundle, threads=1))
    found = result.to_supervision()
    assert np.array_equal(found.xyxy, result.boxes)
    assert np.array_equal(found.mask, result.masks)
    assert (found.tracker_id.tolist(), found.class_id.tolist()) == ([0], [0])
    assert found.data["class_name"].tolist() == ["person"]
    boxes = FrameResult(0, 0.0, (9, 9), (TrackedObject(3, 1, 0.5, (1, 2, 3, 4), None, "vehicle"),)).to_supervision()
    assert boxes.mask is None
    assert FrameResult(0, 0.0, (9, 9), ()).to_supervision().xyxy.shape == (0, 4)


def test_without_supervision_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UsageError, match=r"needs the package supervision.*pip install"):
        FrameResult(0, 0.0, (9, 9), ()).to_supervision()
