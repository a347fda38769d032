"""An InsPro network without an inference library: slot s of a head sees patches of colour s, stream by stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fakes import COLOURS, DEFAULTS, ColourEngine, fake_manifest, graph_spec

from visrt.runtime.arrays import Array, Feed, Floats, HostTensor, Tensor
from visrt.runtime.bundles.contract import check_feeds
from visrt.runtime.bundles.manifest import GraphSpec, Manifest, StateSpec, with_places
from visrt.runtime.engines.engine import Engine, HostEngine
from visrt.runtime.session import Session, SessionSettings

SLOTS, CHANNELS, ENTRIES = 5, 8, 3
STATES = {
    "queries": np.linspace(-1, 1, SLOTS * CHANNELS, dtype=np.float32).reshape(SLOTS, CHANNELS),
    "proposals": np.tile(np.array([0.1, 0.2, 0.7, 0.8], dtype=np.float32), (SLOTS, 1)),
    "bank": np.zeros((SLOTS, ENTRIES, CHANNELS), dtype=np.float32),
}
"""Before the first frame."""
RENEWED = {"queries": "next_queries", "proposals": "next_proposals", "bank": "object_features"}


def inspro_manifest(
    size: tuple[int, int] = (64, 96),
    classes: tuple[str, ...] = ("person", "vehicle", "animal"),
    association: Mapping[str, Any] | None = None,
    family: str = "inspro",
    outputs: str = "masks",
) -> Manifest:
    """The manifest of an InsPro or InsPro-lite bundle that has no files; `outputs` "boxes" is one without masks."""
    plain = fake_manifest(size, SLOTS, classes, CHANNELS, CHANNELS, association)
    pixels, cells = size[0] * size[1] // 16, (size[0] // 8, size[1] // 8)
    slots, boxes = ("float32", ("streams", SLOTS, CHANNELS)), ("float32", ("streams", SLOTS, 4))
    looking = {
        "pyramid": ("float32", ("streams", pixels, CHANNELS)),
        "picture_sizes": ("float32", ("streams", 2)),
        "queries": slots,
        "proposals": boxes,
        "box_side_min": ("float32", ("streams",)),
    }
    seen = {
        "class_logits": ("float32", ("streams", SLOTS, len(classes))),
        "boxes": boxes,
        "mask_embeddings": slots,
        "object_features": slots,
        "next_queries": slots,
        "next_proposals": boxes,
        "restarted": ("float32", ("streams", SLOTS)),
    }
    past = {
        "bank": ("float32", ("streams", SLOTS, ENTRIES, CHANNELS)),
        "ages": ("int32", ("streams", ENTRIES)),
        "fill": ("int32", ("streams", SLOTS)),
    }
    maps = {
        "pyramid": ("float32", ("batch", pixels, CHANNELS)),
        "mask_features": ("float32", ("batch", CHANNELS, *cells)),
        "picture_sizes": ("float32", ("batch", 2)),
    }
    masks = {
        "slots": ("int32", ("streams", "masks")),
        "mask_embeddings": slots,
        "mask_features": ("float32", ("streams", CHANNELS, *cells)),
    }
    made = {
        "mask_logits": ("float32", ("streams", "masks", size[0] // 4, size[1] // 4)),
        "kept_embeddings": ("float32", ("streams", "masks", CHANNELS)),
    }
    graphs = {
        "frame": plain.graphs["frame"].model_copy(update={"outputs": graph_spec({}, maps).outputs}),
        "head": graph_spec({**looking, **past}, seen),
        "masks": graph_spec(masks, made),
    }
    if family == "inspro_lite":
        graphs["head_lite"] = graph_spec(looking, seen)
    if outputs == "boxes":
        del graphs["masks"]
        graphs = {name: _without_masks(graph) for name, graph in graphs.items()}
    states = {
        name: StateSpec(
            input=name,
            output=RENEWED[name],
            dtype="float32",
            shape=(SLOTS, values.shape[-1]),
            device="engine",
            ring=name == "bank",
        )
        for name, values in STATES.items()
    }
    placed = with_places(graphs, states, frozenset({"object_features"}))
    return plain.model_copy(update={"family": family, "graphs": placed, "states": states})


def _without_masks(graph: GraphSpec) -> GraphSpec:
    kept = {role: spec for role, spec in graph.outputs.items() if role not in ("mask_features", "mask_embeddings")}
    return graph.model_copy(update={"outputs": kept})


@dataclass
class FrameEngine(HostEngine):
    """Channel i of the pyramid, stride 4 alone, is above zero where the colour i is; mask features are every other."""

    spec: GraphSpec
    poisoned: set[int] = field(default_factory=set)
    seen: int = 0
    provider: str = "fake"

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        check_feeds(self.spec, feeds)
        images, sizes = feeds["images"], feeds["valid_sizes"]
        assert isinstance(images, np.ndarray)
        assert isinstance(sizes, np.ndarray)
        looks = ColourEngine(fake_manifest(queries=SLOTS).graphs["frame"], np.random.default_rng(0))
        maps = np.stack([looks._look(image).mask_features for image in images])
        pictures = sizes.astype(np.float32)
        for item in range(len(images)):
            if self.seen + item in self.poisoned:
                pictures[item] = np.nan
        self.seen += len(images)
        outputs: dict[str, Tensor] = {
            "pyramid": HostTensor(maps.reshape(len(maps), CHANNELS, -1).transpose(0, 2, 1).copy()),
            "mask_features": HostTensor(maps[:, :, ::2, ::2].copy()),
            "picture_sizes": HostTensor(pictures),
        }
        return {role: outputs[role] for role in self.spec.outputs}

    def close(self) -> None: ...


@dataclass
class HeadEngine(HostEngine):
    """A slot is of its class where its colour is anywhere in the frame. All of its state depends on all it saw.

    fed: what it was given, call by call. poisoned: slots, by call, that are invalid, of every stream of the call;
    collapsed: whose box collapses. All are where the picture's size is NaN.
    """

    spec: GraphSpec
    fed: list[dict[str, Array]] = field(default_factory=list)
    poisoned: dict[int, list[int]] = field(default_factory=dict)
    collapsed: dict[int, list[int]] = field(default_factory=dict)
    provider: str = "fake"

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        check_feeds(self.spec, feeds)
        given = {role: value if isinstance(value, np.ndarray) else value.numpy() for role, value in feeds.items()}
        states = given.keys() - {"pyramid", "picture_sizes"}
        assert all(np.isfinite(given[role]).all() for role in states)
        streams = len(given["queries"])
        answers = [self._answer({role: values[at] for role, values in given.items()}) for at in range(streams)]
        # Copies, as an engine gives other memory than it was fed.
        self.fed.append({role: values.copy() for role, values in given.items() if role != "pyramid"})
        outputs = {role: np.stack([answer[role] for answer in answers]) for role in self.spec.outputs}
        return {role: HostTensor(values) for role, values in outputs.items()}

    def _answer(self, given: Mapping[str, Array]) -> dict[str, Floats]:
        """For one stream."""
        present = np.zeros(SLOTS, dtype=np.float32)
        present[: len(COLOURS)] = given["pyramid"].max(axis=0)[: len(COLOURS)] > 0
        classes = int(self.spec.outputs["class_logits"].shape[2])
        logits = np.full((SLOTS, classes), -6, dtype=np.float32)
        logits[np.arange(SLOTS), np.arange(SLOTS) % classes] += 10 * present
        features = np.tanh(given["queries"] + present[:, None]).astype(np.float32)
        queries, proposals = given["queries"], given["proposals"] * np.float32(0.99)
        if "bank" in given:
            counts = (given["ages"] > 0) & (given["ages"] <= given["fill"][:, None])
            queries = features + (given["bank"] * counts[..., None]).sum(axis=1) / np.float32(10)
        invalid = np.isin(np.arange(SLOTS), self.poisoned.get(len(self.fed), []))
        invalid |= np.isnan(given["picture_sizes"]).any()
        proposals[self.collapsed.get(len(self.fed), [])] = 0.5
        small = ((proposals[:, 2:] - proposals[:, :2]) < given["box_side_min"]).any(axis=1)
        restarted, bad = (invalid | small)[:, None], invalid[:, None]
        outputs = {
            "class_logits": np.where(bad, np.nan, logits),
            "boxes": np.where(bad, 0, given["proposals"] * np.tile(given["picture_sizes"][::-1], 2)),
            "mask_embeddings": np.eye(SLOTS, CHANNELS, dtype=np.float32),
            "object_features": np.where(bad, 0, features),
            "next_queries": np.where(restarted, STATES["queries"], queries),
            "next_proposals": np.where(restarted, STATES["proposals"], proposals),
            "restarted": restarted[:, 0],
        }
        return {role: values.astype(np.float32) for role, values in outputs.items()}

    def close(self) -> None: ...


@dataclass
class MasksEngine(HostEngine):
    """mask_embeddings of slots @ mask_features, each cell twice along each axis."""

    spec: GraphSpec
    provider: str = "fake"

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        check_feeds(self.spec, feeds)
        slots, embeddings, features = (
            value if isinstance(value, np.ndarray) else value.numpy()
            for value in (feeds["slots"], feeds["mask_embeddings"], feeds["mask_features"])
        )
        kept = np.take_along_axis(embeddings, slots[..., None], axis=1)
        logits = np.einsum("smd,sdhw->smhw", kept, features)
        return {
            "mask_logits": HostTensor(logits.repeat(2, axis=2).repeat(2, axis=3)),
            "kept_embeddings": HostTensor(kept),
        }

    def close(self) -> None: ...


def inspro_session(
    settings: SessionSettings = DEFAULTS,
    size: tuple[int, int] = (64, 96),
    family: str = "inspro",
    outputs: str = "masks",
    **association: Any,
) -> Session:
    manifest = inspro_manifest(size, association=association, family=family, outputs=outputs)
    kinds = {"frame": FrameEngine, "head": HeadEngine, "head_lite": HeadEngine, "masks": MasksEngine}
    engines: dict[str, Engine] = {name: kinds[name](spec) for name, spec in manifest.graphs.items()}
    return Session(manifest, engines, settings, states=STATES)


def head_of(session: Session, name: str = "head") -> HeadEngine:
    engine = session.network._engines[name]
    assert isinstance(engine, HeadEngine)
    return engine


def frame_engine_of(session: Session) -> FrameEngine:
    engine = session.network._engines["frame"]
    assert isinstance(engine, FrameEngine)
    return engine
