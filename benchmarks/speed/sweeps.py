"""Sweeps of the papers: a bundle with several values of one setting, side by side, next to the published figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from visrt.benchmarks.speed.candidates import BundleCandidate, Candidate
from visrt.benchmarks.speed.interleaved import Figures, Spread
from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.errors import BundleError, UsageError
from visrt.runtime.methods.registry import method_of

__all__ = ["CLIP_LENGTHS", "KEY_EVERY", "Published", "Sweep", "SweepFigures", "SweepPoint", "check_sweep", "swept"]


@dataclass(frozen=True)
class Published:
    """What a paper gives for one value: AP of whole videos in percent, and frames a second."""

    ap: float
    fps: float


@dataclass(frozen=True)
class Sweep:
    """A setting that a paper varies.

    option: of `visrt bench`. setting: of the bundle's association. axis: its name in tables and plots. variant: one
    value of it, in the names of candidates. paper: where its figures are, and of which machine. to_export: the options
    of `visrt export` that make a bundle for these values. published: the paper's figures by value.
    """

    option: str
    setting: str
    axis: str
    variant: str
    paper: str
    to_export: str
    published: Mapping[int, Published] = field(default_factory=dict)


CLIP_LENGTHS = Sweep(
    option="--clip-lengths",
    setting="clip_frames",
    axis="frames a clip",
    variant="clips of {}",
    paper="GenVIS (Heo et al., CVPR 2023), figure 3: FPS over the frames of a clip on an A100; compare with its curve",
    to_export="--family genvis --clip-lengths {}",
)
KEY_EVERY = Sweep(
    option="--key-every",
    setting="key_every_frames",
    axis="key frame every",
    variant="key frame every {}",
    paper="InsPro (He et al., NeurIPS 2022), table 3: InsPro-lite, AP on YouTube-VIS 2019, FPS on an RTX 2080 Ti",
    to_export="--family inspro_lite",
    published={
        1: Published(40.2, 26.3),
        5: Published(39.4, 41.8),
        10: Published(38.7, 45.7),
        15: Published(37.5, 49.1),
    },
)


@dataclass(frozen=True)
class SweepPoint:
    """One value of a sweep. faster: how many times the FPS of the first value; published_faster: in the paper."""

    value: int
    fps: Spread
    engines_fps: Spread
    faster: float
    published: Published | None
    published_faster: float | None


@dataclass(frozen=True)
class SweepFigures:
    """A sweep of one bundle on one engine; points: in the order of the values."""

    sweep: Sweep
    name: str
    points: Sequence[SweepPoint]


def check_sweep(sweep: Sweep, values: Sequence[int], bundle: Bundle) -> None:
    """Raises UsageError for a bundle that does not have the setting, or was not exported for all of `values`."""
    manifest = bundle.manifest
    to_export = sweep.to_export.format(_listed(values))
    if not hasattr(method_of(manifest).settings, sweep.setting):
        raise UsageError(
            f"{sweep.option} was given for bundle {manifest.name!r} of family {manifest.family!r}, which has no "
            f"setting {sweep.setting}; give one that was exported with {to_export}"
        )
    if refused := [value for value in values if not _takes(bundle, {sweep.setting: value})]:
        raise UsageError(
            f"bundle {manifest.name!r} was not exported for {sweep.option} {_listed(refused)}; leave these out, or "
            f"export it with {to_export}"
        )


def _takes(bundle: Bundle, association: Mapping[str, Any]) -> bool:
    try:
        method_of(bundle.manifest, association)
    except (BundleError, UsageError):
        return False
    return True


def _listed(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


def swept(sweep: Sweep, candidates: Sequence[Candidate], figures: Sequence[Figures]) -> Iterator[SweepFigures]:
    """The figures of `candidates` that belong to `sweep`, by bundle, engine and frames in flight."""
    runs: dict[tuple[int, str], list[tuple[int, Figures]]] = {}
    for candidate, found in zip(candidates, figures, strict=True):
        if isinstance(candidate, BundleCandidate) and sweep.setting in candidate.association:
            run = runs.setdefault((id(candidate.bundle), candidate.plain_name), [])
            run.append((candidate.association[sweep.setting], found))
    for (_, name), points in runs.items():
        yield SweepFigures(sweep, name, [_point(sweep, points[0], value, found) for value, found in points])


def _point(sweep: Sweep, first: tuple[int, Figures], value: int, found: Figures) -> SweepPoint:
    published, first_published = sweep.published.get(value), sweep.published.get(first[0])
    return SweepPoint(
        value=value,
        fps=found.fps,
        engines_fps=found.engines_fps,
        faster=found.fps.median / first[1].fps.median,
        published=published,
        published_faster=published.fps / first_published.fps if published and first_published else None,
    )
