"""Write pseudo-videos with exact tracks from what a training run held out:

    python training/recipes/default/validation.py --settings training/recipes/default/stage4.json --out
    datasets/validation

The folder is a YouTube-VIS set: `visrt eval --bundle B --data datasets/validation` measures identity on it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from visrt.runtime.settings import settings_from_file
from visrt.training.data.pseudo_videos import write_pseudo_videos
from visrt.training.settings import TrainSettings


def main() -> None:
    """Read the arguments, write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=Path, required=True, help="json of a training run")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", type=int, nargs=2, default=(360, 640), metavar=("HEIGHT", "WIDTH"), help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    data = settings_from_file(TrainSettings, given.settings).data
    scale = given.size[0] * given.size[1] / (data.clips.height_px * data.clips.width_px)
    clips = replace(
        data.clips,
        part="held_out",
        frames=given.frames,
        height_px=given.size[0],
        width_px=given.size[1],
        min_area_px=round(data.clips.min_area_px * scale),
    )
    print(write_pseudo_videos(data.sources, clips, given.out, given.videos, given.seed))


if __name__ == "__main__":
    main()
