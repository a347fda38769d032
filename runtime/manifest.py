"""The bundle's contract: graphs, tensors, input size, classes, association settings, hashes.

`manifest.json` is written by export and read by the runtime. Unknown keys are an error.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileSpec(Strict):
    """One file of the bundle: a plain name inside the folder, its size and hash."""

    file: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class TensorSpec(Strict):
    """One tensor of a graph. `shape` holds sizes, or a symbol ("batch", "masks") for a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str


class GraphSpec(Strict):
    """One ONNX graph: its file and its tensors by role."""

    file: FileSpec
    opset: int
    precision: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


class InputSpec(Strict):
    """The network input: every frame is resized to fit inside height x width, padded right and bottom."""

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    resize: str = "pillow_bilinear"
    colour_order: str = "RGB"


class StateSpec(Strict):
    """A tensor that travels from frame to frame: which input it feeds, which output renews it, where it starts."""

    input: str
    output: str
    dtype: str
    shape: tuple[int, ...]
    device: str
    initial: FileSpec | None = None


class Producer(Strict):
    """Who wrote the bundle, with which versions, from which checkpoint."""

    versions: dict[str, str]
    checkpoint: str
    checkpoint_sha256: str
    created: str


class Manifest(Strict):
    schema_version: int = Field(default=SCHEMA_VERSION, alias="schema")
    name: str
    family: str
    classes: tuple[str, ...]
    input: InputSpec
    graphs: dict[str, GraphSpec]
    states: dict[str, StateSpec] = {}
    association: dict[str, Any]
    reference: FileSpec
    producer: Producer

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
