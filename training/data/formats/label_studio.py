"""Label Studio's json of tasks: brush masks and polygons of pictures, as annotations or predictions.

Read: of each task the annotation that was not cancelled, else its prediction. Written: one task a frame with brush
masks, as predictions where a network reported them, and label_config.xml for the project. Label Studio has no tracks of
masks: what visrt writes has the name of the video and the number of the frame in the task's data, and the track in the
ids of regions, which the tool keeps, so that a corrected export becomes the video again.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.sax.saxutils import quoteattr, unescape

from visrt.runtime.errors import DataError
from visrt.runtime.masks import Rle, decode
from visrt.runtime.sinks.output import write_atomically
from visrt.runtime.sources.image_folder import IMAGE_SUFFIXES
from visrt.training.data.annotation_files import size_in
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track
from visrt.training.data.formats.brush import brush_of_mask, mask_of_brush
from visrt.training.data.formats.placing import Pictures, empty_masks, placed, track_ids, write_json
from visrt.training.data.formats.shapes import Labels, Shown, settled
from visrt.training.data.json_faults import Faults, object_at, short
from visrt.training.data.picture_folder import PictureFolder, ReadRules, complete_videos
from visrt.training.data.picture_size import size_of
from visrt.training.data.segmentations import area_px, rle_of, rle_of_box, rle_of_mask

__all__ = ["TASKS", "is_tasks", "label_studio_set", "write_label_studio"]

TASKS = "tasks.json"
CONFIG = "label_config.xml"
IMAGES = "images"
KINDS = {"brushlabels": "mask", "polygonlabels": "polygon", "rectanglelabels": "box"}
SHAPES = {"brush": "mask", "polygon": "polygon", "rectangle": "box"}
"""Tags of shapes whose labels are in a result of their own, of type labels and with the same id."""
LABELS = (*KINDS, "labels")
QUOTES = {"&quot;": '"'}
TRACK = "track"
"""Before the number of a track in the ids of its regions."""
HASHED = r"^[0-9a-f]{8}-"
"""What the server puts before the name of a picture that was uploaded."""


def is_tasks(values: object) -> bool:
    """Whether json is a list of tasks of Label Studio."""
    return isinstance(values, list) and bool(values) and all(isinstance(one, dict) and "data" in one for one in values)


@dataclass(frozen=True)
class _Region:
    """A shape with its id, label, and kind: mask, polygon or box."""

    id: str
    label: object
    kind: str
    value: dict[str, Any]
    size: tuple[int, int]


def label_studio_set(path: Path, tasks: list[dict[str, Any]], pictures: Path, rules: ReadRules) -> AnnotatedSet:
    """The set in `tasks`, read from `path`, with its pictures below the folder `pictures`."""
    faults, unread = Faults(path, rules.skip_faulty), Counter[str]()
    labels = Labels(known=_configured(path.parent / CONFIG))
    folder = PictureFolder(pictures)
    frames: dict[object, list[_Frame]] = defaultdict(list)
    for i, task in enumerate(tasks):
        where = f"{path}: [{i}]"
        with faults.entry():
            frame = _frame(task, where, folder, labels, unread, faults)
            data = task["data"]
            is_frame = isinstance(data.get("video"), str) and isinstance(data.get("frame"), int)
            frames[data["video"] if is_frame else i].append(frame)
    remarks = faults.remarks()
    videos = [
        _video(number, key, sorted(of_video, key=lambda frame: frame.number))
        for number, (key, of_video) in enumerate(frames.items(), start=1)
    ]
    if not videos:
        raise DataError(f"{path}: no task is left without a fault")
    return complete_videos(settled(path, videos, labels, unread, remarks), folder, path, rules.missing)


def _configured(config: Path) -> list[str]:
    """The labels of the labelling interface that lies next to the tasks, if it does."""
    if not config.is_file():
        return []
    return [unescape(value, QUOTES) for value in re.findall(r'<Label\s+value="([^"]+)"', config.read_text())]


@dataclass(frozen=True)
class _Frame:
    """One task. number: of the frame in its video."""

    number: int
    picture: Path
    size: tuple[int, int]
    regions: list[tuple[str, int, Rle, bool]]


def _frame(
    task: dict[str, Any], where: str, folder: PictureFolder, labels: Labels, unread: Counter[str], faults: Faults
) -> _Frame:
    data = object_at(task["data"], f"{where}.data")
    picture = _picture(data, f"{where}.data", folder)
    results = _results(task)
    regions, size = [], None
    for region in _regions(results, where, unread, faults):
        with faults.entry():
            if size is not None and region.size != size:
                raise DataError(f"{where}: its regions are of pictures of different sizes; expected one")
            size = region.size
            label = labels.of(region.label, f"{where}.{region.id}")
            regions.append((region.id, label, _mask(region, f"{where}.{region.id}"), region.kind == "box"))
    number = data.get("frame")
    if size is None:
        size = size_of(picture) if picture.is_file() else (1, 1)
    return _Frame(number if isinstance(number, int) else 0, picture, size, regions)


def _results(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of the last annotation that was not cancelled, else of the last prediction."""
    for key, skipped in (("annotations", "was_cancelled"), ("completions", "was_cancelled"), ("predictions", "")):
        entries = [one for one in task.get(key) or [] if isinstance(one, dict) and not one.get(skipped)]
        if entries:
            results = entries[-1].get("result")
            return [one for one in results if isinstance(one, dict)] if isinstance(results, list) else []
    return []


def _regions(results: list[dict[str, Any]], where: str, unread: Counter[str], faults: Faults) -> Iterator[_Region]:
    """Results of one id are one region: shape and labels may come in a result each."""
    by_id: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for i, one in enumerate(results):
        by_id[str(one.get("id") or f"result[{i}]")].append(one)
    for identity, parts in by_id.items():
        kinds = [str(one.get("type")) for one in parts]
        shaped = [
            (one, kind) for one, name in zip(parts, kinds, strict=True) if (kind := _kind(name, one.get("value")))
        ]
        if not shaped:
            unread[kinds[0]] += 1
            continue
        [(one, kind), *_] = shaped
        with faults.entry():
            sides = {"height": one.get("original_height"), "width": one.get("original_width")}
            size = size_in(sides, f"{where}.{identity}.original")
            label = next((name for part in parts if (name := _label(part)) is not None), None)
            yield _Region(identity, label, kind, one["value"], size)


def _kind(name: str, value: object) -> str:
    """Mask, polygon or box, of a result of type `name`; "" for what is none."""
    if not isinstance(value, dict):
        return ""
    return KINDS.get(name) or SHAPES.get(name) or (_shape_of(value) if name == "labels" else "")


def _shape_of(value: dict[str, Any]) -> str:
    """The kind of shape in the value of a result of type labels."""
    keys = {"rle": "mask", "points": "polygon", "width": "box"}
    return next((kind for key, kind in keys.items() if key in value), "")


def _label(result: dict[str, Any]) -> object:
    value = result.get("value")
    if isinstance(value, dict):
        for key in LABELS:
            names = value.get(key)
            if isinstance(names, list) and names:
                return names[0]
    return None


def _mask(region: _Region, where: str) -> Rle:
    height, width = region.size
    if region.kind == "mask":
        return rle_of_mask(mask_of_brush(region.value.get("rle"), f"{where}.rle", region.size))
    if region.kind == "polygon":
        points = region.value.get("points")
        if not isinstance(points, list) or not all(isinstance(one, list) and len(one) == 2 for one in points):
            raise DataError(f"{where}.points: expected corners [x, y] in percent; found {short(points)}")
        flat = [_part(value, side, where) for one in points for value, side in zip(one, (width, height), strict=True)]
        return rle_of([flat], f"{where}.points", region.size)
    x, y, w, h = (
        _part(region.value.get(key), side, f"{where}.{key}")
        for key, side in (("x", width), ("y", height), ("width", width), ("height", height))
    )
    return rle_of_box([x, y, w, h], where, region.size)


def _part(value: object, side: int, where: str) -> float:
    """Percent of a side in pixels."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: expected a number of percent; found {short(value)}")
    return float(value) * side / 100


def _picture(data: Mapping[str, Any], where: str, folder: PictureFolder) -> Path:
    """The picture that the task's data name, as a path below the server's folder, an upload or an address."""
    texts = [text for text in data.values() if isinstance(text, str)]
    names = [unquote(text).split("?d=")[-1].split("?")[0].split("://")[-1] for text in texts]
    name = next((name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES), None)
    if name is None:
        raise DataError(f"{where}: expected the name of a picture; found {short(dict(data))}")
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    shorter = ["/".join(parts[i:]) for i in range(len(parts))]
    for candidate in (*shorter, re.sub(HASHED, "", parts[-1])):
        if candidate in folder:
            return folder.find(candidate, where)
    return folder.find(re.sub(HASHED, "", parts[-1]), where)


def _video(number: int, key: object, frames: list[_Frame]) -> tuple[AnnotatedVideo, list[Shown]]:
    """The frames of a video, or a photo; regions of one id are one object."""
    sizes = {frame.size for frame in frames}
    if len(sizes) > 1:
        raise DataError(f"the frames of {key} are of {len(sizes)} sizes; a video has one")
    tracks: dict[tuple[str, int, bool], dict[int, Rle]] = defaultdict(dict)
    for t, frame in enumerate(frames):
        for identity, label, mask, is_box in frame.regions:
            tracks[identity, label, is_box][t] = mask
    shown = [
        Shown(Track(label, tuple(map(masks.get, range(len(frames)))), id=_number(identity)), is_box)
        for (identity, label, is_box), masks in tracks.items()
    ]
    name = key if isinstance(key, str) else frames[0].picture.stem
    return AnnotatedVideo(number, name, tuple(frame.picture for frame in frames), frames[0].size, ()), shown


def _number(identity: str) -> int | None:
    """The number of a track in the id of its regions, as visrt writes it."""
    digits = identity.removeprefix(TRACK)
    return int(digits) if identity.startswith(TRACK) and digits.isdecimal() else None


def write_label_studio(annotated: AnnotatedSet, folder: Path, pictures: Pictures) -> list[str]:
    names = placed(annotated, folder / IMAGES, pictures)
    reported = any(track.score < 1 for video in annotated.videos for track in video.tracks)
    ids, remarks = track_ids(annotated)
    tasks = []
    for video in annotated.videos:
        for t, name in enumerate(names[video.id]):
            data: dict[str, Any] = {"image": f"/data/local-files/?d={IMAGES}/{name}"}
            if len(video.pictures) > 1:
                data |= {"video": Path(name).parent.name, "frame": t}
            numbered = zip(ids[video.id], video.tracks, strict=True)
            seen = [(k, track, mask) for k, track in numbered if (mask := track.masks[t]) is not None]
            results = [_result(k, track, mask, annotated.classes) for k, track, mask in seen if area_px(mask)]
            tasks.append({"data": data, "predictions" if reported else "annotations": [{"result": results}]})
    write_json(folder / TASKS, tasks)
    write_atomically(folder / CONFIG, [_config(annotated).encode()])
    tracks = [track for video in annotated.videos for track in video.tracks]
    crowds, empty = sum(track.crowd for track in tracks), sum(map(empty_masks, tracks))
    return [
        *remarks,
        *([f"{empty} masks without a pixel are left out"] if empty else []),
        *([f"{crowds} crowds became objects, as Label Studio knows none"] if crowds else []),
    ]


def _result(k: int, track: Track, mask: Rle, classes: tuple[str, ...]) -> dict[str, Any]:
    height, width = mask["size"]
    scored = {} if track.score == 1.0 else {"score": track.score}
    return {
        "id": f"{TRACK}{k}",
        "type": "brushlabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": brush_of_mask(decode(mask)), "brushlabels": [classes[track.label]]},
        **scored,
    }


def _config(annotated: AnnotatedSet) -> str:
    """The labelling interface of a project for these tasks."""
    labels = "".join(f"<Label value={quoteattr(name)}/>" for name in annotated.classes)
    image = '<Image name="image" value="$image" zoom="true"/>'
    return f'<View>{image}<BrushLabels name="label" toName="image">{labels}</BrushLabels></View>\n'
