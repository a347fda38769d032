"""Fill datasets/default with the cut-outs and backgrounds the default network is trained on.

The material is in Debian packages, which anyone can fetch and unpack without installing them:

    apt-get download tuxpaint-stamps-default tuxpaint-data mate-backgrounds plasma-workspace-wallpapers opencv-doc
    for package in *.deb; do dpkg -x $package unpacked; done
    python training/recipes/default/prepare.py --unpacked unpacked --out datasets/default

Only photographs are taken: drawings teach a network to find drawings. Photos with people, vehicles or animals are no
backgrounds, because nobody has annotated them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

CUTOUT_SIDE_PX = 400
BACKGROUND_SIDE_PX = 640

STAMPS = "usr/share/tuxpaint/stamps"
CUTOUTS = {
    "animal": (
        "animals/mammals/*.png",
        "animals/mammals/*/*.png",
        "animals/marsupials/*.png",
        "animals/birds/*.png",
        "animals/amphibians/*.png",
        "animals/lizards/*.png",
        "animals/fish/*fish.png",
        "animals/fish/coraltrout.png",
        "animals/fish/bluegroper.png",
    ),
    "vehicle": (
        "vehicles/garbagetruck.png",
        "vehicles/race/indycar.png",
        "vehicles/emergency/*.png",
        "vehicles/construction/dumper.png",
        "vehicles/flight/planes/747.png",
        "vehicles/ship/*.png",
        "vehicles/auto/*.png",
        "vehicles/masstransit/*.png",
        "vehicles/cycle/*.png",
        "military/vehicles/*.png",
    ),
    "person": ("people/fireman*.png", "space/spacewalk.png"),
    "distractor": (
        "food/fruit/*.png",
        "food/nuts/*.png",
        "food/vegetables/*.png",
        "food/spices/*.png",
        "household/*.png",
        "household/dishes/*.png",
        "household/dishes/utensils/*.png",
        "household/tools/*.png",
        "hobbies/*.png",
        "hobbies/music/*/*.png",
        "sports/*ball.png",
        "sports/soccer.png",
        "sports/trophy_cup.png",
        "plants/trees/*.png",
        "plants/flowers/*.png",
        "plants/mushrooms/*.png",
        "seasonal/halloween/grave-?.png",
        "seasonal/christmas/Christmas_Tree_photo.png",
        "town/monuments/inukshuk-photo.png",
        "town/roadsigns/traffic_cone.png",
        "town/u*.png",
        "vehicles/7spoke256.png",
        "vehicles/wheel_tractor.png",
    ),
}
NOT_TAKEN = (
    "*_mirror*",  # left-right copies
    "animals/mammals/hedgehog.png",  # a drawing
    "animals/mammals/echidna.png",  # a silhouette
    "animals/mammals/bears/toys/*",
    "animals/mammals/*/cartoon/*",
    "animals/birds/albino_peahen.png",  # with its meadow
    "household/rubberduck.png",  # whose class is a matter of opinion
    "food/nuts/walnut_shelled.png",  # a few coarse pixels
    "plants/trees/birch.png",  # mostly holes
)
BACKGROUNDS = {
    "usr/share/backgrounds/mate/nature": "Aqua Blinds Dune FreshFlower GreenMeadow RainDrops Storm Wood YellowFlower",
    "usr/share/tuxpaint/templates": "burnt_bark cliff corn_maze lighthouse mossy_log mudstone ocean_splash ocean_waves "
    "redwoods_above rocks spiders_web sun_behind_clouds sun_behind_leaves trees_above trees_at_dusk wool_mill_machine",
    "usr/share/wallpapers": "BytheWater ColorfulCups DarkestHour FallenLeaf Grey Path summer_1am",
    "usr/share/doc/opencv-doc/examples/data": "aero1 aloeL board building fruits home leuvenA leuvenB stuff apple",
}


def main() -> None:
    """Read the arguments, write the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unpacked", type=Path, required=True, help="the folder the packages were unpacked in")
    parser.add_argument("--out", type=Path, default=Path("datasets/default"), help="the folder to fill")
    arguments = parser.parse_args()
    counts = write_cutouts(arguments.unpacked / STAMPS, arguments.out)
    photos = write_backgrounds(arguments.unpacked, arguments.out / "backgrounds")
    print(f"{arguments.out}: {', '.join(f'{n} {name}' for name, n in counts.items())} cut-outs, {photos} backgrounds")


def write_cutouts(stamps: Path, out: Path) -> dict[str, int]:
    """PNGs into out/cutouts and out/cutouts.json, which maps each to its class; how many of each class."""
    folder = out / "cutouts"
    folder.mkdir(parents=True, exist_ok=True)
    classes = {}
    for name, patterns in CUTOUTS.items():
        for path in _found(stamps, patterns):
            target = "-".join(path.relative_to(stamps).parts)
            cv2.imwrite(str(folder / target), _shrunk(_rgba(path), CUTOUT_SIDE_PX))
            classes[target] = name
    (out / "cutouts.json").write_text(json.dumps(classes, indent=1) + "\n")
    return {name: list(classes.values()).count(name) for name in CUTOUTS}


def write_backgrounds(root: Path, out: Path) -> int:
    """JPEGs into `out`; how many. A wallpaper is a folder of sizes, of which the widest landscape one is taken."""
    out.mkdir(parents=True, exist_ok=True)
    written = 0
    for folder, names in BACKGROUNDS.items():
        for name in names.split():
            path = _widest(root / folder, name)
            picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if picture is None:
                raise SystemExit(f"{path}: cannot be decoded; is the package unpacked completely?")
            cv2.imwrite(str(out / f"{name}.jpg"), _shrunk(picture, BACKGROUND_SIDE_PX), [cv2.IMWRITE_JPEG_QUALITY, 92])
            written += 1
    return written


def _found(stamps: Path, patterns: Iterable[str]) -> list[Path]:
    found = []
    for pattern in patterns:
        fitting = sorted(stamps.glob(pattern))
        if not fitting:
            raise SystemExit(f"{stamps}: nothing fits {pattern}; unpack tuxpaint-stamps-default into --unpacked")
        found += [p for p in fitting if not any(p.relative_to(stamps).match(skipped) for skipped in NOT_TAKEN)]
    return found


def _widest(folder: Path, name: str) -> Path:
    """folder/name.jpg, or the widest landscape picture of the wallpaper folder/name."""
    if (folder / f"{name}.jpg").is_file():
        return folder / f"{name}.jpg"
    sizes = {path: [int(n) for n in path.stem.split("x")] for path in (folder / name).glob("contents/images/*x*.*")}
    if not sizes:
        raise SystemExit(f"{folder}: has no photo {name}; unpack the packages named above into --unpacked")
    return max(sizes, key=lambda path: sizes[path][0])


def _rgba(path: Path) -> NDArray[np.uint8]:
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None or picture.ndim != 3 or picture.shape[2] != 4:
        raise SystemExit(f"{path}: has no alpha; expected an RGBA PNG")
    return np.asarray(picture if picture.dtype == np.uint8 else (picture // 257).astype(np.uint8))


def _shrunk(picture: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """`picture` with its long side at most `side_px`; colours are weighted by alpha, so that edges stay clean."""
    scale = side_px / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    if picture.shape[2] == 3:
        return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
    alpha = picture[..., 3:].astype(np.float32) / 255
    weighted = cv2.resize(np.dstack([picture[..., :3] * alpha, alpha]), size, interpolation=cv2.INTER_AREA)
    colour = weighted[..., :3] / np.maximum(weighted[..., 3:], 1 / 255)
    return np.dstack([colour, weighted[..., 3:] * 255]).clip(0, 255).round().astype(np.uint8)


if __name__ == "__main__":
    main()
