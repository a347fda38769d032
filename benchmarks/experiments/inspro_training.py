"""InsPro trained with pairs that travel against the same network whose frames start anew: who keeps its slot?

    python -m visrt.benchmarks.experiments.inspro_training --write --picture docs/inspro_deduplication.png

Both arms start from the settings' `init` and see the same clips. Each is then run both ways on held-out pseudo-videos:
pairs travelling, and every frame from the learned pairs. Two more arms travel without the loss that keeps free boxes
apart, and with ten times as much of it; how they lie is measured on held-out clips and drawn in --picture. Runs are
resumed if interrupted; when all are there their figures are put together in --out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from visrt.benchmarks.accuracy.evaluate import Evaluation, evaluate_official, evaluate_session
from visrt.benchmarks.accuracy.result_files import EXPERIMENT_RESULTS, add_result_options, write_result
from visrt.benchmarks.experiments.inspro_free_boxes import draw_free_boxes, free_boxes
from visrt.benchmarks.experiments.inspro_slots import best_slots
from visrt.benchmarks.experiments.training_runs import FIGURES, spread, trained
from visrt.export.bundle import Export, export_bundle
from visrt.models.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from visrt.models.checkpoints.inspro import INSPRO
from visrt.models.inspro import InsPro
from visrt.runtime.errors import SettingsError
from visrt.runtime.session import Session
from visrt.runtime.settings import settings_from_file
from visrt.runtime.sinks.output import write_atomically
from visrt.training.data.annotations import AnnotatedSet
from visrt.training.data.pseudo_videos import write_pseudo_videos
from visrt.training.data.set_formats import load_annotations
from visrt.training.inspro_settings import InsProTrainSettings

__all__ = ["ARMS", "DEDUP_ARMS", "arm_settings", "over_seeds"]

ARMS = ("alone", "travelling")
CROWDING, SPREADING = "without_dedup", "tenfold_dedup"
DEDUP_ARMS = {CROWDING: 0.0, SPREADING: 10.0}
"""As "travelling", but for the weight of the loss that keeps free boxes apart."""

WAYS: dict[str, Literal["off", "both"]] = {"anew": "off", "travelling": "both"}
"""The propagation of the bundles that a network is run as."""

START = "start"
SHOWN = {"birth_score": 0.3, "keep_score": 0.2}
"""Focal scores of a network trained for minutes are low."""

FPS = 24.0
VALIDATION_SEED = 79
CLIPS = 36
"""Held-out clips over which boxes and slots are measured."""


def arm_settings(settings: InsProTrainSettings, arm: str, seed: int) -> InsProTrainSettings:
    """`settings` for one run; all arms see the same clips."""
    if settings.phase != "pairs" or settings.network.propagation != "both" or not settings.init:
        raise SettingsError(
            "the settings need phase 'pairs', network.propagation 'both', and init, where all arms start"
        )
    settings = replace(settings, seed=seed)
    if arm == "alone":
        return replace(settings, network=replace(settings.network, propagation="off"))
    weight = DEDUP_ARMS.get(arm, settings.loss.dedup)
    return replace(settings, loss=replace(settings.loss, dedup=weight))


def over_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """By figure: the value of each run, mean and spread; a share of nothing is None and counts in no mean."""
    return {name: spread([run[name] for run in runs]) for name in runs[0]}


def main() -> None:
    given = arguments()
    settings = settings_from_file(InsProTrainSettings, given.settings)
    given.runs.mkdir(parents=True, exist_ok=True)
    annotated = _videos(given, settings)
    wanted = [(arm, seed) for seed in given.seeds for arm in (*ARMS, *DEDUP_ARMS)]
    _measure(Path(settings.init or ""), given.runs / START, annotated, arm_settings(settings, "alone", 0))
    for arm, seed in wanted:
        if given.arm in (None, arm) and given.seed in (None, seed):
            folder, asked = given.runs / f"{arm}-{seed}", arm_settings(settings, arm, seed)
            _measure(trained(asked, folder), folder, annotated, asked)
    folders = {arm: [given.runs / f"{arm}-{seed}" for seed in given.seeds] for arm in (*ARMS, *DEDUP_ARMS)}
    folders[START] = [given.runs / START]
    waiting = [str(one) for each in folders.values() for one in each if not (one / FIGURES).exists()]
    if waiting:
        print(f"still to come: {', '.join(waiting)}")
        return
    told = {arm: [json.loads((folder / FIGURES).read_text()) for folder in each] for arm, each in folders.items()}
    cpu_s = {path.parent.name: round(json.loads(path.read_text())) for path in sorted(given.runs.glob("*/cpu_s.json"))}
    figures = {arm: over_seeds(each) for arm, each in told.items()}
    write_result(given.out, settings_of(given), {"cpu_s": cpu_s, "figures": figures})
    shown = {
        "without box deduplication": CROWDING,
        "with it, as published": "travelling",
        "with ten times its weight": SPREADING,
    }
    networks = {
        title: [_network(folder / "model.safetensors") for folder in folders[arm]] for title, arm in shown.items()
    }
    draw_free_boxes(networks, _for_boxes(settings), given.picture)


def _network(weights: Path) -> InsPro:
    return load_checkpoint(weights, INSPRO).network()


def _for_boxes(settings: InsProTrainSettings) -> InsProTrainSettings:
    """The same held-out clips for every seed."""
    return replace(settings, seed=VALIDATION_SEED, data=replace(settings.data, validation_clips=CLIPS))


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipe = Path("training/recipes/inspro/small.json")
    parser.add_argument("--settings", type=Path, default=recipe, help="json of a run of phase 'pairs'")
    parser.add_argument("--runs", type=Path, default=Path("runs/inspro_training"), help="folder of the runs")
    add_result_options(parser, EXPERIMENT_RESULTS / "inspro_training.json")
    parser.add_argument("--picture", type=Path, default=Path("out/inspro_deduplication.png"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--videos", type=int, default=24, help="held-out pseudo-videos")
    parser.add_argument("--frames", type=int, default=12, help="frames of each")
    parser.add_argument("--arm", choices=(*ARMS, *DEDUP_ARMS), help="this arm alone")
    parser.add_argument("--seed", type=int, help="this seed alone")
    return parser.parse_args(argv)


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "recipe": asdict(settings_from_file(InsProTrainSettings, given.settings)),
        "seeds": given.seeds,
        "arms": [*ARMS, *DEDUP_ARMS],
        "dedup_weights": DEDUP_ARMS,
        "clips": CLIPS,
        "validation": {"videos": given.videos, "frames": given.frames, "seed": VALIDATION_SEED, "part": "held_out"},
        "association": SHOWN,
    }


def _videos(given: argparse.Namespace, settings: InsProTrainSettings) -> AnnotatedSet:
    """Held-out pseudo-videos of the training size, written once."""
    folder, clips = given.runs / "validation", settings.data.clips
    if not (folder / "instances.json").exists():
        held_out = replace(clips, part="held_out", frames=given.frames)
        write_pseudo_videos(settings.data.sources, held_out, folder, given.videos, VALIDATION_SEED)
    return load_annotations(folder, clips.classes)


def _measure(weights: Path, folder: Path, annotated: AnnotatedSet, settings: InsProTrainSettings) -> None:
    """Write the figures of `weights` run both ways to `folder`, unless they are there; of boxes, slots and
    whole videos, run as trained."""
    if (folder / FIGURES).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    network = _network(weights)
    same = _for_boxes(settings)
    figures = {f"free boxes: {name}": value for name, value in free_boxes(network, same).items()}
    figures |= {f"slots: {name}": value for name, value in best_slots(network, same).items()}
    for way in WAYS:
        with Session.open(_exported(weights, folder, settings, way), threads=1, association=SHOWN) as session:
            told = _told(evaluate_session(session, annotated, FPS))
            if WAYS[way] == settings.network.propagation:
                told["AP50_of_whole_videos"] = evaluate_official(session, annotated).precision.ap50
        figures |= {f"{way}: {name}": value for name, value in told.items()}
    write_atomically(folder / FIGURES, [json.dumps(figures, indent=1).encode() + b"\n"])


def _exported(weights: Path, folder: Path, settings: InsProTrainSettings, way: str) -> Path:
    """The bundle of `weights` whose pairs travel as `way` has it."""
    checkpoint, clips = load_checkpoint(weights, INSPRO), settings.data.clips
    network = InsPro(replace(checkpoint.settings, propagation=WAYS[way]))
    network.load_state_dict(checkpoint.network().state_dict())
    save_checkpoint(network, folder / f"{way}.safetensors", clips.classes)
    export = Export(folder / f"{way}.safetensors", folder / way, clips.height_px, clips.width_px, family="inspro")
    export_bundle(replace(export, overwrite=True))
    return folder / way


def _told(evaluation: Evaluation) -> dict[str, float]:
    c = evaluation.counts
    counted = {"found": c.tp, "switches": c.id_switches, "links": c.links, "lost_ids": c.lost_ids, "returns": c.returns}
    rates = {"recall": c.recall, "switch_rate": c.switch_rate, "lost_id_rate": c.lost_id_rate}
    return {**counted, **rates, "duplicates_a_frame": c.duplicates_a_frame, "AP50": evaluation.precision.ap50}


if __name__ == "__main__":
    main()
