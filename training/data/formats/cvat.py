"""CVAT's xml 1.1: "CVAT for video", whose tracks hold shapes by frame, and "CVAT for images", whose images hold shapes.

Read: polygons, masks, and boxes where there is nothing else; shapes of one group are one object, as in CVAT's own COCO
export. Written: a video as polygon tracks, as CVAT has no tracks of masks, with a group for an object of several parts;
polygons follow the edges of pixels and go around holes, so that no pixel is lost. Photos as masks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import numpy as np
from pycocotools import mask as coco_mask

from visrt.runtime.errors import DataError
from visrt.runtime.masks import Rle, decode_region
from visrt.runtime.sinks.output import write_atomically
from visrt.runtime.sources.image_folder import images_in
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track
from visrt.training.data.formats.placing import Pictures, empty_masks, folder_names, place, placed, score_remarks
from visrt.training.data.formats.shapes import Labels, Shown, settled
from visrt.training.data.formats.video_frames import frame_pictures
from visrt.training.data.json_faults import Faults, short
from visrt.training.data.picture_folder import PictureFolder, ReadRules, complete_videos
from visrt.training.data.picture_size import size_of
from visrt.training.data.segmentations import area_px, box_px, outlines_of, rle_of, rle_of_box, rle_of_mask

__all__ = ["XML", "cvat_files", "read_cvat", "write_cvat"]

XML = "annotations.xml"
IMAGES = "images"
INSTANCES = ("polygon", "mask", "box")
OTHERS = ("polyline", "points", "cuboid", "ellipse", "skeleton", "tag")

Element = ElementTree.Element


def cvat_files(folder: Path) -> tuple[Path, ...]:
    """The xml files of the tasks in `folder`: its own, or one in each of several folders."""
    own = folder / XML
    return (own,) if own.is_file() else tuple(sorted(folder.glob(f"*/{XML}")))


def read_cvat(files: Sequence[Path], images: Path | None, rules: ReadRules) -> AnnotatedSet:
    """The tasks of `files` as one set. images: the pictures or the video of a task, or a folder of those of several."""
    roots = [(file, _root(file)) for file in files]
    labels = Labels(name for _, root in roots for name in _listed(root))
    path = files[0] if len(files) == 1 else files[0].parent.parent
    unread: Counter[str] = Counter()
    videos: list[tuple[AnnotatedVideo, list[Shown]]] = []
    remarks: list[str] = []
    folders: list[PictureFolder] = []
    for file, root in roots:
        faults = Faults(file, rules.skip_faulty)
        task = _Task(file, root, labels, faults, unread)
        if root.find("track") is not None or _mode(root) == "interpolation":
            given = images if images is None or len(files) == 1 else images / file.parent.name
            videos.append(task.video(len(videos) + 1, given))
        else:
            folder = PictureFolder(images or (file.parent / IMAGES if (file.parent / IMAGES).is_dir() else file.parent))
            folders.append(folder)
            videos += task.photos(len(videos) + 1, folder)
        remarks += [*faults.remarks(), *task.remarks()]
    annotated = settled(path, videos, labels, unread, remarks)
    for folder in folders:
        annotated = complete_videos(annotated, folder, path, rules.missing)
    return annotated


def _root(file: Path) -> Element:
    try:
        text = file.read_bytes()
        if b"<!ENTITY" in text or b"<!DOCTYPE" in text:
            raise DataError(f"{file}: declares entities, which no export of CVAT does; export it again")
        root = ElementTree.fromstring(text)
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"{file}: cannot be read as xml ({error}); expected an export of CVAT") from None
    if root.tag != "annotations":
        raise DataError(
            f"{file}: begins with <{root.tag}>; expected <annotations>, as CVAT for images or for video has"
        )
    return root


def _listed(root: Element) -> Iterator[str]:
    """The labels of the task; those of the points of a skeleton have a parent."""
    for label in root.iterfind("meta//labels/label"):
        name = label.findtext("name")
        if name and label.find("parent") is None:
            yield name


def _mode(root: Element) -> str:
    return root.findtext("meta/task/mode") or root.findtext("meta/job/mode") or ""


@dataclass
class _Task:
    """One xml file while it is read. gaps: stretches between key frames that CVAT fills and the file leaves open."""

    file: Path
    root: Element
    labels: Labels
    faults: Faults
    unread: Counter[str]
    gaps: int = field(default=0)

    def photos(self, first: int, folder: PictureFolder) -> list[tuple[AnnotatedVideo, list[Shown]]]:
        photos: list[tuple[AnnotatedVideo, list[Shown]]] = []
        for i, image in enumerate(self.root.iterfind("image")):
            where = f"{self.file}: image[{i}]"
            with self.faults.entry():
                picture = folder.find(image.get("name"), f"{where}.name")
                size = _whole(image, "height", where), _whole(image, "width", where)
                objects: dict[object, list[tuple[Rle, str, bool]]] = defaultdict(list)
                for k, shape in enumerate(image):
                    self._add(objects, shape, f"{where}.{shape.tag}[{k}]", size, k)
                shown = [self._photographed(parts, size) for parts in objects.values()]
                photos.append((AnnotatedVideo(first + len(photos), picture.stem, (picture,), size, ()), shown))
        if not photos:
            raise DataError(f"{self.file}: holds neither an image nor a track")
        return photos

    def _add(
        self,
        objects: dict[object, list[tuple[Rle, str, bool]]],
        shape: Element,
        where: str,
        size: tuple[int, int],
        place: object,
    ) -> None:
        """The shape of a photo, to those of its group and label."""
        if shape.tag not in INSTANCES:
            self.unread[shape.tag] += shape.tag in OTHERS
            return
        with self.faults.entry():
            label = shape.get("label") or ""
            self.labels.of(label, where)
            group = shape.get("group_id", "0")
            key: tuple[object, ...] = (place,) if group in ("", "0") else (group, label, shape.tag == "box")
            mask = _mask(shape, where, size)
            objects[key].append((mask, label, shape.tag == "box"))

    def _photographed(self, parts: list[tuple[Rle, str, bool]], size: tuple[int, int]) -> Shown:
        label = self.labels.of(parts[0][1], str(self.file))
        return Shown(Track(label, (_union([mask for mask, _, _ in parts], size),)), is_box=parts[0][2])

    def video(self, number: int, images: Path | None) -> tuple[AnnotatedVideo, list[Shown]]:
        """The tracks over all frames of the task, those without an object too."""
        tracks = list(self.root.iterfind("track"))
        frames_of = [shape.get("frame") or "" for track in tracks for shape in track]
        annotated = {int(text) for text in frames_of if text.isdecimal()}
        frames = self._frames(annotated)
        pictures = _pictures(self.file, images, frames, annotated)
        numbers = sorted(pictures)
        size = self._size(pictures[numbers[0]])
        objects: dict[object, list[tuple[dict[int, Rle], str, bool]]] = defaultdict(list)
        for i, track in enumerate(tracks):
            where = f"{self.file}: track[{i}]"
            with self.faults.entry():
                label = track.get("label") or ""
                self.labels.of(label, where)
                masks, is_box = self._masks(track, where, size, numbers)
                group = track.get("group_id", "0")
                key: tuple[object, ...] = (i,) if group in ("", "0") else (group, label, is_box)
                if masks:
                    objects[key].append((masks, label, is_box))
        shown = []
        for parts in objects.values():
            by_frame = [_union([masks[n] for masks, _, _ in parts if n in masks], size) for n in numbers]
            shown.append(Shown(Track(self.labels.of(parts[0][1], ""), tuple(by_frame)), is_box=parts[0][2]))
        name = self.root.findtext("meta/task/name") or self.file.parent.name
        return AnnotatedVideo(number, name, tuple(pictures[n] for n in numbers), size, ()), shown

    def _frames(self, annotated: set[int]) -> list[int] | None:
        """The frames of the task by its meta data; None where they do not agree with the tracks."""
        meta = self.root.find("meta/task")
        meta = self.root.find("meta/job") if meta is None else meta
        if meta is None:
            return None
        start, stop = meta.findtext("start_frame") or "0", meta.findtext("stop_frame") or ""
        step = (meta.findtext("frame_filter") or "step=1").replace("step=", "") or "1"
        if not (start.isdecimal() and stop.isdecimal() and step.isdecimal() and int(step)):
            return None
        frames = list(range(int(start), int(stop) + 1, int(step)))
        return frames if annotated <= set(frames) else None

    def _size(self, picture: Path) -> tuple[int, int]:
        size = self.root.find("meta//original_size")
        if size is None:
            return size_of(picture)
        given = size.findtext("height") or "", size.findtext("width") or ""
        if not (given[0].isdecimal() and given[1].isdecimal()):
            return size_of(picture)
        return int(given[0]), int(given[1])

    def _masks(
        self, track: Element, where: str, size: tuple[int, int], numbers: Sequence[int]
    ) -> tuple[dict[int, Rle], bool]:
        """The masks of a track by frame, and whether they are boxes; a shape that is outside is none."""
        masks: dict[int, Rle] = {}
        kinds = Counter(shape.tag for shape in track)
        kind = next((kind for kind in INSTANCES if kinds[kind]), "")
        if not kind:
            self.unread.update(f"{tag} track" for tag in kinds if tag in OTHERS)
            return {}, False
        for k, shape in enumerate(track):
            if shape.tag == kind and shape.get("outside") != "1":
                with self.faults.entry():
                    masks[_whole(shape, "frame", where)] = _mask(shape, f"{where}.{kind}[{k}]", size)
        texts = {shape.get("frame") or "" for shape in track if shape.tag == kind}
        keys = sorted(int(text) for text in texts if text.isdecimal())
        for before, after in pairwise(keys):
            between = [n for n in numbers if before < n < after]
            self.gaps += bool(between and before in masks)
        return masks, kind == "box"

    def remarks(self) -> tuple[str, ...]:
        if not self.gaps:
            return ()
        return (
            f"{self.file}: {self.gaps} stretches between key frames have no shape, which CVAT draws by interpolation: "
            "in them the objects are read as absent; export the task as CVAT for video, which holds every frame",
        )


def _pictures(file: Path, images: Path | None, frames: list[int] | None, annotated: set[int]) -> dict[int, Path]:
    """By the number of the frame, the pictures of the task, those without an object too."""
    places = [images] if images else [file.parent / IMAGES, file.parent / "frames", file.parent]
    source = next((p for p in places if p.is_file() or (p.is_dir() and images_in(p))), None)
    if source is None:
        looked = ", ".join(map(str, places))
        raise DataError(f"{file}: its frames were looked for at {looked}; give them, or the video, with --images")
    found = frame_pictures(source, frames if source.is_file() else None)
    numbered = _by_number(list(found.values()))
    if source.is_dir() and annotated | set(frames or ()) <= numbered.keys():
        found = numbered
    missing = sorted((annotated | set(frames or ())) - found.keys())
    if missing:
        raise DataError(f"{file}: frame {missing[0]} has no picture in {source}; is it another task's?")
    return {number: found[number] for number in frames} if frames else found


def _by_number(pictures: Sequence[Path]) -> dict[int, Path]:
    """Pictures by the number at the end of their names; none where they have none or the same."""
    digits = [path.stem[len(path.stem.rstrip("0123456789")) :] for path in pictures]
    numbers = [int(text) for text in digits if text]
    return dict(zip(numbers, pictures, strict=True)) if len(set(numbers)) == len(pictures) else {}


def _mask(shape: Element, where: str, size: tuple[int, int]) -> Rle:
    if shape.tag == "polygon":
        corners = (shape.get("points") or "").replace(";", ",").split(",")
        return rle_of([[_number(value, f"{where}.points") for value in corners if value]], f"{where}.points", size)
    if shape.tag == "mask":
        return _mask_of_runs(shape, where, size)
    left, top, right, bottom = (_number(shape.get(side), f"{where}.{side}") for side in ("xtl", "ytl", "xbr", "ybr"))
    return rle_of_box([left, top, right - left, bottom - top], where, size)


def _mask_of_runs(shape: Element, where: str, size: tuple[int, int]) -> Rle:
    """Runs along the rows of a rectangle, zeros first."""
    left, top, width, height = (_whole(shape, side, where) for side in ("left", "top", "width", "height"))
    if left + width > size[1] or top + height > size[0]:
        raise DataError(
            f"{where}: {width} x {height} at {left}, {top} lies outside the picture of {size[1]} x {size[0]}"
        )
    texts = [text.strip() for text in (shape.get("rle") or "").split(",")]
    if not all(text.isdecimal() for text in texts) or sum(map(int, texts)) != width * height:
        raise DataError(
            f"{where}.rle: expected runs that add up to {width} x {height}; found {short(shape.get('rle'))}"
        )
    runs = np.array(list(map(int, texts)))
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(
        height, width
    )
    return rle_of_mask(mask)


def _union(masks: Sequence[Rle], size: tuple[int, int]) -> Rle | None:
    if len(masks) < 2:
        return masks[0] if masks else None
    coded = coco_mask.merge([{"size": list(size), "counts": mask["counts"].encode()} for mask in masks])
    return {"size": list(size), "counts": coded["counts"].decode("ascii")}


def _whole(element: Element, key: str, where: str) -> int:
    text = element.get(key) or ""
    if not text.isdecimal():
        raise DataError(f"{where}.{key}: expected a whole number; found {short(element.get(key))}")
    return int(text)


def _number(text: str | None, where: str) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise DataError(f"{where}: expected a number; found {short(text)}") from None


def write_cvat(annotated: AnnotatedSet, folder: Path, pictures: Pictures) -> list[str]:
    """A folder for each video and one, photos, for all photos; a set of one video or of photos alone in `folder`."""
    videos = [video for video in annotated.videos if len(video.pictures) > 1]
    photos = [video for video in annotated.videos if len(video.pictures) == 1]
    alone = len(videos) + bool(photos) == 1
    for video, name in zip(videos, folder_names(replace(annotated, videos=tuple(videos))), strict=True):
        own = folder if alone else folder / name
        for t, picture in enumerate(video.pictures):
            place(picture, own / IMAGES / f"frame_{t:06d}{picture.suffix}", pictures)
        _write(own / XML, _video_xml(video, name, annotated.classes))
    if photos:
        own = folder if alone else folder / "photos"
        of_photos = replace(annotated, videos=tuple(photos))
        names = placed(of_photos, own / IMAGES, pictures)
        _write(own / XML, _photos_xml(of_photos, names))
    tracks = [track for video in annotated.videos for track in video.tracks]
    crowds, empty = sum(track.crowd for track in tracks), sum(map(empty_masks, tracks))
    return [
        *([f"{empty} masks without a pixel are left out"] if empty else []),
        *([f"{crowds} crowds became objects, as CVAT knows none"] if crowds else []),
        *score_remarks(annotated, "CVAT"),
    ]


def _write(path: Path, lines: Iterator[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, [f"{line}\n".encode() for line in lines])


def _head(name: str, frames: int, mode: str, classes: Sequence[str], size: tuple[int, int] | None) -> Iterator[str]:
    yield '<?xml version="1.0" encoding="utf-8"?>'
    yield "<annotations><version>1.1</version><meta><task>"
    yield f"<name>{_text(name)}</name><size>{frames}</size><mode>{mode}</mode>"
    yield f"<start_frame>0</start_frame><stop_frame>{frames - 1}</stop_frame><frame_filter></frame_filter><labels>"
    yield from (f"<label><name>{_text(one)}</name><attributes></attributes></label>" for one in classes)
    yield "</labels>"
    if size is not None:
        yield f"<original_size><width>{size[1]}</width><height>{size[0]}</height></original_size>"
    yield "</task></meta>"


def _text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _video_xml(video: AnnotatedVideo, name: str, classes: Sequence[str]) -> Iterator[str]:
    yield from _head(name, len(video.pictures), "interpolation", classes, video.size)
    number = 0
    for group, track in enumerate(video.tracks, start=1):
        outlines = [_parts(mask) for mask in track.masks]
        most = max(map(len, outlines), default=0)
        for k in range(most):
            grouped = f' group_id="{group}"' if most > 1 else ""
            yield f'<track id="{number}" label={quoteattr(classes[track.label])} source="auto"{grouped}>'
            yield from _polygons([parts[k] if k < len(parts) else None for parts in outlines])
            yield "</track>"
            number += 1
    yield "</annotations>"


def _parts(mask: Rle | None) -> list[str]:
    """The outlines of the parts of a mask as CVAT writes points, the largest first."""
    if mask is None:
        return []
    ordered = sorted(outlines_of(mask), key=lambda outline: -float(np.ptp(outline, axis=0).prod()))
    return [";".join(f"{x:.1f},{y:.1f}" for x, y in outline.tolist()) for outline in ordered]


def _polygons(by_frame: Sequence[str | None]) -> Iterator[str]:
    """A key frame for each frame with a polygon; the first one without, after it, says that the track is outside."""
    last = None
    for t, points in enumerate(by_frame):
        if points is None and last is None:
            continue
        outside = int(points is None)
        shape = f'occluded="0" keyframe="1" points="{points or last}" z_order="0"'
        yield f'<polygon frame="{t}" outside="{outside}" {shape}/>'
        last = points


def _photos_xml(annotated: AnnotatedSet, names: Mapping[int, list[str]]) -> Iterator[str]:
    yield from _head("photos", len(annotated.videos), "annotation", annotated.classes, None)
    for i, video in enumerate(annotated.videos):
        sides = f'width="{video.size[1]}" height="{video.size[0]}"'
        yield f'<image id="{i}" name={quoteattr(names[video.id][0])} {sides}>'
        for track in video.tracks:
            mask = track.masks[0]
            if mask is not None and area_px(mask):
                yield _mask_xml(mask, annotated.classes[track.label])
        yield "</image>"
    yield "</annotations>"


def _mask_xml(mask: Rle, label: str) -> str:
    left, top, width, height = box = box_px(mask)
    flat = decode_region(mask, box).reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    text = ", ".join(map(str, runs if not flat[0] else [0, *runs]))
    at = f'left="{left}" top="{top}" width="{width}" height="{height}"'
    return f'<mask label={quoteattr(label)} source="auto" occluded="0" rle="{text}" {at} z_order="0"></mask>'
