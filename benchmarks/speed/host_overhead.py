"""CPU time per frame outside the engines, by stage: over objects in sight, over queries, over the video's size.

    python -m visrt.benchmarks.speed.host_overhead --write

The network is scripted: each object has a mask in every frame. Stages are timed in this thread's CPU time, decoding in
that of the whole process. Cases take turns in short rounds; the figure is the median frame of the best round, which
other programs on the machine disturb least.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time, thread_time
from typing import Any

import av
import cv2
import numpy as np

from visrt.benchmarks.accuracy.result_files import RESULTS, add_result_options, write_result
from visrt.benchmarks.speed.percentiles import by_stage
from visrt.benchmarks.speed.scripted import Scene, scripted_session
from visrt.runtime.session import Session
from visrt.runtime.sinks.journal import Journal
from visrt.runtime.sources.source import Image
from visrt.runtime.sources.video import read_video

__all__ = ["ITEMS", "HostCase", "HostFigures", "cases_of", "decode_cpu_ms", "host_overhead", "pictures"]

ITEMS = ("preprocess", "copy_out", "association", "masks", "output")
"""Stages of the host; scripted engines stand outside."""

USUAL = (720, 1280)
FRAMES = 8
"""Of a round."""

DECODED = 60
"""Frames whose decoding is measured."""


@dataclass(frozen=True)
class HostCase:
    """One scene in a video of `size`, height and width. varied: what is compared with what in its row of cases."""

    varied: str
    scene: Scene
    size: tuple[int, int]


@dataclass(frozen=True)
class HostFigures:
    """CPU milliseconds a frame by item, and their sum; decoding is not among them."""

    case: HostCase
    ms: dict[str, float]

    @property
    def total_ms(self) -> float:
        return sum(self.ms.values())


def cases_of(objects: Sequence[int], queries: Sequence[int], heights: Sequence[int]) -> list[HostCase]:
    """One row by objects, one by queries, one by height of the 16:9 video; what is not varied is 10, 100 and 720."""
    return [
        *(HostCase("objects", Scene(count, max(100, count)), USUAL) for count in objects),
        *(HostCase("queries", Scene(10, count), USUAL) for count in queries),
        *(HostCase("height", Scene(10), (height, round(height * 16 / 9))) for height in heights),
    ]


def host_overhead(cases: Sequence[HostCase], rounds: int = 5) -> list[HostFigures]:
    """The figures of each case: `rounds` rounds after one of warm-up."""
    with TemporaryDirectory() as folder:
        runs = [_SceneRun(case, Path(folder) / f"{at}.jsonl") for at, case in enumerate(cases)]
        found = [[run.ms_of_round() for run in runs] for _ in range(rounds + 1)][1:]
        for run in runs:
            run.close()
    best = [min((one[at] for one in found), key=lambda ms: sum(ms.values())) for at in range(len(cases))]
    return [HostFigures(case, ms) for case, ms in zip(cases, best, strict=True)]


def decode_cpu_ms(clip: Path, frames: int) -> float:
    """CPU milliseconds, of all threads of the decoder, for a frame of `clip` as RGB."""
    start, count = process_time(), 0
    for count, _ in enumerate(read_video(clip), start=1):
        if count == frames:
            break
    return 1e3 * (process_time() - start) / max(count, 1)


def enlarged_clip(clip: Path, out: Path, size: tuple[int, int], frames: int) -> Path:
    """The first `frames` frames of `clip` at `size` (height, width), as H.264 at `out`."""
    with av.open(str(out), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.options = {"preset": "veryfast", "crf": "23"}
        for frame in islice(read_video(clip), frames):
            image = cv2.resize(frame.image, size[::-1], interpolation=cv2.INTER_CUBIC)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return out


class _SceneRun:
    """A scene that goes on from round to round."""

    def __init__(self, case: HostCase, journal: Path) -> None:
        self._session: Session = scripted_session(case.scene)
        self._session.watch.clock = thread_time
        self._journal = Journal(journal, self._session.manifest.classes)
        self._images = pictures(case.size)

    def ms_of_round(self) -> dict[str, float]:
        stages: list[dict[str, float]] = []
        for _ in range(FRAMES):
            image = next(self._images)
            [result] = self._session.step(image)
            start = thread_time()
            self._journal.write(result, image)
            spent = {**self._session.last_times.seconds, "output": thread_time() - start}
            stages.append({item: spent[item] for item in ITEMS})
        return {item: found.p50_ms for item, found in by_stage(stages).items()}

    def close(self) -> None:
        self._journal.close()
        self._session.close()


def pictures(size: tuple[int, int]) -> Iterator[Image]:
    """Smooth pictures [H, W, 3] that differ from each other, without end."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (4, 9, 16, 3), dtype=np.uint8)
    pictures = [np.asarray(cv2.resize(one, size[::-1], interpolation=cv2.INTER_CUBIC), np.uint8) for one in coarse]
    while True:
        yield from pictures


def figures_of_case(found: HostFigures) -> dict[str, Any]:
    """As plain values."""
    case = found.case
    return {
        "varied": case.varied,
        **asdict(case.scene),
        "size": list(case.size),
        "ms": {item: round(ms, 3) for item, ms in found.ms.items()},
        "total_ms": round(found.total_ms, 3),
    }


CASES = cases_of((1, 10, 30, 100), (100, 200), (360, 720, 1080))


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CPU time per frame outside the engines.")
    add_result_options(parser, RESULTS / "host_overhead.json")
    parser.add_argument("--clip", type=Path, default=Path("clips/demo.mp4"), help="decoded at 720p, enlarged")
    parser.add_argument("--rounds", type=int, default=8)
    return parser.parse_args(argv)


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    rounds = {"rounds": given.rounds, "frames": FRAMES, "decoded_frames": DECODED}
    return {"clip": str(given.clip), **rounds, "cases": [asdict(case) for case in CASES]}


def main() -> None:
    given = arguments()
    found = host_overhead(CASES, given.rounds)
    with TemporaryDirectory() as folder:
        clip = enlarged_clip(given.clip, Path(folder) / "720p.mp4", USUAL, DECODED)
        decode_ms = min(decode_cpu_ms(clip, DECODED) for _ in range(3))
    ten = next(one for one in found if one.case.scene.objects == 10)
    report = {
        "ten_objects_720p_ms": {"decode": round(decode_ms, 3), **figures_of_case(ten)["ms"]},
        "ten_objects_720p_total_ms": round(decode_ms + ten.total_ms, 3),
        "cases": [figures_of_case(one) for one in found],
    }
    write_result(given.out, settings_of(given), report)
    print(json.dumps(report["ten_objects_720p_ms"]), report["ten_objects_720p_total_ms"])
    for one in found:
        print(json.dumps(figures_of_case(one)))


if __name__ == "__main__":
    main()
