"""Does memory stay flat on an endless stream? RSS over a clip that is looped, with the whole of `visrt track` at work.

python -m visrt.benchmarks.speed.memory --bundle B --clip C --frames 5000
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from visrt.runtime.engines.gpus import gpu_uuid
from visrt.runtime.session import Session
from visrt.runtime.sinks.journal import Journal
from visrt.runtime.sinks.output import Sink
from visrt.runtime.sinks.overlay_video import OverlayVideo, VideoCoding
from visrt.runtime.sources.source import VideoFrame
from visrt.runtime.sources.video import read_video

__all__ = ["gpu_memory_mb", "looped", "peak_rss_mb", "rss_mb", "rss_over_frames", "start_peak"]

FIRST = 500


def looped(clip: Path) -> Iterator[VideoFrame]:
    """The clip again and again, its times going on."""
    shift_s, index = 0.0, 0
    while True:
        time_s = 0.0
        for frame in read_video(clip):
            time_s = frame.time_s
            yield VideoFrame(index, shift_s + time_s, frame.image, frame.corrupt)
            index += 1
        shift_s += time_s + 0.1


def rss_mb() -> float:
    """Resident memory of this process in MB (10^6 bytes), from the kernel."""
    return _status_mb("VmRSS")


def peak_rss_mb() -> float:
    """The most there was since the process started, or since `start_peak`."""
    return _status_mb("VmHWM")


def start_peak() -> None:
    """The peak counts from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def _status_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"no {field} in /proc/self/status: this measurement needs Linux")


def gpu_memory_mb(device: int = 0) -> int | None:
    """MB in use by all processes on the GPU that engines know as number `device`; None where nvidia-smi is missing or
    reports none, as on a Jetson, whose GPU shares the host's memory, and of a part of a GPU."""
    tool, uuid = shutil.which("nvidia-smi"), gpu_uuid(device)
    if tool is None or uuid is None:
        return None
    query = [tool, f"--id={uuid}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return int(answer) if answer.isdigit() else None


def rss_over_frames(bundle: Path, clip: Path, frames: int, every: int) -> dict[int, float]:
    """RSS in MB by frame number, overlay and journal written as `visrt track` writes them."""
    found: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder, Session.open(bundle) as session:
        classes = session.manifest.classes
        overlay = OverlayVideo(Path(folder) / "overlay.mp4", classes, 10.0, VideoCoding())
        sinks: list[Sink] = [Journal(Path(folder) / "results.jsonl", classes), overlay]
        for frame in itertools.islice(looped(clip), frames):
            for result in session.step(frame.image, frame.time_s):
                for sink in sinks:
                    sink.write(result, frame.image)
            if (frame.index + 1) % every == 0:
                found[frame.index + 1] = rss_mb()
        for sink in sinks:
            sink.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="RSS over a looped clip.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=5000)
    given = parser.parse_args()
    found = rss_over_frames(given.bundle, given.clip, given.frames, FIRST)
    for frame, megabytes in found.items():
        print(json.dumps({"frame": frame, "rss_mb": round(megabytes, 1)}))
    print(
        json.dumps({"growth_mb": round(found[max(found)] - found[min(found)], 1), "from": min(found), "to": max(found)})
    )


if __name__ == "__main__":
    main()
