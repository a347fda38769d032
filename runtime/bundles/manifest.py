"""The bundle's contract: graphs, tensors, input size, classes, association settings, hashes.

`manifest.json` is written by export and read by the runtime. Unknown keys are an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Set
from itertools import dropwhile
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from visrt.runtime.errors import BundleError
from visrt.runtime.json_file import parse_json_object

__all__ = [
    "SCHEMA_VERSION",
    "FileSpec",
    "GraphSpec",
    "InputSpec",
    "Manifest",
    "Producer",
    "SizeSpec",
    "StateSpec",
    "TensorSpec",
    "manifest_from_json",
    "passed_on",
    "with_places",
]

SCHEMA_VERSION = 4

DType = Literal["uint8", "int8", "int32", "int64", "float16", "float32", "bool"]
Resize = Literal["pillow_bilinear", "cv2_area"]


def _plain_name(name: str) -> str:
    """A name without folders: joined to the bundle's folder it can only mean a file in it."""
    if name in ("", ".", "..") or any(mark in name for mark in "/\\:\0"):
        raise ValueError("expected the plain name of a file in the bundle's folder, without any path")
    return name


def _distinct(classes: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(classes)) != len(classes):
        raise ValueError("expected class names without repetition")
    return classes


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileSpec(Strict):
    """One file of the bundle: a plain name inside the folder, its size and hash."""

    file: Annotated[str, AfterValidator(_plain_name)]
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class TensorSpec(Strict):
    """One tensor of a graph. `shape` holds sizes, or a symbol ("batch", "masks") for a dynamic axis.

    place: "host" goes through host memory at each call. "device" stays where the engine runs: state, what is made for
    another graph, whose input of the same role takes items of it, and outputs that only parity reads. None in bundles
    of schema 1, where it follows from the shapes.
    """

    name: str = Field(min_length=1)
    dtype: DType
    shape: tuple[Annotated[int, Field(gt=0)] | Annotated[str, Field(min_length=1)], ...]
    meaning: str
    place: Literal["host", "device"] | None = None

    @property
    def row_shape(self) -> tuple[int | str, ...]:
        """The shape without the leading dynamic axis, if it has one: what belongs to one frame."""
        return self.shape[1:] if self.shape and isinstance(self.shape[0], str) else self.shape

    @property
    def item_shape(self) -> tuple[int | str, ...]:
        """The shape without all leading dynamic axes: what belongs to one frame of one stream."""
        return tuple(dropwhile(lambda axis: isinstance(axis, str), self.shape))


class GraphSpec(Strict):
    """One ONNX graph: its file and its tensors by role.

    weights: a file of weights that the graph shares with those of its name at other sizes; its bytes after those of
    `file` are one whole ONNX model. precision: what its matrix products compute in, "fp32", "fp16" or "int8" (with the
    rest in nodes.json). macs: multiply-accumulates for one frame, or one mask. parameters: numbers in its weights. None
    where not recorded.
    """

    file: FileSpec
    weights: FileSpec | None = None
    opset: int = Field(gt=0)
    precision: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    macs: int | None = Field(default=None, ge=0)
    parameters: int | None = Field(default=None, ge=0)

    @property
    def sha256(self) -> str:
        """Of the file; where weights are shared, a hash that changes with the file and with the weights."""
        if self.weights is None:
            return self.file.sha256
        return hashlib.sha256(f"{self.file.sha256} {self.weights.sha256}".encode()).hexdigest()


class InputSpec(Strict):
    """The network input in pixels: every frame is resized to fit inside height x width, padded right and bottom.

    short_side, long_side: the published resize, to a short side of `short_side` but no long side beyond `long_side`,
    taken where it fits inside; elsewhere, and where they are None, the frame gets as large as fits. source: height and
    width of the only frames it takes, where the frame graph itself resizes them; None where the runtime resizes frames
    of any size.
    """

    height: int = Field(gt=0, multiple_of=4)
    width: int = Field(gt=0, multiple_of=4)
    source: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None
    short_side: int | None = Field(default=None, gt=0)
    long_side: int | None = Field(default=None, gt=0)
    resize: Resize = "pillow_bilinear"
    colour_order: Literal["RGB"] = "RGB"

    @property
    def text(self) -> str:
        """Height and width, as 384x640."""
        return f"{self.height}x{self.width}"

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the frame graph takes."""
        return self.source or (self.height, self.width)


class StateSpec(Strict):
    """A tensor that passes from one call to the next, one per stream: a graph's input, and the output that renews it,
    of the same graph or another.

    shape: of one stream, without a batch axis. device: "cpu" where the tracking method reads and renews it on the host
    between calls; "engine" where it stays in the engine's memory and the output goes unchanged into the next call.
    ring: a memory of many calls. `shape` is then of one entry, [Q, C], which a call gives; the input holds all entries,
    [Q, entries, C], in any order. initial: a file with the value before the first frame; zeros without one.
    """

    input: str
    output: str
    dtype: DType
    shape: tuple[int, ...]
    device: Literal["cpu", "engine"]
    ring: bool = False
    initial: FileSpec | None = None


class Producer(Strict):
    """The program that wrote the bundle: versions, checkpoint, time."""

    versions: dict[str, str]
    checkpoint: str
    checkpoint_sha256: str
    created: str


class SizeSpec(Strict):
    """The same network at a further size of its input: what of the manifest differs from size to size."""

    input: InputSpec
    graphs: dict[str, GraphSpec]
    states: dict[str, StateSpec] = {}
    reference: FileSpec
    nodes: FileSpec | None = None


class Manifest(Strict):
    """The whole contract.

    nodes: a json file that gives, for each graph, the precision of every node that computes. thresholds: one with the
    figures by which floors of `association` were fitted; None where nobody fitted them. other_sizes: the network at
    further sizes of its input; `sizes` has a manifest for each.
    """

    schema_version: int = Field(default=SCHEMA_VERSION, alias="schema", ge=1, le=SCHEMA_VERSION)
    name: str
    family: str
    classes: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_distinct)]
    input: InputSpec
    graphs: dict[str, GraphSpec]
    states: dict[str, StateSpec] = {}
    association: dict[str, Any]
    reference: FileSpec
    nodes: FileSpec | None = None
    thresholds: FileSpec | None = None
    other_sizes: tuple[SizeSpec, ...] = ()
    producer: Producer

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @property
    def sizes(self) -> tuple[Manifest, ...]:
        """A manifest of one size for each size of the network input, that of the bundle itself first."""
        own = self.model_copy(update={"other_sizes": ()})
        return (own, *(own.model_copy(update=dict(size)) for size in self.other_sizes))

    def device_roles(self, graph: str) -> frozenset[str]:
        """Roles of `graph` that stay on the engine's device, inputs and outputs."""
        spec = self.graphs[graph]
        tensors = {**spec.inputs, **spec.outputs}
        if any(tensor.place for tensor in tensors.values()):
            return frozenset(role for role, tensor in tensors.items() if tensor.place == "device")
        return passed_on(self.graphs, graph)

    def read_by(self, graph: str) -> dict[str, StateSpec]:
        """The states by name that `graph` reads from the engine's memory."""
        return {name: state for name, state in self._carried().items() if state.input in self.graphs[graph].inputs}

    def renewed_by(self, graph: str) -> dict[str, StateSpec]:
        """The states by name that stay in the engine's memory and that a call of `graph` renews."""
        return {name: state for name, state in self._carried().items() if state.output in self.graphs[graph].outputs}

    def _carried(self) -> dict[str, StateSpec]:
        return {name: state for name, state in self.states.items() if state.device == "engine"}

    def initial_shape(self, name: str) -> tuple[int, ...]:
        """Of state `name` before the first frame: of a ring all its entries, none where their number is dynamic."""
        state = self.states[name]
        if not state.ring:
            return state.shape
        inputs = (graph.inputs[state.input] for graph in self.graphs.values() if state.input in graph.inputs)
        entries = next((spec.shape[-2] for spec in inputs), 0)
        return (*state.shape[:-1], entries if isinstance(entries, int) else 0, state.shape[-1])

    def files(self) -> tuple[FileSpec, ...]:
        """Every file the bundle must hold beside the manifest, once."""
        sizes: tuple[Manifest | SizeSpec, ...] = (self, *self.other_sizes)
        of_sizes = [spec for size in sizes for spec in _files_of(size)]
        return tuple(dict.fromkeys([*of_sizes, *([self.thresholds] if self.thresholds else [])]))


def _files_of(size: Manifest | SizeSpec) -> Iterator[FileSpec]:
    for graph in size.graphs.values():
        yield graph.file
        if graph.weights is not None:
            yield graph.weights
    yield from (state.initial for state in size.states.values() if state.initial is not None)
    yield size.reference
    if size.nodes is not None:
        yield size.nodes


def with_places(
    graphs: Mapping[str, GraphSpec], states: Mapping[str, StateSpec], unread: Set[str] = frozenset()
) -> dict[str, GraphSpec]:
    """The graphs with the place of every tensor written down. On the device stay states of the engine, what is passed
    on as it is, and outputs that are `unread`."""
    carried = {role for state in states.values() if state.device == "engine" for role in (state.input, state.output)}

    def placed(specs: Mapping[str, TensorSpec], stay: Set[str]) -> dict[str, TensorSpec]:
        return {
            role: spec.model_copy(update={"place": "device" if role in stay else "host"})
            for role, spec in specs.items()
        }

    stay = {name: passed_on(graphs, name) | carried for name in graphs}
    return {
        name: spec.model_copy(
            update={"inputs": placed(spec.inputs, stay[name]), "outputs": placed(spec.outputs, stay[name] | unread)}
        )
        for name, spec in graphs.items()
    }


def passed_on(graphs: Mapping[str, GraphSpec], name: str) -> frozenset[str]:
    """Roles of graph `name` that one graph gives to another as they are: outputs one item of which is exactly an item
    of another graph's input, as mask features are, and these inputs."""
    graph, others = graphs[name], [spec for key, spec in graphs.items() if key != name]
    given = {role for role in graph.outputs if any(_takes(other, graph, role) for other in others)}
    taken = {role for role in graph.inputs if any(_takes(graph, other, role) for other in others)}
    return frozenset(given | taken)


def _takes(taker: GraphSpec, giver: GraphSpec, role: str) -> bool:
    if role not in taker.inputs or role not in giver.outputs:
        return False
    taken, given = taker.inputs[role], giver.outputs[role]
    whole = taken.shape if taken.shape[:1] != ("streams",) else taken.item_shape
    return taken.dtype == given.dtype and whole == given.item_shape and all(isinstance(axis, int) for axis in whole)


def manifest_from_json(text: str | bytes, where: str) -> Manifest:
    """The manifest in `text`, read from `where`. BundleError names the first fault by its json path."""
    values = parse_json_object(text, where, "one json object; export the bundle again", BundleError)
    _refuse_newer_schema(values.get("schema"), where)
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        raise BundleError(f"{where}: {_first_fault(error)}") from None


def _refuse_newer_schema(schema: object, where: str) -> None:
    """A newer schema has other keys: say so, before they are called unknown."""
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        raise BundleError(f"{where}: schema {schema}, this visrt reads up to {SCHEMA_VERSION}; install a newer visrt")


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in fault["loc"]) or "the whole"
    if fault["type"] == "extra_forbidden":
        return f"{path}: unknown key; remove it, or open the bundle with the visrt that wrote it"
    if fault["type"] == "missing":
        return f"{path}: missing; export the bundle again"
    return f"{path} is {fault['input']!r}: {fault['msg']}"
