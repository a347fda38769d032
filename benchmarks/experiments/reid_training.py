"""CTVIS's training against MinVIS's from the same weights, on the same clips, for as many steps: who is found again?

    python -m visrt.benchmarks.experiments.reid_training --write --data datasets/composite_dev

Both arms train on the clips of the settings; the MinVIS arm leaves out every loss over frames. Each seed is a run of
its own, resumed if interrupted; --arm and --seed do one alone, so that two may run at a time. What is measured already
is not measured again, so rules may be added. When all runs are there their figures are put together in --out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from visrt.benchmarks.accuracy.evaluate import Evaluation, evaluate_session
from visrt.benchmarks.accuracy.recorded_outputs import recorded
from visrt.benchmarks.accuracy.result_files import EXPERIMENT_RESULTS, add_result_options, write_result
from visrt.benchmarks.experiments.reidentification import found_again
from visrt.benchmarks.experiments.training_runs import FIGURES, spread, trained
from visrt.export.bundle import Export, export_bundle
from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.engines.backends import open_engines
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.errors import SettingsError
from visrt.runtime.session import Session
from visrt.runtime.settings import settings_from_file
from visrt.runtime.sinks.output import write_atomically
from visrt.training.data.annotations import AnnotatedSet, load_class_map
from visrt.training.data.pseudo_videos import write_pseudo_videos
from visrt.training.data.set_formats import load_annotations
from visrt.training.settings import TrainSettings

__all__ = ["ARMS", "arm_settings", "paired"]

ARMS = ("minvis", "ctvis")
START = "start"
DISTANCES = (1, 2, 4, 8, 16)
FPS = 24.0
VALIDATION_SEED = 77


@dataclass(frozen=True)
class Rule:
    """How objects are associated: settings in place of the bundle's, or a method of `visrt.runtime.methods.presets`."""

    name: str
    changes: Mapping[str, Any] | None = None
    preset: str | None = None


def arm_settings(settings: TrainSettings, arm: str, seed: int) -> TrainSettings:
    """`settings` for one run: the MinVIS arm learns from single frames, though from the same ones."""
    if settings.loss.contrast == "off" or not settings.init:
        raise SettingsError("the settings need loss.contrast, for the CTVIS arm, and init, where both arms start")
    alone = replace(settings.loss, contrast="off", identity_weight=0.0)
    return replace(settings, seed=seed, loss=settings.loss if arm == "ctvis" else alone)


def paired(figures: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """By figure: each arm's values over the seeds, mean and spread, and those of CTVIS less MinVIS, seed by seed.

    A share of nothing is None and counts in no mean.
    """
    table = {}
    for name in figures["ctvis"][0]:
        values = {arm: [run[name] for run in figures[arm]] for arm in ARMS}
        values["ctvis_less_minvis"] = [c - m for c, m in zip(values["ctvis"], values["minvis"], strict=True)]
        table[name] = {arm: spread(each) for arm, each in values.items()}
    return table


def main() -> None:
    given = arguments()
    settings = settings_from_file(TrainSettings, given.settings)
    given.runs.mkdir(parents=True, exist_ok=True)
    sets = _sets(given, settings)
    rules = _rules(given)
    if given.arm in (None, START):
        _measure(Path(settings.init or ""), given.runs / START, sets, rules, settings)
    for seed in given.seeds if given.seed is None else [given.seed]:
        for arm in ARMS if given.arm is None else [given.arm]:
            if arm != START:
                folder = given.runs / f"{arm}-{seed}"
                weights = trained(arm_settings(settings, arm, seed), folder)
                _measure(weights, folder, sets, rules, settings)
    runs = {arm: [given.runs / f"{arm}-{seed}" for seed in given.seeds] for arm in ARMS} | {START: [given.runs / START]}
    waiting = [str(folder) for folders in runs.values() for folder in folders if not (folder / FIGURES).exists()]
    if waiting:
        print(f"still to come: {', '.join(waiting)}")
    else:
        write_result(given.out, settings_of(given), _figures(runs))


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipes = Path("training/recipes")
    parser.add_argument("--settings", type=Path, default=recipes / "ctvis/small.json", help="json of the CTVIS arm")
    parser.add_argument("--runs", type=Path, default=Path("runs/reid_training"), help="folder of the runs")
    add_result_options(parser, EXPERIMENT_RESULTS / "ctvis_training.json")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="more folders to measure on")
    parser.add_argument(
        "--classes", type=Path, default=recipes / "default/eval_classes.json", help="class map of --data (json)"
    )
    rules = [recipes / "default/association.json", recipes / "ctvis/hold.json"]
    parser.add_argument("--association", type=Path, nargs="+", default=rules)
    parser.add_argument("--preset", nargs="*", default=["ctvis", "memory"], help="methods to associate with besides")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--videos", type=int, default=50, help="held-out pseudo-videos")
    parser.add_argument("--frames", type=int, default=24, help="frames of each")
    parser.add_argument("--arm", choices=(START, *ARMS), help="this arm alone; start: the weights both start from")
    parser.add_argument("--seed", type=int, help="this seed alone")
    return parser.parse_args(argv)


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "recipe": asdict(settings_from_file(TrainSettings, given.settings)),
        "seeds": given.seeds,
        "validation": {"videos": given.videos, "frames": given.frames, "seed": VALIDATION_SEED, "part": "held_out"},
        "rules": [asdict(rule) for rule in _rules(given)],
    }


def _sets(given: argparse.Namespace, settings: TrainSettings) -> dict[str, AnnotatedSet]:
    """Held-out pseudo-videos of the training size, written once, and the folders of --data."""
    folder = given.runs / "validation"
    clips = replace(settings.data.clips, part="held_out", frames=given.frames)
    if not (folder / "instances.json").exists():
        write_pseudo_videos(settings.data.sources, clips, folder, given.videos, VALIDATION_SEED)
    classes = settings.data.clips.classes
    mapped = load_class_map(given.classes)
    others = {path.name: load_annotations(path, classes, mapped) for path in given.data}
    return {"pseudo": load_annotations(folder, classes), **others}


def _rules(given: argparse.Namespace) -> list[Rule]:
    files = [Rule(path.stem, changes=json.loads(path.read_text())) for path in given.association]
    return [*files, *(Rule(f"preset {name}", preset=name) for name in given.preset)]


def _measure(
    weights: Path, folder: Path, sets: Mapping[str, AnnotatedSet], rules: Sequence[Rule], settings: TrainSettings
) -> None:
    """Write the figures of `weights` to `folder`, adding to those that are there."""
    path = folder / FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    if not any("found_again" in name for name in figures):
        for name, rates in found_again(
            load_checkpoint(weights, MASK2FORMER).network(), sets["pseudo"], DISTANCES
        ).items():
            figures |= {f"pseudo found_again {name} at {d}": found.rate for d, found in rates.items()}
    missing = [rule for rule in rules if not any(f" {rule.name} " in name for name in figures)]
    if missing:
        figures |= _associated(weights, folder / "bundle", sets, missing, settings)
    write_atomically(path, [json.dumps(figures, indent=1).encode() + b"\n"])


def _associated(
    weights: Path, bundle: Path, sets: Mapping[str, AnnotatedSet], rules: Sequence[Rule], settings: TrainSettings
) -> dict[str, float]:
    """Identity and AP of the exported network under each of `rules`, the network run once."""
    clips = settings.data.clips
    export_bundle(Export(checkpoint=weights, out=bundle, height=clips.height_px, width=clips.width_px, overwrite=True))
    opened = open_bundle(bundle)
    engines = recorded(opened.manifest, open_engines(opened, options=EngineOptions(threads=1)))
    figures: dict[str, float] = {}
    for rule in rules:
        session = Session(opened.manifest, engines, association=rule.changes, preset=rule.preset)
        for name, annotated in sets.items():
            told = _told(evaluate_session(session, annotated, FPS))
            figures |= {f"{name} {rule.name} {figure}": value for figure, value in told.items()}
    return figures


def _told(evaluation: Evaluation) -> dict[str, float]:
    c = evaluation.counts
    counted = {"switches": c.id_switches, "links": c.links, "lost_ids": c.lost_ids, "returns": c.returns}
    rates = {"recall": c.recall, "switch_rate": c.switch_rate, "lost_id_rate": c.lost_id_rate}
    return {**counted, **rates, "AP50": evaluation.precision.ap50}


def _figures(runs: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    figures = {arm: [json.loads((folder / FIGURES).read_text()) for folder in runs[arm]] for arm in runs}
    return {
        "cpu_s": {arm: [json.loads((folder / "cpu_s.json").read_text()) for folder in runs[arm]] for arm in ARMS},
        "start": figures.pop(START)[0],
        "figures": paired(figures),
    }


if __name__ == "__main__":
    main()
