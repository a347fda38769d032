"""A scripted network: a given number of certain objects with given masks, to time everything outside the engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from visrt.runtime.arrays import Feed, Floats, HostTensor, Tensor
from visrt.runtime.bundles.manifest import FileSpec, GraphSpec, InputSpec, Manifest, Producer, TensorSpec
from visrt.runtime.engines.engine import Engine, HostEngine
from visrt.runtime.methods.minvis import FAMILY
from visrt.runtime.session import Session

__all__ = ["CHANNELS", "NO_FILE", "Scene", "disc_masks", "graph_of", "scripted_manifest", "scripted_session"]

NO_FILE = FileSpec(file="scripted", bytes=0, sha256="0" * 64)
CLASSES = 3
CHANNELS = 256


@dataclass(frozen=True)
class Scene:
    """objects: seen in every frame, discs that move a little. queries: of the network, at least as many as objects.
    network: height and width of its input.
    """

    objects: int = 10
    queries: int = 100
    network: tuple[int, int] = (480, 864)

    @property
    def cells(self) -> tuple[int, int]:
        return self.network[0] // 4, self.network[1] // 4


@dataclass
class FrameEngine(HostEngine):
    """Queries in a new random order in each frame; the mask embedding encodes the object's number.

    Mask features are allocated in each frame, as a network does, but hold ones.
    """

    scene: Scene
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    provider: str = "scripted"

    def __post_init__(self) -> None:
        scene = self.scene
        looks = self.random.normal(size=(scene.queries, CHANNELS)).astype(np.float32)
        logits = np.zeros((scene.queries, CLASSES + 1), np.float32)
        logits[:, -1] = 8
        logits[: scene.objects, 0] = 16
        self._queries = (logits, looks, np.eye(scene.queries, CHANNELS, dtype=np.float32))

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        order = self.random.permutation(self.scene.queries)
        logits, looks, numbers = (HostTensor(array[order][None]) for array in self._queries)
        return {
            "class_logits": logits,
            "embeddings": looks,
            "mask_embeddings": numbers,
            "mask_features": HostTensor(np.ones((1, CHANNELS, *self.scene.cells), np.float32)),
        }

    def close(self) -> None: ...


@dataclass
class MasksEngine(HostEngine):
    """The discs by number, moved on by a cell with each call."""

    discs: Floats
    calls: int = 0
    provider: str = "scripted"

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        embeddings = feeds["mask_embeddings"]
        numbers = (embeddings if isinstance(embeddings, np.ndarray) else embeddings.numpy()).argmax(axis=1)
        self.calls += 1
        return {"mask_logits": HostTensor(np.roll(self.discs[numbers], self.calls % 16, axis=2))}

    def close(self) -> None: ...


def disc_masks(count: int, cells: tuple[int, int], seed: int = 0) -> Floats:
    """Mask logits [count, h, w] of discs in random places; some cover each other."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: cells[0], : cells[1]].astype(np.float32)
    places = random.random((count, 2)) * cells
    radii = random.uniform(0.05, 0.2, count) * cells[0] + 1
    logits = [r - np.hypot(rows - y, columns - x) for (y, x), r in zip(places, radii, strict=True)]
    return np.stack(logits).astype(np.float32)


def scripted_session(scene: Scene) -> Session:
    """A session on it; no object is dropped for covering another."""
    engines: dict[str, Engine] = {
        "frame": FrameEngine(scene),
        "masks": MasksEngine(disc_masks(scene.objects, scene.cells)),
    }
    return Session(scripted_manifest(scene), engines)


def scripted_manifest(scene: Scene, masks: str = "float32") -> Manifest:
    """The bundle of the scripted network, with mask features and masks in the dtype `masks`."""
    height, width = scene.network
    return Manifest(
        name="scripted",
        family=FAMILY,
        classes=tuple(f"class {label}" for label in range(CLASSES)),
        input=InputSpec(height=height, width=width),
        graphs=_graphs(scene, masks),
        association={"nms_iou": 0.999},
        reference=NO_FILE,
        producer=Producer(versions={}, checkpoint="none", checkpoint_sha256="0" * 64, created="now"),
    )


def _graphs(scene: Scene, masks: str) -> dict[str, GraphSpec]:
    queries = ("batch", scene.queries)
    embeddings, features = (*queries, CHANNELS), (CHANNELS, *scene.cells)
    return {
        "frame": graph_of(
            {"images": ("uint8", ("batch", *scene.network, 3)), "valid_sizes": ("int32", ("batch", 2))},
            {
                "class_logits": ("float32", (*queries, CLASSES + 1)),
                "embeddings": ("float32", embeddings),
                "mask_embeddings": ("float32", embeddings),
                "mask_features": (masks, ("batch", *features)),
            },
        ),
        "masks": graph_of(
            {"mask_embeddings": (masks, ("masks", CHANNELS)), "mask_features": (masks, features)},
            {"mask_logits": (masks, ("masks", *scene.cells))},
        ),
    }


Tensors = Mapping[str, tuple[str, tuple[int | str, ...]]]


def graph_of(inputs: Tensors, outputs: Tensors) -> GraphSpec:
    def specs(tensors: Tensors) -> dict[str, TensorSpec]:
        return {
            role: TensorSpec.model_validate({"name": role, "dtype": dtype, "shape": shape, "meaning": role})
            for role, (dtype, shape) in tensors.items()
        }

    return GraphSpec(file=NO_FILE, opset=18, precision="fp32", inputs=specs(inputs), outputs=specs(outputs))
