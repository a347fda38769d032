"""Compare association settings on annotated videos: the network runs once, the association once a combination.

python -m visrt.benchmarks.accuracy.tune --bundle B --data DIR --classes MAP.json --grid '{"nms_iou": [0.5, 0.6, 0.7]}'

With --record FOLDER the network's outputs are kept there, so that it does not run again in later runs. The criterion is
the one that `visrt calibrate --thresholds` maximises.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from visrt.benchmarks.accuracy.evaluate import Evaluation, evaluate_session
from visrt.benchmarks.accuracy.recorded_outputs import recorded_sizes
from visrt.benchmarks.accuracy.thresholds import Criterion
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.engines.backends import engines_by_size
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.session import Session
from visrt.training.data.annotations import AnnotatedSet, load_class_map, require_annotations
from visrt.training.data.set_formats import load_annotations

__all__ = ["combinations", "tune"]


def combinations(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every choice of one value a setting."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def tune(
    bundle: Bundle,
    sets: Mapping[str, AnnotatedSet],
    grid: Mapping[str, Sequence[Any]],
    fps: float,
    recording: Path | None = None,
) -> Iterator[tuple[dict[str, Any], dict[str, Evaluation]]]:
    """Each combination of `grid` with its evaluation on each of `sets`.

    The network's outputs are kept in the folder `recording`, or in memory where none is given.
    """
    main, *others = recorded_sizes(engines_by_size(bundle, "cpu", EngineOptions()), recording)
    for changes in combinations(grid):
        session = Session(bundle.manifest, main.engines, association=changes, states=main.states, other_sizes=others)
        yield changes, {name: evaluate_session(session, annotated, fps) for name, annotated in sets.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare association settings on annotated videos.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="sets as `visrt data check` takes them")
    parser.add_argument("--classes", type=Path, help="class map (json)")
    parser.add_argument("--grid", type=json.loads, required=True, help='json: {"setting": [values]}')
    parser.add_argument("--record", type=Path, help="folder to keep the network's outputs in, and to take them from")
    parser.add_argument("--fps", type=float, default=24.0)
    given = parser.parse_args()
    bundle = open_bundle(given.bundle)
    mapped = load_class_map(given.classes) if given.classes else None
    sets = {folder.name: load_annotations(folder, bundle.manifest.classes, mapped) for folder in given.data}
    for name, annotated in sets.items():
        require_annotations(annotated, Path(name), "comparing settings")
    columns = [f"{name} {figure}" for name in sets for figure in ("recall", "dup", "switch", "AP50", "criterion")]
    table = Table(*given.grid, *columns)
    for changes, evaluations in tune(bundle, sets, given.grid, given.fps, given.record):
        table.add_row(*map(str, changes.values()), *(text for e in evaluations.values() for text in _figures(e)))
    Console(width=200).print(table)


def _figures(evaluation: Evaluation) -> tuple[str, ...]:
    c = evaluation.counts
    ap50 = f"{100 * evaluation.precision.ap50:.1f}"
    return f"{c.recall:.3f}", f"{c.duplicates_a_frame:.2f}", f"{c.switch_rate:.1%}", ap50, f"{Criterion().score(c):.3f}"


if __name__ == "__main__":
    main()
