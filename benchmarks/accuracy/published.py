"""The published figures: AP of the papers and of the released checkpoints, and how each was measured.

The released files are those of the model zoos in the official repositories. MinVIS's and VidEoMT's name their files;
the links of CTVIS and GenVIS have no names, so those files carry names given here. MinVIS's paper gives the mean of
three trainings, its model zoo the figure of the one file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from visrt.export.families import PublishedResize, resize_of
from visrt.models.dataset_classes import DATASET_CLASSES
from visrt.runtime.errors import ParityError, UsageError
from visrt.training.data.official_sets import OFFICIAL_SETS

__all__ = [
    "FIGURES",
    "SERVERS",
    "TRAINING_TOLERANCE",
    "WEIGHTS_TOLERANCE",
    "Checkpoint",
    "Figure",
    "Scores",
    "figure_named",
    "verdict",
]

ROUNDING = 1e-6
"""Figures have one decimal: 0.5 apart is within 0.5."""


@dataclass(frozen=True)
class Scores:
    """Percent, of the valid split. ap: of masks over IoU 0.5 to 0.95. None: not published."""

    ap: float
    ap50: float | None = None
    ap75: float | None = None
    ar1: float | None = None
    ar10: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A released file. file: its name below ROOT/weights. page: where it is linked. scores: by that page."""

    file: str
    page: str
    scores: Scores


@dataclass(frozen=True)
class Figure:
    """One published AP.

    name: also of the recipe that trains it. table: of the paper, empty where only the release gives the figure. set: in
    OFFICIAL_SETS, its valid split. top_k: tracks a video. clip_frames: of a family of clips. paper: its scores.
    checkpoint: None where no weights were released. part: of the videos, where AP is not of all: "long".
    """

    name: str
    model: str
    table: str
    set: str
    family: str
    backbone: str
    top_k: int
    clip_frames: int | None
    paper: Scores | None
    checkpoint: Checkpoint | None
    part: str = ""

    def expected(self, trained: bool) -> Scores:
        """What the released file should score; what weights of one's own training should, if `trained`."""
        of_file = None if self.checkpoint is None else self.checkpoint.scores
        scores = (self.paper or of_file) if trained else (of_file or self.paper)
        assert scores is not None
        return scores

    def tolerance(self, trained: bool) -> float:
        return TRAINING_TOLERANCE[self.set] if trained or self.checkpoint is None else WEIGHTS_TOLERANCE

    def expectation(self, trained: bool) -> str:
        """The AP to reach, in words."""
        least = trained or self.checkpoint is None
        by = f"at most {self.tolerance(trained)} below" if least else f"within {self.tolerance(trained)} of"
        return f"AP{f' of {self.part} videos' if self.part else ''} {by} {self.expected(trained).ap:.1f}"

    @property
    def resize(self) -> PublishedResize:
        """The size at which the network sees frames."""
        return resize_of(self.family, self.backbone, DATASET_CLASSES[self.classes])

    @property
    def page(self) -> str:
        """Where the released file is linked; empty without one."""
        return "" if self.checkpoint is None else self.checkpoint.page

    @property
    def classes(self) -> str:
        """The name of its classes in DATASET_CLASSES."""
        return OFFICIAL_SETS[self.set].classes

    @property
    def server(self) -> str:
        return SERVERS[self.set]


WEIGHTS_TOLERANCE = 0.5
"""AP, either way, of a released file. The network and the rule are the same, but published figures were computed in
half precision (autocast) and with other versions of picture decoders. Another group's evaluation of
`minvis_ovis_R50.pth` (InstMove) gave 26.2 where its page has 26.7."""

TRAINING_TOLERANCE = {"ytvis19": 1.0, "ytvis21": 1.0, "ytvis22": 1.0, "ovis": 2.5}
"""AP below the published figure, by set, of weights of one's own training: trainings differ by their seed. MinVIS's
released files lie up to 0.4 AP from the mean of three trainings on YouTube-VIS, and up to 2.3 on OVIS."""

SERVERS = {
    "ytvis19": "CodaLab competition 7682, YouTube-VIS 2019",
    "ytvis21": "CodaLab competition 7680, YouTube-VIS 2021",
    "ytvis22": "CodaLab competition 3410, YouTube-VIS 2022",
    "ovis": "CodaLab competition 5857, OVIS",
}
"""Evaluation servers of the valid splits, whose annotations are not public; numbers as in CTVIS's upload tool."""

TITLES = {"r50": "ResNet-50", "swinl": "Swin-L", "s": "ViT-S", "b": "ViT-B", "l": "ViT-L", "l-dinov3": "ViT-L, DINOv3"}
BACKBONES = {
    "r50": "r50", "swinl": "swin_l", "s": "vit_s", "b": "vit_b", "l": "vit_l", "l-dinov3": "vit_l_dinov3"
}  # fmt: skip
"""Names in `models.checkpoints.published`."""

# MinVIS: tables 1 to 3, and the model zoo

MINVIS_TABLES = {"ytvis19": "MinVIS, table 1", "ytvis21": "MinVIS, table 2", "ovis": "MinVIS, table 3"}
MINVIS_TOP_K = 10
MINVIS_PAPER = {
    ("r50", "ytvis19"): Scores(47.4),
    ("r50", "ytvis21"): Scores(44.2),
    ("r50", "ovis"): Scores(25.0),
    ("swinl", "ytvis19"): Scores(61.6, 83.3, 68.6, 54.8, 66.6),
    ("swinl", "ytvis21"): Scores(55.3, 76.6, 62.0, 45.9, 60.8),
    ("swinl", "ovis"): Scores(39.4, 61.5, 41.3, 18.1, 43.3),
}
MINVIS_FILES = {
    ("r50", "ytvis19"): ("minvis_ytvis19_R50.pth", 47.3),
    ("r50", "ytvis21"): ("minvis_ytvis21_R50.pth", 43.9),
    ("r50", "ovis"): ("minvis_ovis_R50.pth", 26.7),
    ("swinl", "ytvis19"): ("minvis_ytvis19_swin_large.pth", 62.0),
    ("swinl", "ytvis21"): ("minvis_ytvis21_swin_large.pth", 55.4),
    ("swinl", "ovis"): ("minvis_ovis_swin_large.pth", 41.7),
}
MINVIS_FEWER_LABELS = {
    "ytvis19": {10: 60.9, 5: 59.7, 1: 58.9},
    "ytvis21": {10: 54.8, 5: 54.5, 1: 52.6},
    "ovis": {10: 37.1, 5: 35.7, 1: 31.8},
}
"""Swin-L trained on so many of a hundred frames: AP of the released files."""


def _minvis() -> Iterator[Figure]:
    for (backbone, of), (file, ap) in MINVIS_FILES.items():
        paper = MINVIS_PAPER[backbone, of]
        yield _minvis_figure(f"minvis-{backbone}-{of}", f"MinVIS, {TITLES[backbone]}", backbone, of, paper, file, ap)
    for of, aps in MINVIS_FEWER_LABELS.items():
        for percent, ap in aps.items():
            name, model = f"minvis-swinl-{of}-{percent}pct", f"MinVIS, Swin-L, {percent} % of the labels"
            file = MINVIS_FILES["swinl", of][0].replace(".pth", f"_r{percent}.pth")
            yield _minvis_figure(name, model, "swinl", of, None, file, ap)


def _minvis_figure(name: str, model: str, backbone: str, of: str, paper: Scores | None, file: str, ap: float) -> Figure:
    return Figure(
        name=name,
        model=model,
        table=MINVIS_TABLES[of],
        set=of,
        family="minvis",
        backbone=BACKBONES[backbone],
        top_k=MINVIS_TOP_K,
        clip_frames=None,
        paper=paper,
        checkpoint=Checkpoint(file, "MinVIS, MODEL_ZOO.md", Scores(ap)),
    )


# CTVIS: table 1, and the README, which alone has YouTube-VIS 2022

CTVIS_PAPER = {
    ("r50", "ytvis19"): Scores(55.1, 78.2, 59.1, 51.9, 63.2),
    ("r50", "ytvis21"): Scores(50.1),
    ("r50", "ovis"): Scores(35.5),
    ("swinl", "ytvis19"): Scores(65.6),
    ("swinl", "ytvis21"): Scores(61.2),
    ("swinl", "ovis"): Scores(46.9),
}
CTVIS_README = {
    ("r50", "ytvis19"): Scores(55.2, 79.5, 60.2, 51.3, 63.7),
    ("r50", "ytvis21"): Scores(50.1, 73.7, 54.7, 41.8, 59.5),
    ("r50", "ytvis22"): Scores(44.9),
    ("r50", "ovis"): Scores(35.5, 60.8, 34.9, 16.1, 41.9),
    ("swinl", "ytvis19"): Scores(65.6, 87.7, 72.2, 56.5, 70.4),
    ("swinl", "ytvis21"): Scores(61.2, 84.0, 68.8, 48.0, 65.8),
    ("swinl", "ytvis22"): Scores(53.8),
    ("swinl", "ovis"): Scores(46.9, 71.5, 47.5, 19.1, 52.1),
}
"""Of YouTube-VIS 2022 AP is the mean of short and long videos: 50.3 and 39.4, with Swin-L 61.2 and 46.4."""
SAME_TRAINING = {"ytvis22": "ytvis21"}
"""YouTube-VIS 2022 has the training videos of 2021, and its figures the weights of 2021."""


def _ctvis() -> Iterator[Figure]:
    for (backbone, of), scores in CTVIS_README.items():
        paper = CTVIS_PAPER.get((backbone, of))
        yield Figure(
            name=f"ctvis-{backbone}-{of}",
            model=f"CTVIS, {TITLES[backbone]}",
            table="CTVIS, table 1" if paper else "",
            set=of,
            family="ctvis",
            backbone=BACKBONES[backbone],
            top_k=len(DATASET_CLASSES[OFFICIAL_SETS[of].classes]),
            clip_frames=None,
            paper=paper,
            checkpoint=Checkpoint(f"ctvis_{backbone}_{SAME_TRAINING.get(of, of)}.pth", "CTVIS, README.md", scores),
        )


# GenVIS: tables 1 and 3; the README repeats them for the released files

GENVIS_TABLES = {"ytvis19": "GenVIS, table 1", "ytvis21": "GenVIS, table 1", "ovis": "GenVIS, table 3"}
GENVIS_TOP_K = {"ytvis19": 10, "ytvis21": 10, "ovis": 20}
GENVIS_MODES = {"online": ("online", 1), "semi": ("semi-online", 3)}
"""Its title, and the frames of a clip."""
GENVIS_SCORES = {
    ("online", "r50", "ytvis19"): Scores(50.0, 71.5, 54.6, 49.5, 59.7),
    ("semi", "r50", "ytvis19"): Scores(51.3, 72.0, 57.8, 49.5, 60.0),
    ("online", "swinl", "ytvis19"): Scores(64.0, 84.9, 68.3, 56.1, 69.4),
    ("semi", "swinl", "ytvis19"): Scores(63.8, 85.7, 68.5, 56.3, 68.4),
    ("online", "r50", "ytvis21"): Scores(47.1, 67.5, 51.5, 41.6, 54.7),
    ("semi", "r50", "ytvis21"): Scores(46.3, 67.0, 50.2, 40.6, 53.2),
    ("online", "swinl", "ytvis21"): Scores(59.6, 80.9, 65.8, 48.7, 65.0),
    ("semi", "swinl", "ytvis21"): Scores(60.1, 80.9, 66.5, 49.1, 64.7),
    ("online", "r50", "ovis"): Scores(35.8, 60.8, 36.2, 16.3, 39.6),
    ("semi", "r50", "ovis"): Scores(34.5, 59.4, 35.0, 16.6, 38.3),
    ("online", "swinl", "ovis"): Scores(45.2, 69.1, 48.4, 19.1, 48.6),
    ("semi", "swinl", "ovis"): Scores(45.4, 69.2, 47.8, 18.9, 49.0),
}


def _genvis() -> Iterator[Figure]:
    for (mode, backbone, of), scores in GENVIS_SCORES.items():
        title, clip_frames = GENVIS_MODES[mode]
        yield Figure(
            name=f"genvis-{mode}-{backbone}-{of}",
            model=f"GenVIS, {title}, {TITLES[backbone]}",
            table=GENVIS_TABLES[of],
            set=of,
            family="genvis",
            backbone=BACKBONES[backbone],
            top_k=GENVIS_TOP_K[of],
            clip_frames=clip_frames,
            paper=scores,
            checkpoint=Checkpoint(f"genvis_{mode}_{backbone}_{of}.pth", "GenVIS, README.md", scores),
        )


# InsPro: tables 1, 3 and 4; no weights were released

INSPRO_TOP_K = 10
"""Ours: the paper does not state it."""
INSPRO_PAPER = {
    "inspro-r50-ytvis19": ("InsPro, ResNet-50", "InsPro, table 1", "ytvis19", "inspro", 40.2),
    "inspro-r50-ytvis21": ("InsPro, ResNet-50", "InsPro, table 1", "ytvis21", "inspro", 36.1),
    "inspro-r50-ovis": ("InsPro, ResNet-50", "InsPro, table 4", "ovis", "inspro", 21.1),
    "inspro-joint-r50-ytvis19": ("InsPro with COCO, ResNet-50", "InsPro, table 1", "ytvis19", "inspro", 43.2),
    "inspro-joint-r50-ytvis21": ("InsPro with COCO, ResNet-50", "InsPro, table 1", "ytvis21", "inspro", 37.6),
    "inspro-lite-r50-ytvis19": ("InsPro-lite, ResNet-50", "InsPro, tables 1, 3", "ytvis19", "inspro_lite", 38.7),
}


def _inspro() -> Iterator[Figure]:
    for name, (model, table, of, family, ap) in INSPRO_PAPER.items():
        yield Figure(
            name=name,
            model=model,
            table=table,
            set=of,
            family=family,
            backbone=BACKBONES["r50"],
            top_k=INSPRO_TOP_K,
            clip_frames=None,
            paper=Scores(ap),
            checkpoint=None,
        )


# VidEoMT: the model zoo. It repeats the paper's figures of DINOv2; those of DINOv3 came with the release

VIDEOMT_TABLES = {"s": "VidEoMT, CVPR 2026", "b": "VidEoMT, CVPR 2026", "l": "VidEoMT, CVPR 2026", "l-dinov3": ""}
VIDEOMT_PAGES = {backbone: "VidEoMT, model_zoo/dinov2.md" for backbone in ("s", "b", "l")} | {
    "l-dinov3": "VidEoMT, model_zoo/dinov3.md"
}
VIDEOMT_TOP_K = {"ytvis19": 10, "ytvis21": 10, "ytvis22": 10, "ovis": 20}
VIDEOMT_PARTS = {"ytvis22": "long"}
VIDEOMT_FILES = {
    ("s", "ytvis19"): ("yt_2019_vit_small_52.8.pth", Scores(52.8, ar10=62.2)),
    ("b", "ytvis19"): ("yt_2019_vit_base_58.2.pth", Scores(58.2, ar10=66.5)),
    ("l", "ytvis19"): ("yt_2019_vit_large_68.6.pth", Scores(68.6, ar10=73.9)),
    ("l", "ytvis21"): ("yt_2021_vit_large_63.1.pth", Scores(63.1, ar10=68.1)),
    ("l", "ytvis22"): ("yt_2022_vit_large_42.6.pth", Scores(42.6, ar10=48.1)),
    ("l", "ovis"): ("ovis_vit_large_52.5.pth", Scores(52.5, ar10=57.5)),
    ("l-dinov3", "ytvis19"): ("yt_2019_dinov3_68.9.pth", Scores(68.9, ar10=74.8)),
    ("l-dinov3", "ytvis21"): ("yt_2021_dinov3_63.2.pth", Scores(63.2, ar10=69.2)),
    ("l-dinov3", "ytvis22"): ("yt_2022_dinov3_42.8.pth", Scores(42.8, ar10=50.3)),
}


def _videomt() -> Iterator[Figure]:
    for (backbone, of), (file, scores) in VIDEOMT_FILES.items():
        table = VIDEOMT_TABLES[backbone]
        yield Figure(
            name=f"videomt-{backbone}-{of}",
            model=f"VidEoMT, {TITLES[backbone]}",
            table=table,
            set=of,
            family="videomt",
            backbone=BACKBONES[backbone],
            top_k=VIDEOMT_TOP_K[of],
            clip_frames=None,
            paper=scores if table else None,
            checkpoint=Checkpoint(file, VIDEOMT_PAGES[backbone], scores),
            part=VIDEOMT_PARTS.get(of, ""),
        )


FIGURES: dict[str, Figure] = {
    figure.name: figure for figures in (_minvis(), _ctvis(), _genvis(), _inspro(), _videomt()) for figure in figures
}


def figure_named(name: str) -> Figure:
    """The figure `name`. Raises UsageError with names that are like it."""
    if name not in FIGURES:
        like = get_close_matches(name, FIGURES, n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(like)}?" if like else ""
        raise UsageError(f"there is no published figure {name!r}{hint} `visrt reproduce` lists them")
    return FIGURES[name]


def verdict(figure: Figure, ap: float, trained: bool = False) -> str:
    """That `ap`, in percent, is the published one. Raises ParityError where it is not, UsageError for no percentage."""
    if not 0.0 <= ap <= 100.0:
        raise UsageError(f"AP {ap:g} is no percentage; expected 0 to 100, as {figure.expected(trained).ap:.1f}")
    if 0.0 < ap <= 1.0:
        raise UsageError(f"AP {ap:g} looks like a fraction; expected percent, as {figure.expected(trained).ap:.1f}")
    difference = ap - figure.expected(trained).ap
    said = f"{figure.name}: AP {ap:.1f}, {difference:+.1f} from the published; expected {figure.expectation(trained)}"
    too_high = not (trained or figure.checkpoint is None) and difference > figure.tolerance(trained) + ROUNDING
    if too_high or difference < -figure.tolerance(trained) - ROUNDING:
        raise ParityError(f"{said}: not reproduced")
    return f"{said}: reproduced"
