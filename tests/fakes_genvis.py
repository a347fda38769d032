"""A GenVIS network without an inference library: slot s of the clip graph sees patches of colour s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fakes import COLOURS, DEFAULTS, ColourEngine, MasksEngine, fake_manifest, graph_spec

from visrt.runtime.arrays import Feed, Floats, HostTensor, Tensor
from visrt.runtime.bundles.contract import check_feeds
from visrt.runtime.bundles.manifest import GraphSpec, Manifest, StateSpec
from visrt.runtime.engines.engine import Engine, HostEngine
from visrt.runtime.session import Session, SessionSettings

QUERIES, SLOTS, CHANNELS = 8, 5, 8
BASE = np.linspace(-1, 1, SLOTS * CHANNELS, dtype=np.float32).reshape(SLOTS, CHANNELS)


def genvis_manifest(
    size: tuple[int, int] = (64, 96),
    classes: tuple[str, ...] = ("person", "vehicle", "animal"),
    association: Mapping[str, Any] | None = None,
    queries: int = QUERIES,
    count: int = SLOTS,
    channels: int = CHANNELS,
) -> Manifest:
    """The manifest of a GenVIS bundle of `count` slots that has no files."""
    plain = fake_manifest(size, queries, classes, channels, channels, association)
    frame = plain.graphs["frame"]
    slots = ("float32", (count, channels))
    outputs = ("mask_embeddings", "prototypes", "base", "key", "memory_key", "memory_value")
    graphs = {
        "frame": frame.model_copy(
            update={
                "outputs": {
                    **graph_spec({}, {"frame_queries": ("float32", ("batch", queries, channels))}).outputs,
                    "mask_features": frame.outputs["mask_features"],
                }
            }
        ),
        "clip": graph_spec(
            {"frame_queries": ("float32", ("frames", queries, channels)), "instance_queries": slots},
            {"class_logits": ("float32", (count, len(classes) + 1)), **dict.fromkeys(outputs, slots)},
        ),
        "masks": plain.graphs["masks"],
    }
    state = StateSpec(
        input="instance_queries", output="base", dtype="float32", shape=(count, channels), device="cpu", initial=None
    )
    return plain.model_copy(update={"family": "genvis", "graphs": graphs, "states": {"base": state}})


@dataclass
class FrameEngine(HostEngine):
    """Frame query i is 1 at channel i where the colour i is in the picture."""

    spec: GraphSpec
    batches: list[int] = field(default_factory=list)
    poisoned: set[int] = field(default_factory=set)
    seen: int = 0
    provider: str = "fake"

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        check_feeds(self.spec, feeds)
        plain = fake_manifest(queries=QUERIES, channels=CHANNELS, mask_channels=CHANNELS).graphs["frame"]
        looks = ColourEngine(plain, np.random.default_rng(0))
        images = feeds["images"]
        assert isinstance(images, np.ndarray)
        self.batches.append(len(images))
        features = np.stack([looks._look(image).mask_features for image in images])
        queries = np.zeros((len(images), QUERIES, CHANNELS), dtype=np.float32)
        for i in range(len(COLOURS)):
            queries[:, i, i] = (features[:, i] > 0).any(axis=(1, 2))
        for item in range(len(images)):
            if self.seen + item in self.poisoned:
                queries[item, 0, 0] = np.nan
        self.seen += len(images)
        return {"frame_queries": HostTensor(queries), "mask_features": HostTensor(features)}

    def close(self) -> None: ...


@dataclass
class ClipEngine(HostEngine):
    """A slot is of its class where its colour is in any frame of the clip. All of its state depends on all it saw.

    lengths, starts: of the clips it was given. poisoned: slots, by call, for which it gives NaN.
    """

    spec: GraphSpec
    lengths: list[int] = field(default_factory=list)
    starts: list[Floats] = field(default_factory=list)
    poisoned: dict[int, list[int]] = field(default_factory=dict)
    provider: str = "fake"

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        check_feeds(self.spec, feeds)
        queries, start = feeds["frame_queries"], feeds["instance_queries"]
        assert isinstance(queries, np.ndarray)
        assert isinstance(start, np.ndarray)
        assert np.isfinite(start).all()
        outputs = {role: HostTensor(values) for role, values in self._answers(queries, start).items()}
        for slot in self.poisoned.get(len(self.lengths), []):
            outputs["key"].array[slot, 0] = np.nan
        self.lengths.append(len(queries))
        self.starts.append(start.copy())
        return dict(outputs)

    def _answers(self, queries: Floats, start: Floats) -> dict[str, Floats]:
        present = queries.max(axis=0)[np.arange(SLOTS), np.arange(SLOTS)]
        classes = int(self.spec.outputs["class_logits"].shape[1]) - 1
        logits = np.zeros((SLOTS, classes + 1), dtype=np.float32)
        logits[:, -1] = 6
        logits[np.arange(SLOTS), np.arange(SLOTS) % classes] = 12 * present
        passed = np.tanh(start + present[:, None]).astype(np.float32)
        return {
            "class_logits": logits,
            "mask_embeddings": np.eye(SLOTS, CHANNELS, dtype=np.float32),
            "prototypes": passed,
            "base": passed * np.float32(0.5),
            "key": passed[:, ::-1].copy(),
            "memory_key": np.sin(3 * passed),
            "memory_value": np.cos(2 * passed),
        }

    def close(self) -> None: ...


def genvis_session(
    settings: SessionSettings = DEFAULTS, size: tuple[int, int] = (64, 96), **association: Any
) -> Session:
    manifest = genvis_manifest(size, association=association)
    engines: dict[str, Engine] = {
        "frame": FrameEngine(manifest.graphs["frame"]),
        "clip": ClipEngine(manifest.graphs["clip"]),
        "masks": MasksEngine(manifest.graphs["masks"]),
    }
    return Session(manifest, engines, settings, states={"base": BASE})
