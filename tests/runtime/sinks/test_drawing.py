"""Labels in every script, trails, styles, PNGs of ids and lines that are counted."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageFont
from pycocotools import mask as coco_mask

from visrt.runtime.errors import UsageError
from visrt.runtime.results import FrameResult, TrackedObject
from visrt.runtime.sinks import labels
from visrt.runtime.sinks.files_of_frames import Crops, MaskPictures, MotRows
from visrt.runtime.sinks.labels import font_for, label_chip
from visrt.runtime.sinks.line_count import LineCount, line
from visrt.runtime.sinks.overlay import OverlayStyle, Trails, colour_of, draw

SIZE = (120, 160)


def shown(identity: int, x: int, y: int, side: int = 30, label: int = 0, score: float = 0.5, name: str = "") -> Any:
    mask = np.zeros(SIZE, np.uint8)
    mask[y : y + side, x : x + side] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    rle = {"size": list(SIZE), "counts": encoded["counts"].decode()}
    return TrackedObject(identity, label, score, (x, y, side, side), rle, name)  # type: ignore[arg-type]


def result(index: int, *objects: TrackedObject) -> FrameResult:
    return FrameResult(index, index / 10, SIZE, objects)


def grey() -> NDArray[np.uint8]:
    return np.full((*SIZE, 3), 100, np.uint8)


@pytest.fixture
def clean() -> Any:
    """What was looked up of fonts is forgotten, before and after."""

    def forget() -> None:
        for cached in (labels._font_with, labels._font, labels._system_fonts, labels.label_chip):
            cached.cache_clear()

    forget()
    yield
    forget()


def has_cyrillic() -> bool:
    return any("dejavu" in path.lower() or "noto" in path.lower() for path in labels._system_fonts())


CYRILLIC = pytest.mark.skipif(not has_cyrillic(), reason="no font of this machine has other letters than Latin")


@CYRILLIC
@pytest.mark.parametrize("name", ["собака", "машина", "Straße", "Ωμέγα"])
def test_a_font_of_the_system_has_letters_that_the_built_in_one_lacks(name: str, clean: None) -> None:
    font = font_for(name)
    assert font is not None
    loaded = ImageFont.truetype(font, 20) if font else ImageFont.load_default(20)
    assert isinstance(loaded, ImageFont.FreeTypeFont)
    absent = bytes(loaded.getmask(labels.ABSENT, mode="1"))
    assert not [letter for letter in name if bytes(loaded.getmask(letter, mode="1")) == absent]


def test_latin_names_are_in_the_built_in_font(clean: None) -> None:
    assert font_for("person 7  0.93") == labels.BUILT_IN


@pytest.mark.parametrize("name", ["собака", "狗", "כלב"])
def test_where_no_font_has_the_letters_the_number_of_the_class_is_shown_and_it_is_said_once(
    name: str, clean: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(labels, "_system_fonts", lambda: ())
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            named = draw(grey(), result(0, shown(0, 60, 60, label=4, name=name)))
    assert len(caplog.records) == 1
    assert "the number of a class is shown" in caplog.records[0].getMessage()
    assert np.array_equal(named, draw(grey(), result(0, shown(0, 60, 60, label=4, name="class 4"))))


@CYRILLIC
def test_a_font_that_is_given_is_used(clean: None) -> None:
    font = next(path for path in labels._system_fonts() if "dejavu" in path.lower() or "noto" in path.lower())
    built_in, given = label_chip("person", (0, 0, 0), 24), label_chip("person", (0, 0, 0), 24, font)
    assert built_in.shape != given.shape or not np.array_equal(built_in, given)
    assert OverlayStyle(font=font).font == font


@pytest.mark.parametrize("name", ["person", "dog", pytest.param("собака", marks=CYRILLIC)])
def test_the_label_is_the_name_where_a_font_has_its_letters(name: str, clean: None) -> None:
    drawn = draw(grey(), result(0, shown(3, 10, 60, name=name)))
    chip = label_chip(f"{name} 3  0.50", colour_of(3), 13)
    assert np.array_equal(drawn[60 - chip.shape[0] : 60, 10 : 10 + chip.shape[1]], chip)


def test_names_of_objects_come_before_the_list_and_the_list_before_numbers() -> None:
    by_list = draw(grey(), result(0, shown(0, 60, 60)), ["dog"])
    by_name = draw(grey(), result(0, shown(0, 60, 60, name="dog")), ["cat"])
    assert np.array_equal(by_list, by_name)
    assert not np.array_equal(by_name, draw(grey(), result(0, shown(0, 60, 60))))
    assert np.array_equal(
        draw(grey(), result(0, shown(0, 60, 60))), draw(grey(), result(0, shown(0, 60, 60)), ["class 0"])
    )


def test_a_style_draws_what_it_says() -> None:
    one = result(0, shown(2, 60, 60))
    nothing = OverlayStyle(masks=False, labels=False)
    assert np.array_equal(draw(grey(), one, style=nothing), grey())
    boxed = draw(grey(), one, style=OverlayStyle(masks=False, labels=False, boxes=True))
    changed = (boxed != grey()).any(axis=2)
    assert changed[60, 60:90].all()
    assert not changed[65:85, 65:85].any()
    full = draw(grey(), one, style=OverlayStyle(opacity=1, labels=False))
    assert np.abs(full[75, 75].astype(int) - colour_of(2)).max() <= 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"opacity": 1.5}, "opacity is 1.5"), ({"trail_frames": 1}, "trail_frames"), ({"font": "no.ttf"}, "not a font")],
)
def test_a_style_that_cannot_be_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        OverlayStyle(**settings)


def test_trails_are_as_long_as_they_may_be_and_end_with_their_object() -> None:
    trails = Trails(frames=4)
    for at in range(10):
        objects = [shown(0, 10 + 5 * at, 20)] + ([shown(1, 100, 60)] if at < 3 else [])
        trails.add(result(at, *objects))
    assert trails.of(0) == [(25 + 5 * at, 35) for at in range(6, 10)]
    assert trails.of(1) == []
    assert len(trails._points) == 1, "what is gone is forgotten"

    style = OverlayStyle(masks=False, labels=False, trails=True)
    drawn = draw(grey(), result(9, shown(0, 55, 20)), style=style, trails=trails)
    changed = (drawn != grey()).any(axis=2)
    assert changed[35, 56:70].all()
    assert not changed[35, :50].any()


def test_pictures_of_ids_show_the_higher_score_and_hold_large_ids(tmp_path: Path) -> None:
    sink = MaskPictures(tmp_path / "masks")
    sink.write(result(3, shown(4, 10, 10, score=0.9), shown(7, 20, 20, score=0.4)), grey())
    sink.write(result(4, shown(254, 10, 10)), grey())
    sink.write(result(5, shown(255, 10, 10), shown(1, 60, 60)), grey())
    sink.close()
    first, last_indexed, large = (PillowImage.open(tmp_path / "masks" / f"{at:06}.png") for at in (3, 4, 5))
    ids = np.asarray(first)
    assert (ids[15, 15], ids[25, 25], ids[45, 45], ids[0, 0]) == (5, 5, 8, 0)
    palette = first.getpalette()
    assert palette is not None
    assert tuple(palette[15:18]) == colour_of(4)
    assert (last_indexed.mode, int(np.asarray(last_indexed).max())) == ("P", 255)
    assert large.mode.startswith("I")
    assert {*np.unique(np.asarray(large)).tolist()} == {0, 2, 256}


def test_rows_and_crops_of_several_objects(tmp_path: Path) -> None:
    rows, crops = MotRows(tmp_path / "mot.txt"), Crops(tmp_path / "crops")
    image = np.arange(SIZE[0] * SIZE[1] * 3, dtype=np.uint32).reshape(*SIZE, 3).astype(np.uint8)
    for at, name in ((0, "dog/wolf"), (2, "cat")):
        frame = result(at, shown(0, 5, 6, name=name), TrackedObject(9, 1, 1 / 3, (1, 2, 3, 4), None, "box"))
        rows.write(frame, image)
        crops.write(frame, image)
    rows.close()
    crops.close()
    assert (tmp_path / "mot.txt").read_text().splitlines() == [
        f"{frame},{rest}" for frame in (1, 3) for rest in ("1,5,6,30,30,0.5,-1,-1,-1", "10,1,2,3,4,0.333333,-1,-1,-1")
    ]
    found = sorted(str(path.relative_to(tmp_path / "crops")) for path in (tmp_path / "crops").rglob("*.jpg"))
    assert found == [f"{folder}/{at:06}.jpg" for folder in ("0-dog_wolf", "9-box") for at in (0, 2)]
    with PillowImage.open(tmp_path / "crops/9-box/000000.jpg") as crop:
        assert crop.size == (3, 4)


def counted(text: str, *paths: list[tuple[int, int]]) -> dict[str, Any]:
    """The counts of objects of class "car" whose boxes of 30 pixels go through these corners."""
    count = LineCount(line(text))
    for at in range(max(map(len, paths))):
        objects = [shown(one, *path[at], name="car") for one, path in enumerate(paths) if at < len(path)]
        count.write(result(at, *objects), grey())
    found: dict[str, Any] = count.summary()["counts"]
    return found


def test_a_line_counts_ways_and_each_object_once() -> None:
    across = [(20, 30), (60, 30), (100, 30)]
    assert counted("80,0,80,120", across, across[::-1]) == {"car": {"to_right": 1, "to_left": 1}}
    assert counted("80,120,80,0", across) == {"car": {"to_right": 1, "to_left": 0}}
    trembling = [(63, 30), (67, 30)] * 5
    assert counted("80,0,80,120", trembling) == {"car": {"to_right": 1, "to_left": 1}}
    assert counted("80,60,80,120", across) == {}, "past the end of the line"
    assert counted("0,0,160,120", [(0, 80), (100, 5)], [(90, 0), (120, 5)]) == {"car": {"to_right": 0, "to_left": 1}}
    gone = [(20, 30), (25, 30)]
    assert counted("80,0,80,120", gone) == {}


@pytest.mark.parametrize("text", ["170,0,170,10", "0,0,10,121", "-1,0,5,5"])
def test_a_line_outside_the_first_frame_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="outside the picture, which is 160 wide and 120 high"):
        LineCount(line(text)).write(result(0), grey())


def test_of_an_endless_stream_no_more_than_so_many_objects_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visrt.runtime.sinks.line_count.REMEMBERED", 3)
    monkeypatch.setattr("visrt.runtime.sinks.files_of_frames.REMEMBERED", 3)
    count, crops = LineCount(line("80,0,80,120")), Crops(tmp_path)
    for at in range(12):
        objects = [shown(0, 20 + 10 * at, 30), shown(at + 1, 0, 0)]
        for sink in (count, crops):
            sink.write(result(at, *objects), grey())
    assert count.summary()["counts"] == {"class 0": {"to_right": 0, "to_left": 1}}, "one that stays is known"
    assert len(count._seen) == len(crops._made) == 3
    assert len(list(tmp_path.iterdir())) == 13, "a folder an object"
