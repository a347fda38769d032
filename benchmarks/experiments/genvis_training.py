"""GenVIS's slots against MinVIS's matching on the same frame network: who keeps its id through meetings and absences?

    python -m visrt.benchmarks.experiments.genvis_training --write

The frame network is the settings' `init`; GenVIS's video part is trained on it, each seed a run of its own, resumed if
interrupted; --seed does one alone. Both are measured on held-out pseudo-videos in which an object goes out of sight
and comes back, with the same thresholds. When all runs are there their figures are put together in --out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import isnan
from pathlib import Path
from typing import Any

from visrt.benchmarks.accuracy.evaluate import Evaluation, evaluate_session
from visrt.benchmarks.accuracy.recorded_outputs import recorded
from visrt.benchmarks.accuracy.result_files import EXPERIMENT_RESULTS, add_result_options, write_result
from visrt.benchmarks.datasets.returning_videos import crowded, returning_clips
from visrt.benchmarks.experiments.training_runs import FIGURES, spread, trained
from visrt.export.bundle import Export, export_bundle
from visrt.runtime.bundles.bundle import initial_states, open_bundle
from visrt.runtime.engines.backends import open_engines
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.errors import SettingsError
from visrt.runtime.session import Session
from visrt.runtime.settings import settings_from_file
from visrt.runtime.sinks.output import write_atomically
from visrt.training.data.annotations import AnnotatedSet
from visrt.training.data.pseudo_videos import write_clips
from visrt.training.data.set_formats import load_annotations
from visrt.training.data.sources import load_pool
from visrt.training.genvis_settings import GenVisTraining
from visrt.training.settings import TrainSettings

__all__ = ["compared", "rules_of"]

MINVIS = "minvis"
THRESHOLDS = ({"birth_score": 0.5, "keep_score": 0.4}, {"birth_score": 0.75, "keep_score": 0.35})
FPS = 24.0
VALIDATION_SEED = 78

Figures = Mapping[str, float]


def rules_of(family: str) -> dict[str, dict[str, Any]]:
    """Association settings by name. MinVIS's as visrt has it; without dropping duplicates, as GenVIS; and with what
    an object out of sight was like kept.
    """
    named: dict[str, dict[str, Any]] = {f"birth {t['birth_score']} keep {t['keep_score']}": dict(t) for t in THRESHOLDS}
    if family != MINVIS:
        return named
    hold = {"unseen_memory": "hold", "lost_s": 3.0, "revive_similarity": 0.3}
    variants: dict[str, dict[str, Any]] = {"nms off": {"nms_iou": 1.0}, "hold": hold}
    return named | {f"{name}, {told}": rule | more for name, rule in named.items() for told, more in variants.items()}


def compared(minvis: Figures, genvis: Sequence[Figures]) -> dict[str, dict[str, Any]]:
    """By rule and figure: GenVIS over the seeds, mean and spread, and MinVIS, which has no seeds. No number is None."""
    table: dict[str, dict[str, Any]] = {}
    for name in minvis:
        values = [one[name] for one in genvis if name in one]
        table[name] = {MINVIS: None if isnan(minvis[name]) else minvis[name]}
        if values:
            told = spread(values)
            table[name] |= {"genvis": told["seeds"], "genvis_mean": told["mean"], "genvis_stdev": told["stdev"]}
    return table


def main() -> None:
    given = arguments()
    settings = settings_from_file(TrainSettings, given.settings)
    if settings.genvis is None:
        raise SettingsError(f"{given.settings}: has no genvis section; give settings that train GenVIS")
    given.runs.mkdir(parents=True, exist_ok=True)
    annotated = _videos(given, settings)
    _measure(Path(settings.init or ""), given.runs / MINVIS, annotated, settings, MINVIS)
    for seed in given.seeds if given.seed is None else [given.seed]:
        folder = given.runs / f"genvis-{seed}"
        weights = trained(replace(settings, seed=seed), folder)
        _measure(weights, folder, annotated, settings, "genvis")
    folders = [given.runs / f"genvis-{seed}" for seed in given.seeds]
    waiting = [str(folder) for folder in folders if not (folder / FIGURES).exists()]
    if waiting:
        print(f"still to come: {', '.join(waiting)}")
    else:
        write_result(given.out, settings_of(given), _figures(given.runs / MINVIS, folders))


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipe = Path("training/recipes/genvis/small.json")
    parser.add_argument("--settings", type=Path, default=recipe, help="json of a run that trains GenVIS")
    parser.add_argument("--runs", type=Path, default=Path("runs/genvis_training"), help="folder of the runs")
    add_result_options(parser, EXPERIMENT_RESULTS / "genvis_training.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seed", type=int, help="this seed alone")
    parser.add_argument("--videos", type=int, default=40, help="held-out pseudo-videos")
    parser.add_argument("--frames", type=int, default=24, help="frames of each")
    return parser.parse_args(argv)


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "recipe": asdict(settings_from_file(TrainSettings, given.settings)),
        "seeds": given.seeds,
        "validation": {"videos": given.videos, "frames": given.frames, "seed": VALIDATION_SEED, "part": "held_out"},
        "rules": {family: rules_of(family) for family in (MINVIS, "genvis")},
    }


def _videos(given: argparse.Namespace, settings: TrainSettings) -> AnnotatedSet:
    """Held-out pseudo-videos of the training size, in each of which an object comes back; written once."""
    folder = given.runs / "validation"
    if not (folder / "instances.json").exists():
        clips = settings.data.clips
        wanted = replace(crowded(clips, (clips.height_px, clips.width_px), given.frames), part="held_out")
        pool = load_pool(settings.data.sources, wanted)
        write_clips(returning_clips(pool, wanted, given.videos, VALIDATION_SEED), pool.classes, folder, VALIDATION_SEED)
    return load_annotations(folder, settings.data.clips.classes)


def _measure(weights: Path, folder: Path, annotated: AnnotatedSet, settings: TrainSettings, family: str) -> None:
    """Write the figures of `weights` under each rule to `folder`, adding to those that are there."""
    path = folder / FIGURES
    figures: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    missing = {rule: given for rule, given in rules_of(family).items() if f"{rule}: found" not in figures}
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    clips, bundle = settings.data.clips, folder / "bundle"
    association = _association(settings.genvis) if family == "genvis" and settings.genvis else {}
    export_bundle(
        Export(weights, bundle, clips.height_px, clips.width_px, family=family, association=association, overwrite=True)
    )
    opened = open_bundle(bundle)
    engines = recorded(opened.manifest, open_engines(opened, options=EngineOptions(threads=1)))
    states = initial_states(opened)
    for rule, changes in missing.items():
        session = Session(opened.manifest, engines, association=changes, states=states)
        told = _told(evaluate_session(session, annotated, FPS))
        figures |= {f"{rule}: {figure}": value for figure, value in told.items()}
    write_atomically(path, [json.dumps(figures, indent=1).encode() + b"\n"])


def _association(video: GenVisTraining) -> dict[str, Any]:
    """Clips and memory as in training."""
    return {
        "clip_frames": video.clip_frames,
        "clip_lengths": (video.clip_frames,),
        "memory_read": video.memory,
    }


def _told(evaluation: Evaluation) -> dict[str, float]:
    c = evaluation.counts
    counted = {"found": c.tp, "switches": c.id_switches, "links": c.links, "lost_ids": c.lost_ids, "returns": c.returns}
    rates = {"recall": c.recall, "switch_rate": c.switch_rate, "lost_id_rate": c.lost_id_rate}
    return {**counted, **rates, "duplicates_a_frame": c.duplicates_a_frame, "AP50": evaluation.precision.ap50}


def _figures(start: Path, folders: Sequence[Path]) -> dict[str, Any]:
    minvis, *genvis = [json.loads((folder / FIGURES).read_text()) for folder in (start, *folders)]
    cpu_s = [json.loads((folder / "cpu_s.json").read_text()) for folder in folders]
    return {"cpu_s": cpu_s, "figures": compared(minvis, genvis)}


if __name__ == "__main__":
    main()
