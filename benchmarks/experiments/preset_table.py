"""Every preset on one and the same network: its outputs are recorded once, then associated by each rule in turn.

    python -m visrt.benchmarks.experiments.preset_table --bundle bundles/default --data datasets/returning \
        --mapped datasets/composite_dev training/recipes/default/eval_classes.json --recording runs/preset_table --write

A preset brings the thresholds of its method. So that rules are not confused with thresholds, each is run once more with
those that were chosen for the network: what the bundle says of birth_score, keep_score and nms_iou. Where sets have
many videos, the differences from MinVIS's rule at the same thresholds come with bootstrap intervals, paired by video.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import thread_time
from typing import Any

from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from visrt.benchmarks.accuracy.evaluate import Evaluation, evaluate_session, pictures_of
from visrt.benchmarks.accuracy.identity import IdentityCounts
from visrt.benchmarks.accuracy.recorded_outputs import recorded
from visrt.benchmarks.accuracy.report import rates
from visrt.benchmarks.accuracy.result_files import (
    COMPARED_PRESETS,
    EXPERIMENT_RESULTS,
    add_result_options,
    preset_settings,
    write_result,
)
from visrt.benchmarks.experiments.bootstrap import difference_of_rates, mean_difference, rate
from visrt.runtime.arrays import Floats
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.engines.backends import open_engines
from visrt.runtime.engines.engine import Engine
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.errors import UsageError
from visrt.runtime.mask_resize import mask_resize
from visrt.runtime.methods.method import FrameOutputs, PerFrameMethod
from visrt.runtime.methods.registry import method_of
from visrt.runtime.network import Network
from visrt.runtime.session import Session
from visrt.runtime.times import Stopwatch
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, load_class_map
from visrt.training.data.set_formats import load_annotations

__all__ = ["Contender", "contenders_of", "preset_table"]

NETWORK_THRESHOLDS = ("birth_score", "keep_score", "nms_iou")
TIMED_VIDEOS = 5
FEW_VIDEOS = 20
"""Intervals over fewer videos are not worth their name."""


@dataclass(frozen=True)
class Contender:
    """A rule to run: a preset, or None for the bundle's own; changes of its settings; whose rule it is compared with,
    by name, None for the one that others are compared with."""

    preset: str | None
    changes: Mapping[str, Any] = field(default_factory=dict)
    against: str | None = None


def contenders_of(bundle: Bundle) -> dict[str, Contender]:
    """By name: each preset as it is and with the network's thresholds, and what the bundle ships."""
    own = bundle.manifest.association
    thresholds = {name: own[name] for name in NETWORK_THRESHOLDS if name in own}
    base = f"minvis {TUNED}"
    found = {name: Contender(name, {}, None if name == "minvis" else "minvis") for name in COMPARED_PRESETS}
    if thresholds:
        found |= {
            f"{name} {TUNED}": Contender(name, thresholds, None if name == "minvis" else base)
            for name in COMPARED_PRESETS
        }
    return found | {"shipped": Contender(None, {}, base if thresholds else "minvis")}


TUNED = "at the network's thresholds"


def preset_table(
    bundle: Bundle,
    sets: Mapping[str, AnnotatedSet],
    recording: Path,
    fps: float,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """By set and contender: the evaluation's figures, microseconds a frame, and how it differs from MinVIS's rule."""
    engines = recorded(bundle.manifest, open_engines(bundle, options=EngineOptions(threads=1)), recording)
    contenders = contenders_of(bundle)
    found = {}
    for title, annotated in sets.items():
        evaluations: dict[str, Evaluation] = {}
        times: dict[str, float] = {}
        for name, contender in contenders.items():
            progress(f"{title}: {name}")
            session = Session(bundle.manifest, engines, association=contender.changes, preset=contender.preset)
            evaluations[name] = replace(evaluate_session(session, annotated, fps), reported={})
            times[name] = association_us(bundle, engines, contender, annotated.videos[:TIMED_VIDEOS], fps)
        found[title] = {name: _figures(name, evaluations, contenders) for name in contenders}
        for name, us in times.items():
            found[title][name]["us_a_frame"] = us
    return found


def association_us(
    bundle: Bundle, engines: Mapping[str, Engine], contender: Contender, videos: Sequence[AnnotatedVideo], fps: float
) -> float:
    """Microseconds of processor time a frame in association over `videos`, without the network and its masks."""
    method = method_of(bundle.manifest, contender.changes, contender.preset)
    if not isinstance(method, PerFrameMethod):
        raise UsageError(f"{bundle.folder}: family {bundle.manifest.family!r} sees clips; presets see single frames")
    network = Network(engines, bundle.manifest, Stopwatch())
    spent, frames = 0.0, 0
    for video in videos:
        state = method.start()
        for t, picture in enumerate(pictures_of(video)):
            [outputs] = network.run_frames([picture])
            masks_of = _TimedMasks(network, outputs)
            started = thread_time()
            _, state = method.associate(outputs.queries, masks_of, t / fps, state)
            spent += thread_time() - started - masks_of.seconds
            frames += 1
    return 1e6 * spent / max(frames, 1)


class _TimedMasks:
    """Makes the masks of one frame; `seconds` of processor time went into that."""

    def __init__(self, network: Network, outputs: FrameOutputs) -> None:
        self._network, self._outputs = network, outputs
        self._resize = mask_resize(outputs.fit)
        self.seconds = 0.0

    def __call__(self, mask_embeddings: Floats) -> Floats:
        started = thread_time()
        logits = self._resize.crop(self._network.run_masks(mask_embeddings, self._outputs.device))
        self.seconds += thread_time() - started
        return logits


def _figures(name: str, evaluations: Mapping[str, Evaluation], contenders: Mapping[str, Contender]) -> dict[str, Any]:
    """Sums and rates, and where there are videos enough, intervals and the difference from the rule to beat."""
    evaluation, contender = evaluations[name], contenders[name]
    figures: dict[str, Any] = {
        "preset": contender.preset,
        "changes": dict(contender.changes),
        "ap": evaluation.precision.ap,
        "ap50": evaluation.precision.ap50,
        **rates(evaluation.counts),
        "counts": evaluation.counts.as_json(),
    }
    if len(evaluation.videos) < FEW_VIDEOS:
        return figures
    changed, probabilities = changed_ids(evaluation)
    figures["changed_ids"] = asdict(rate(changed, probabilities))
    if contender.against is not None:
        figures["against"] = {"whom": contender.against, **_differences(evaluation, evaluations[contender.against])}
    return figures


def changed_ids(evaluation: Evaluation) -> tuple[list[int], list[int]]:
    """By video: how often an object had another id than when last matched, and how often it could have."""
    counts = [video.counts for video in evaluation.videos]
    return [c.id_switches + c.lost_ids for c in counts], [c.links + c.returns for c in counts]


def _differences(evaluation: Evaluation, other: Evaluation) -> dict[str, Any]:
    """Of changed ids, of what was found and of duplicates; below zero is fewer than the other."""
    rates_differ = difference_of_rates(*changed_ids(evaluation), *changed_ids(other))
    differences = {"changed_ids_a_chance": rates_differ}
    for name, count in PER_VIDEO.items():
        mine, theirs = ([count(video.counts) for video in e.videos] for e in (evaluation, other))
        differences[f"{name}_a_video"] = mean_difference(mine, theirs)
    return {name: {**asdict(found), "verdict": found.verdict} for name, found in differences.items()}


PER_VIDEO: dict[str, Callable[[IdentityCounts], int]] = {
    "changed_ids": lambda counts: counts.id_switches + counts.lost_ids,
    "switches": lambda counts: counts.id_switches,
    "lost_ids": lambda counts: counts.lost_ids,
    "found": lambda counts: counts.tp,
    "duplicates": lambda counts: counts.duplicates,
}


def table_of(figures: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """One row a contender; differences from MinVIS's rule with their intervals, where there are videos enough."""
    columns = ("AP50", "recall", "dup a frame", "switches", "lost ids", "changed ids", "less MinVIS's", "us a frame")
    table = Table("preset", *columns, title=title)
    for name, f in figures.items():
        c = f["counts"]
        table.add_row(
            name,
            f"{100 * f['ap50']:.1f}",
            f"{f['recall']:.3f}",
            f"{f['duplicates_a_frame']:.2f}",
            f"{c['switches']}/{c['links']}",
            f"{c['lost_ids']}/{c['returns']}",
            f"{100 * (c['switches'] + c['lost_ids']) / max(c['links'] + c['returns'], 1):.2f}%",
            _told(f.get("against", {}).get("changed_ids_a_chance")),
            f"{f['us_a_frame']:.0f}",
        )
    return table


def _told(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return "-"
    value, low, high = (100 * difference[name] for name in ("value", "low", "high"))
    return f"{value:+.2f}% ({low:+.2f} .. {high:+.2f}): {difference['verdict']}"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run every preset on the same recorded network outputs.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="annotated sets with the bundle's classes")
    parser.add_argument(
        "--mapped", nargs=2, type=Path, action="append", default=[], metavar=("DATA", "MAP"), help="with a class map"
    )
    parser.add_argument("--recording", type=Path, required=True, help="folder for the network's outputs; resumed")
    parser.add_argument("--fps", type=float, default=24.0)
    add_result_options(parser, EXPERIMENT_RESULTS / "preset_table.json")
    return parser.parse_args(argv)


def settings_of(given: argparse.Namespace, bundle: Bundle) -> dict[str, Any]:
    return {
        "bundle": bundle.manifest.name,
        "frame_sha256": bundle.manifest.graphs["frame"].sha256,
        "association": bundle.manifest.association,
        "fps": given.fps,
        "contenders": {name: asdict(contender) for name, contender in contenders_of(bundle).items()},
        "presets": preset_settings(),
    }


def main() -> None:
    given = arguments()
    bundle = open_bundle(given.bundle)
    classes = bundle.manifest.classes
    sets = {data.name: load_annotations(data, classes, load_class_map(mapped)) for data, mapped in given.mapped}
    sets |= {data.name: load_annotations(data, classes) for data in given.data}
    with threadpool_limits(1):
        found = preset_table(bundle, sets, given.recording, given.fps, lambda told: print(told, flush=True))
    sizes = {title: _size(annotated) for title, annotated in sets.items()}
    write_result(given.out, settings_of(given, bundle), {"sizes": sizes, "sets": found})
    for title, figures in found.items():
        Console(width=160).print(table_of(figures, title))


def _size(annotated: AnnotatedSet) -> dict[str, int]:
    return {"videos": len(annotated.videos), "frames": sum(len(video.pictures) for video in annotated.videos)}


if __name__ == "__main__":
    main()
