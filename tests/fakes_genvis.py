"""A GenVIS network without an inference library: slot s of the clip graph sees patches of colour s."""

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
    frame, cells = plain.graphs["frame"], (size[0] // 4, size[1] // 4)
    rows, of_streams = ("float32", (count, channels)), ("float32", ("streams", count, channels))
    ring = ("float32", (count, "clips", channels))
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
        "memory": graph_spec(
            {
                **{"base": rows, "key": rows, "memory_keys": ring, "memory_values": ring},
                **{"clips": ("int32", ("clips",)), "since": ("int32", (count,))},
            },
            {"instance_queries": rows},
        ),
        "clip": graph_spec(
            {
                "frame_queries": ("float32", ("streams", "frames", queries, channels)),
                "instance_queries": of_streams,
            },
            {
                "class_logits": ("float32", ("streams", count, len(classes) + 1)),
                **dict.fromkeys(outputs, of_streams),
            },
        ),
        "masks": graph_spec(
            {
                "slots": ("int32", ("streams", "masks")),
                "mask_embeddings": of_streams,
                "mask_features": ("float32", ("streams", channels, *cells)),
            },
            {
                "mask_logits": ("float32", ("streams", "masks", *cells)),
                "kept_embeddings": ("float32", ("streams", "masks", channels)),
            },
        ),
    }
    renewed = {"base": "base", "key": "key", "memory_keys": "memory_key", "memory_values": "memory_value"}
    states = {
        name: StateSpec(
            input=name, output=output, dtype="float32", shape=(count, channels), device="engine", ring=name != output
        )
        for name, output in renewed.items()
    }
    placed = with_places(graphs, states, {"prototypes"})
    return plain.model_copy(update={"family": "genvis", "graphs": placed, "states": states})


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
class MemoryEngine(HostEngine):
    """What GenVIS reads. entries: of the rings at each call."""

    spec: GraphSpec
    entries: list[int] = field(default_factory=list)
    provider: str = "fake"

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        check_feeds(self.spec, feeds)
        base, key, keys, values, clips, since = (host(feeds[role]) for role in self.spec.inputs)
        self.entries.append(keys.shape[1])
        assert np.isfinite(keys).all()
        counts = clips >= since[:, None]
        similarity = np.where(counts, np.einsum("qmc,qc->qm", keys, key), -np.inf)
        peak = np.where(counts.any(axis=1), similarity.max(axis=1), 0)
        powers = np.exp(similarity - peak[:, None])
        weights = powers / np.maximum(powers.sum(axis=1, keepdims=True), 1)
        read = base + np.einsum("qm,qmc->qc", weights, values)
        return {"instance_queries": HostTensor(read.astype(np.float32))}

    def close(self) -> None: ...


@dataclass
class ClipEngine(HostEngine):
    """A slot is of its class where its colour is in any frame of the clip. All of its state depends on all it saw.

    lengths, starts: of the clips it was given, a stream at a time. streams: of each call. poisoned: slots, by clip, for
    which it gives NaN.
    """

    spec: GraphSpec
    lengths: list[int] = field(default_factory=list)
    starts: list[Floats] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)
    poisoned: dict[int, list[int]] = field(default_factory=dict)
    provider: str = "fake"

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        check_feeds(self.spec, feeds)
        queries, starts = host(feeds["frame_queries"]), host(feeds["instance_queries"])
        assert np.isfinite(starts).all()
        self.streams.append(len(queries))
        clips = [self._clip(*clip) for clip in zip(queries, starts, strict=True)]
        return {role: HostTensor(np.stack([clip[role] for clip in clips])) for role in self.spec.outputs}

    def _clip(self, queries: Floats, start: Floats) -> dict[str, Floats]:
        """As the graph does with slots that are not finite: NaN for their class, and their state begins again."""
        outputs, bad = self._answers(queries, start), self.poisoned.get(len(self.lengths), [])
        bad = list(range(SLOTS)) if not np.isfinite(queries).all() else bad
        for role, values in outputs.items():
            values[bad] = BASE[bad] if role == "base" else np.nan if role == "class_logits" else 0
        self.lengths.append(len(queries))
        self.starts.append(start.copy())
        return outputs

    def _answers(self, queries: Floats, start: Floats) -> dict[str, Floats]:
        present = queries.max(axis=0)[np.arange(SLOTS), np.arange(SLOTS)]
        classes = int(self.spec.outputs["class_logits"].shape[-1]) - 1
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


@dataclass
class MasksEngine(HostEngine):
    """mask_embeddings of slots @ mask_features, and how often it was called."""

    spec: GraphSpec
    calls: int = 0
    provider: str = "fake"

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        check_feeds(self.spec, feeds)
        slots, embeddings, features = (host(feeds[role]) for role in self.spec.inputs)
        self.calls += 1
        kept = np.take_along_axis(embeddings, slots[:, :, None].astype(np.intp), axis=1)
        logits = np.einsum("nmd,ndhw->nmhw", kept, features)
        return {"mask_logits": HostTensor(logits), "kept_embeddings": HostTensor(kept)}

    def close(self) -> None: ...


def genvis_engines(manifest: Manifest) -> dict[str, Engine]:
    return {
        "frame": FrameEngine(manifest.graphs["frame"]),
        "memory": MemoryEngine(manifest.graphs["memory"]),
        "clip": ClipEngine(manifest.graphs["clip"]),
        "masks": MasksEngine(manifest.graphs["masks"]),
    }


def genvis_session(
    settings: SessionSettings = DEFAULTS, size: tuple[int, int] = (64, 96), **association: Any
) -> Session:
    manifest = genvis_manifest(size, association=association)
    return Session(manifest, genvis_engines(manifest), settings, states={"base": BASE})


def host(feed: Feed) -> Array:
    return feed if isinstance(feed, np.ndarray) else feed.numpy()
