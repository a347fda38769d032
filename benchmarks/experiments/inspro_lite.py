"""What InsPro-lite saves: its lite head against the whole one, and whole frames for several key-frame distances.

    python -m visrt.benchmarks.experiments.inspro_lite --bundle runs/inspro_r50 --write

The bundle is one of family inspro_lite, as `inspro_export` writes it. Everything takes turns in one run on one thread.
Times are processor time, which other programs on the machine hardly lengthen.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean, median
from time import process_time
from typing import Any

import numpy as np

from visrt.benchmarks.accuracy.result_files import EXPERIMENT_RESULTS, add_result_options, write_result
from visrt.benchmarks.speed.sweeps import KEY_EVERY
from visrt.export.frames import synthetic_frames
from visrt.models.inspro import INSPRO_R50_LITE
from visrt.runtime.arrays import Feed, Tensors
from visrt.runtime.bundles.bundle import Bundle, initial_states, open_bundle
from visrt.runtime.engines.backends import open_engines
from visrt.runtime.engines.engine import Engine
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.methods.inspro import BANK, PROPOSALS, QUERIES, InsProSettings
from visrt.runtime.methods.inspro_pairs import first_pairs
from visrt.runtime.session import Session

__all__ = ["bound_by_macs", "in_turns"]

PAPER_FPS = {key_every: published.fps for key_every, published in KEY_EVERY.published.items()}

MASKS = 10


def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each of `calls`, which take turns, after a round of warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = process_time()
            call()
            taken[name].append(process_time() - start)
    return {name: seconds[1:] for name, seconds in taken.items()}


def bound_by_macs(macs: Mapping[str, int], key_every: int) -> float:
    """How many times faster than a key frame in every frame, if time were multiplications; masks left out."""
    every = macs["frame"] + macs["head"]
    return every / (macs["frame"] + (macs["head"] + (key_every - 1) * macs["head_lite"]) / key_every)


def main() -> None:
    given = arguments()
    bundle = open_bundle(given.bundle)
    engines = open_engines(bundle, options=EngineOptions(threads=1))
    graphs = in_turns(_graph_calls(bundle, engines), given.rounds)
    frames = _frame_times(bundle, engines, given.frames)
    write_result(given.out, settings_of(given), _figures(bundle, graphs, frames))
    print(given.out.read_text())


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9, help="calls of each graph")
    parser.add_argument(
        "--frames", type=int, default=30, help="whole frames for each distance; 30 is a multiple of all"
    )
    add_result_options(parser, EXPERIMENT_RESULTS / "inspro_lite.json")
    return parser.parse_args(argv)


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "rounds": given.rounds,
        "frames": given.frames,
        "key_every_frames": tuple(PAPER_FPS),
        "masks": MASKS,
        "threads": 1,
        "network": asdict(INSPRO_R50_LITE),
    }


def _graph_calls(bundle: Bundle, engines: Mapping[str, Engine]) -> dict[str, Callable[[], object]]:
    """One call of each graph, on the first frame of a video."""
    spec, states = bundle.manifest.input, initial_states(bundle)
    frame = synthetic_frames(1, spec.height, spec.width)
    given = engines["frame"]({"images": frame.images, "valid_sizes": frame.valid_sizes})
    pairs = first_pairs(states[QUERIES], states[PROPOSALS], states[BANK].shape[1], streams=1)
    looking: dict[str, Feed] = {role: given[role] for role in ("pyramid", "picture_sizes")}
    heads = {name: {**looking, **pairs.feeds(name, InsProSettings().box_side_min)} for name in ("head", "head_lite")}
    feeds: dict[str, Mapping[str, Feed]] = {
        "frame": {"images": frame.images, "valid_sizes": frame.valid_sizes},
        **heads,
        "masks": {
            "slots": np.arange(MASKS, dtype=np.int32)[None],
            "mask_embeddings": engines["head"](heads["head"])["mask_embeddings"],
            "mask_features": given["mask_features"],
        },
    }
    return {name: partial(engines[name], fed) for name, fed in feeds.items()}


def _frame_times(bundle: Bundle, engines: Mapping[str, Engine], frames: int) -> dict[int, list[float]]:
    """Processor seconds of whole frames: one video through a session for each distance, frame by frame in turns."""
    spec, states = bundle.manifest.input, initial_states(bundle)
    images = synthetic_frames(3, spec.height, spec.width).images
    sessions = {key_every: _session(bundle, engines, states, key_every) for key_every in PAPER_FPS}
    taken: dict[int, list[float]] = {key_every: [] for key_every in PAPER_FPS}
    for t in range(frames):
        for key_every, session in sessions.items():
            start = process_time()
            session.step(images[t % len(images)], t / 24)
            taken[key_every].append(process_time() - start)
    return taken


def _session(bundle: Bundle, engines: Mapping[str, Engine], states: Tensors, key_every: int) -> Session:
    return Session(bundle.manifest, engines, association={"key_every_frames": key_every}, states=states)


def _figures(
    bundle: Bundle, graphs: Mapping[str, Sequence[float]], frames: Mapping[int, Sequence[float]]
) -> dict[str, Any]:
    macs = {name: graph.macs or 0 for name, graph in bundle.manifest.graphs.items()}
    medians = {name: median(seconds) for name, seconds in graphs.items()}
    whole = {key_every: mean(seconds) for key_every, seconds in frames.items()}
    return {
        "bundle": {"name": bundle.manifest.name, "size": [bundle.manifest.input.height, bundle.manifest.input.width]},
        "graphs": {
            name: {
                "macs": macs[name],
                "median_ms": 1e3 * medians[name],
                "ms": [round(1e3 * s, 1) for s in graphs[name]],
            }
            for name in graphs
        },
        "head_lite_of_head": medians["head_lite"] / medians["head"],
        "whole_frame": {
            key_every: {
                "mean_ms": 1e3 * seconds,
                "faster_than_every_frame_a_key_frame": whole[1] / seconds,
                "bound_by_macs": bound_by_macs(macs, key_every),
                "paper_gpu_fps": PAPER_FPS[key_every],
                "paper_faster": PAPER_FPS[key_every] / PAPER_FPS[1],
            }
            for key_every, seconds in whole.items()
        },
    }


if __name__ == "__main__":
    main()
