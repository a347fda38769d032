"""CPU time a frame of InsPro's association: what the host does between the calls of the graphs.

    python -m visrt.benchmarks.speed.inspro_association

At the published size: 100 slots, 256 channels, a bank of 17 frames before, key frames every ten in the lite variant.
The graphs are scripted and stand outside. Taking over what the engine hands to the next frame is association too; on a
CPU that is a copy of queries, boxes and one entry of the bank.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from time import thread_time

import numpy as np

from visrt.benchmarks.speed.scripted import NO_FILE, graph_of
from visrt.models.condinst import STRIDE, parameter_count
from visrt.models.feature_pyramid import pyramid_sizes
from visrt.models.inspro import INSPRO_R50
from visrt.runtime.arrays import Array, Feed, HostTensor, Tensor
from visrt.runtime.bundles.manifest import GraphSpec, InputSpec, Manifest, Producer, StateSpec, with_places
from visrt.runtime.engines.engine import Engine, HostEngine
from visrt.runtime.session import Session

__all__ = ["association_ms", "scripted_inspro"]

SIZE = (64, 96)
"""Of the network input; association does not look at pixels."""

SLOTS, DIM, CLASSES, ENTRIES = INSPRO_R50.queries, INSPRO_R50.dim, INSPRO_R50.classes, INSPRO_R50.bank_entries
OBJECTS = 10
ROUND = 30
"""Frames. In the first the bank is filled and all memory is taken."""


@dataclass
class SteadyEngine(HostEngine):
    """Gives the same in every call: the first slots are objects of their class, all other numbers are zeros."""

    spec: GraphSpec
    provider: str = "scripted"

    def __post_init__(self) -> None:
        self._made = {role: self._tensor(role) for role in self.spec.outputs}

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        made = dict(self._made)
        if "slots" in feeds:
            slots = feeds["slots"].shape[1]
            made = {role: HostTensor(tensor.numpy()[:, :slots]) for role, tensor in made.items()}
        return made

    def _tensor(self, role: str) -> Tensor:
        spec = self.spec.outputs[role]
        sizes = {"masks": OBJECTS}
        shape = [sizes.get(axis, 1) if isinstance(axis, str) else axis for axis in spec.shape]
        values: Array = np.zeros(shape, spec.dtype)
        if role == "class_logits":
            values -= 6
            values[:, np.arange(OBJECTS), np.arange(OBJECTS)] = 3
        return HostTensor(values)

    def close(self) -> None: ...


def scripted_inspro(family: str) -> Session:
    """A session of "inspro" or "inspro_lite" that shows ten objects in every frame."""
    graphs = _graphs()
    if family == "inspro":
        del graphs["head_lite"]
    states = {
        "queries": _state("queries", "next_queries", DIM),
        "proposals": _state("proposals", "next_proposals", 4),
        "bank": _state("bank", "object_features", DIM, ring=True),
    }
    manifest = Manifest(
        name="scripted",
        family=family,
        classes=tuple(f"class {label}" for label in range(CLASSES)),
        input=InputSpec(height=SIZE[0], width=SIZE[1]),
        graphs=with_places(graphs, states),
        association={},
        states=states,
        reference=NO_FILE,
        producer=Producer(versions={}, checkpoint="none", checkpoint_sha256="0" * 64, created="now"),
    )
    engines: dict[str, Engine] = {name: SteadyEngine(spec) for name, spec in manifest.graphs.items()}
    return Session(manifest, engines)


def association_ms(session: Session, frames: int) -> float:
    """Milliseconds of this thread's CPU time: the median frame of the best round after one of warm-up, which other
    programs on the machine disturb least."""
    session.watch.clock = thread_time
    image, spent = np.zeros((*SIZE, 3), np.uint8), list[float]()
    for _ in range(ROUND + frames):
        session.step(image)
        spent.append(1e3 * session.last_times.seconds["association"])
    return min(median(spent[at : at + ROUND]) for at in range(ROUND, len(spent), ROUND))


def _state(name: str, output: str, channels: int, ring: bool = False) -> StateSpec:
    return StateSpec(input=name, output=output, dtype="float32", shape=(SLOTS, channels), device="engine", ring=ring)


def _graphs() -> dict[str, GraphSpec]:
    pixels = sum(height * width for height, width in pyramid_sizes(*SIZE))
    features = (INSPRO_R50.mask_features, SIZE[0] // STRIDE, SIZE[1] // STRIDE)
    parameters = parameter_count(INSPRO_R50.mask_features)
    looking = {
        "pyramid": ("float32", ("streams", pixels, DIM)),
        "picture_sizes": ("float32", ("streams", 2)),
        "queries": ("float32", ("streams", SLOTS, DIM)),
        "proposals": ("float32", ("streams", SLOTS, 4)),
        "box_side_min": ("float32", ("streams",)),
    }
    past = {
        "bank": ("float32", ("streams", SLOTS, ENTRIES, DIM)),
        "ages": ("int32", ("streams", ENTRIES)),
        "fill": ("int32", ("streams", SLOTS)),
    }
    seen = {
        "class_logits": ("float32", ("streams", SLOTS, CLASSES)),
        "boxes": ("float32", ("streams", SLOTS, 4)),
        "mask_embeddings": ("float32", ("streams", SLOTS, parameters)),
        "object_features": ("float32", ("streams", SLOTS, DIM)),
        "next_queries": ("float32", ("streams", SLOTS, DIM)),
        "next_proposals": ("float32", ("streams", SLOTS, 4)),
        "restarted": ("float32", ("streams", SLOTS)),
    }
    return {
        "frame": graph_of(
            {"images": ("uint8", ("batch", *SIZE, 3)), "valid_sizes": ("int32", ("batch", 2))},
            {
                "pyramid": ("float32", ("batch", pixels, DIM)),
                "mask_features": ("float32", ("batch", *features)),
                "picture_sizes": ("float32", ("batch", 2)),
            },
        ),
        "head": graph_of({**looking, **past}, seen),
        "head_lite": graph_of(looking, seen),
        "masks": graph_of(
            {
                "slots": ("int32", ("streams", "masks")),
                "mask_embeddings": ("float32", ("streams", SLOTS, parameters)),
                "mask_features": ("float32", ("streams", *features)),
            },
            {
                "mask_logits": ("float32", ("streams", "masks", SIZE[0] // 4, SIZE[1] // 4)),
                "kept_embeddings": ("float32", ("streams", "masks", parameters)),
            },
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time a frame of InsPro's association.")
    parser.add_argument("--frames", type=int, default=300)
    frames = parser.parse_args().frames
    figures = {name: round(association_ms(scripted_inspro(name), frames), 3) for name in ("inspro", "inspro_lite")}
    print(json.dumps({"association_cpu_ms_a_frame": figures}))


if __name__ == "__main__":
    main()
