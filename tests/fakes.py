"""Engines without an inference library, as faithful as the tests need: they check what they are fed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from visrt.runtime.arrays import Array, Feed, Floats, HostTensor, Tensor
from visrt.runtime.bundles.contract import check_feeds
from visrt.runtime.bundles.manifest import FileSpec, GraphSpec, InputSpec, Manifest, Producer, TensorSpec
from visrt.runtime.engines.engine import Engine, HostEngine
from visrt.runtime.methods.method import Answer, Call, Steps
from visrt.runtime.methods.queries import Queries
from visrt.runtime.session import Session, SessionSettings

DEFAULTS = SessionSettings()
T = TypeVar("T")
NO_FILE = FileSpec(file="none.onnx", bytes=0, sha256="0" * 64)


def graph_spec(
    inputs: Mapping[str, tuple[str, tuple[Any, ...]]], outputs: Mapping[str, tuple[str, tuple[Any, ...]]]
) -> GraphSpec:
    """A graph whose tensors are named like their roles."""

    def specs(tensors: Mapping[str, tuple[str, tuple[Any, ...]]]) -> dict[str, TensorSpec]:
        return {
            role: TensorSpec.model_validate({"name": role, "dtype": dtype, "shape": shape, "meaning": role})
            for role, (dtype, shape) in tensors.items()
        }

    return GraphSpec(file=NO_FILE, opset=18, precision="fp32", inputs=specs(inputs), outputs=specs(outputs))


def fake_manifest(
    size: tuple[int, int] = (64, 96),
    queries: int = 8,
    classes: Sequence[str] = ("person", "vehicle", "animal"),
    channels: int = 8,
    mask_channels: int = 8,
    association: Mapping[str, Any] | None = None,
) -> Manifest:
    """The manifest of a MinVIS bundle that has no files."""
    height, width = size
    cells = (height // 4, width // 4)
    frame = graph_spec(
        {"images": ("uint8", ("batch", height, width, 3)), "valid_sizes": ("int32", ("batch", 2))},
        {
            "class_logits": ("float32", ("batch", queries, len(classes) + 1)),
            "embeddings": ("float32", ("batch", queries, channels)),
            "mask_embeddings": ("float32", ("batch", queries, mask_channels)),
            "mask_features": ("float32", ("batch", mask_channels, *cells)),
        },
    )
    masks = graph_spec(
        {
            "mask_embeddings": ("float32", ("masks", mask_channels)),
            "mask_features": ("float32", (mask_channels, *cells)),
        },
        {"mask_logits": ("float32", ("masks", *cells))},
    )
    return Manifest(
        name="fake",
        family="minvis",
        classes=tuple(classes),
        input=InputSpec(height=height, width=width),
        graphs={"frame": frame, "masks": masks},
        association=dict(association or {}),
        reference=NO_FILE,
        producer=Producer(versions={}, checkpoint="none", checkpoint_sha256="0" * 64, created="never"),
    )


@dataclass
class MasksEngine(HostEngine):
    """mask_embeddings @ mask_features, and how often and with how many rows it was called."""

    spec: GraphSpec
    calls: int = 0
    rows: int = 0
    poison: float = 0.0
    provider: str = "fake"
    closed: bool = False

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        check_feeds(self.spec, feeds)
        embeddings, features = _host(feeds["mask_embeddings"]), _host(feeds["mask_features"])
        self.calls += 1
        self.rows += len(embeddings)
        return {"mask_logits": HostTensor(np.einsum("md,dhw->mhw", embeddings, features) + np.float32(self.poison))}

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class ScriptedFrame:
    """What a `ScriptedEngine` says of one frame: its queries and mask_features [D, H / 4, W / 4]."""

    queries: Queries
    mask_features: Floats


@dataclass
class ScriptedEngine(HostEngine):
    """Says of the frames, in order, what the script says, whatever they show; starts again at the script's end."""

    spec: GraphSpec
    script: Sequence[ScriptedFrame]
    at: int = 0
    provider: str = "fake"

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        check_feeds(self.spec, feeds)
        batch = [self.script[(self.at + i) % len(self.script)] for i in range(feeds["images"].shape[0])]
        self.at += len(batch)
        return frame_outputs(batch)

    def close(self) -> None: ...


def frame_outputs(batch: Sequence[ScriptedFrame]) -> dict[str, Tensor]:
    """Outputs of the frame graph by role, stacked."""
    queries = [frame.queries for frame in batch]
    return {
        "class_logits": HostTensor(np.stack([q.class_logits for q in queries])),
        "embeddings": HostTensor(np.stack([q.embeddings for q in queries])),
        "mask_embeddings": HostTensor(np.stack([q.mask_embeddings for q in queries])),
        "mask_features": HostTensor(np.stack([frame.mask_features for frame in batch])),
    }


COLOURS = np.array([[230, 30, 30], [30, 230, 30], [30, 30, 230], [230, 230, 30]], dtype=np.uint8)
"""What the colour engine takes for objects, RGB; everything else is background. Class = index % classes."""


@dataclass
class ColourEngine(HostEngine):
    """A network that sees patches of `COLOURS`: one query each, in an order shuffled anew for each frame.

    It looks at the pixels, so frames of any size, letterboxes and batches behave as with a real network.
    """

    spec: GraphSpec
    random: np.random.Generator
    calls: int = 0
    provider: str = "fake"

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        check_feeds(self.spec, feeds)
        self.calls += 1
        return frame_outputs([self._look(image) for image in _host(feeds["images"])])

    def close(self) -> None: ...

    def _look(self, image: NDArray[np.uint8]) -> ScriptedFrame:
        count = self.spec.outputs["class_logits"].shape[1]
        classes = self.spec.outputs["class_logits"].shape[2]
        channels = self.spec.outputs["embeddings"].shape[2]
        mask_channels = self.spec.outputs["mask_embeddings"].shape[2]
        assert isinstance(count, int)
        assert isinstance(classes, int)
        assert isinstance(channels, int)
        assert isinstance(mask_channels, int)
        features = np.full((mask_channels, image.shape[0] // 4, image.shape[1] // 4), -8, dtype=np.float32)
        logits = np.zeros((count, classes), dtype=np.float32)
        logits[:, -1] = 6
        for index, colour in enumerate(COLOURS):
            distance = np.abs(image.astype(np.float32) - colour).sum(axis=2)
            features[index] = 8 - cv2.resize(distance, features.shape[:0:-1], interpolation=cv2.INTER_AREA) / 8
            if (features[index] > 0).any():
                logits[index, index % (classes - 1)] = 12
        embeddings = np.eye(count, channels, dtype=np.float32)
        queries = Queries(logits, embeddings, np.eye(count, mask_channels, dtype=np.float32))
        return ScriptedFrame(queries.take(self.random.permutation(count)), features)


def colour_session(
    settings: SessionSettings = DEFAULTS,
    size: tuple[int, int] = (64, 96),
    seed: int = 0,
    **association: Any,
) -> Session:
    """A session on the colour engine. By default an object dies after a second and masks do not compete."""
    manifest = fake_manifest(size, association=association)
    frame = ColourEngine(manifest.graphs["frame"], np.random.default_rng(seed))
    return Session(manifest, {"frame": frame, "masks": MasksEngine(manifest.graphs["masks"])}, settings)


def scripted_session(
    script: Sequence[ScriptedFrame],
    size: tuple[int, int] = (64, 96),
    settings: SessionSettings = DEFAULTS,
    **association: Any,
) -> Session:
    """A session whose network says what `script` says."""
    queries = script[0].queries
    manifest = fake_manifest(
        size,
        queries=len(queries),
        classes=[f"class {k}" for k in range(queries.class_logits.shape[1] - 1)],
        channels=queries.embeddings.shape[1],
        mask_channels=queries.mask_embeddings.shape[1],
        association=association,
    )
    engines: dict[str, Engine] = {
        "frame": ScriptedEngine(manifest.graphs["frame"], script),
        "masks": MasksEngine(manifest.graphs["masks"]),
    }
    return Session(manifest, engines, settings)


def patches(size: tuple[int, int], *boxes: tuple[int, int, int, int, int]) -> NDArray[np.uint8]:
    """A grey frame [H, W, 3] with patches (colour index, x, y, width, height) in pixels, later ones in front."""
    frame = np.full((*size, 3), 100, dtype=np.uint8)
    for colour, x, y, width, height in boxes:
        frame[y : y + height, x : x + width] = COLOURS[colour]
    return frame


def _host(tensor: Feed) -> Array:
    return tensor if isinstance(tensor, np.ndarray) else tensor.numpy()


def finish(steps: Steps[T], answer: Callable[[Call], Answer] | None = None) -> T:
    """What the steps of a method give in the end; `answer` stands for the network."""
    given: Answer | None = None
    while True:
        try:
            call = steps.send(given)  # type: ignore[arg-type]
        except StopIteration as end:
            result: T = end.value
            return result
        assert answer is not None, f"nobody answers the call of {call.graph}"
        given = answer(call)
