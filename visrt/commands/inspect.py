"""`visrt inspect`: checks the files of a bundle, and shows what it contains, what it costs and its cached engines."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visrt.runtime.engines.trt.library import FLAVOURS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from visrt.runtime.bundles.bundle import Bundle
    from visrt.runtime.bundles.manifest import FileSpec, GraphSpec, InputSpec, Manifest, TensorSpec
    from visrt.runtime.engines.trt.engine_cache import EngineCache, KeptEngine

__all__ = ["inspect"]

NOT_RECORDED = "not recorded"


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Folder that `visrt export` wrote.")],
    engine: Annotated[
        list[str] | None,
        typer.Option(help=f"Only the cached engines of {' or '.join(FLAVOURS)}; may be repeated."),
    ] = None,
    masks: Annotated[int, typer.Option(min=0, help="Masks a frame keeps, for the bytes it moves.")] = 10,
    nodes: Annotated[bool, typer.Option("--nodes", help="List the precision of every node.")] = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="First run each graph once on the CPU in a separate process, which may crash: for untrusted bundles.",
        ),
    ] = False,
) -> None:
    """Check a bundle's files against its manifest and show what it holds, what it costs and its engines."""
    from visrt.console import report_console
    from visrt.runtime.bundles.bundle import open_bundle
    from visrt.runtime.engines.trt.engine_cache import EngineCache
    from visrt.runtime.engines.trt.precision import node_precisions

    flavours = _flavours(engine)
    opened = open_bundle(bundle)
    if probe:
        _probe(opened)
    cache = EngineCache()
    console = report_console()
    console.print(_overview(opened.manifest))
    if opened.manifest.other_sizes:
        console.print(_sizes(opened.manifest))
    for size in opened.sizes:
        precisions = node_precisions(size)
        if opened.manifest.other_sizes:
            console.rule(size.manifest.input.text)
        for name, graph in size.manifest.graphs.items():
            console.print(_tensors(name, graph))
            console.print(_cost(graph, precisions.get(name)), markup=False)
            _list_engines(console, cache, hashlib.sha256(size.graph(name)).hexdigest(), flavours)
        console.print(_moved(size.manifest, masks))
        if nodes:
            _list_nodes(console, precisions)
    files = list(opened.manifest.files())
    megabytes = sum(spec.bytes for spec in files) / 1e6
    console.print(f"{len(files)} files, {megabytes:.1f} MB: sizes and sha256 are those of the manifest")


def _probe(bundle: Bundle) -> None:
    from visrt.console import say
    from visrt.runtime.engines.probe import probe

    for size in bundle.sizes:
        probe(size)
    say(f"{', '.join(bundle.manifest.graphs)}: loaded and run once in a separate process")


def _flavours(given: Sequence[str] | None) -> tuple[str, ...]:
    from visrt.runtime.errors import UsageError

    if unknown := [name for name in given or () if name not in FLAVOURS]:
        raise UsageError(f"--engine {', '.join(unknown)}: expected {' or '.join(FLAVOURS)}, whose engines are cached")
    return tuple(given or FLAVOURS)


def _overview(manifest: Manifest) -> Table:
    from rich.table import Table

    association = ", ".join(f"{key} {value}" for key, value in manifest.association.items()) or "the family's defaults"
    versions = ", ".join(f"{name} {version}" for name, version in manifest.producer.versions.items())
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("bundle", manifest.name)
    table.add_row("family", manifest.family)
    table.add_row("classes", f"{len(manifest.classes)}: {', '.join(manifest.classes)}")
    table.add_row("input", f"{manifest.input.height} x {manifest.input.width}, {manifest.input.resize}")
    table.add_row("association", association)
    table.add_row("checkpoint", f"{manifest.producer.checkpoint}, sha256 {manifest.producer.checkpoint_sha256[:12]}")
    table.add_row("made", f"{manifest.producer.created} with {versions}")
    return table


def _sizes(manifest: Manifest) -> Table:
    """A row a size: the bytes of its own files, and what a frame costs; then the bytes that sizes share."""
    from rich.table import Table

    files = [set(size.files()) for size in manifest.sizes]
    shared = set.intersection(*files)
    graphs = [f"{name}, M MACs" for name in manifest.graphs]
    table = Table("size", "short side", "own MB", *graphs, title="sizes", title_justify="left")
    for size, of_size in zip(manifest.sizes, files, strict=True):
        macs = [NOT_RECORDED if graph.macs is None else f"{graph.macs / 1e6:,.1f}" for graph in size.graphs.values()]
        table.add_row(size.input.text, _short_side(size.input), _megabytes(of_size - shared), *macs)
    table.add_section()
    table.add_row("shared by all", "", _megabytes(shared))
    return table


def _short_side(spec: InputSpec) -> str:
    if spec.short_side is None:
        return "the largest that fits"
    return f"{spec.short_side}" if spec.long_side is None else f"{spec.short_side}, long at most {spec.long_side}"


def _megabytes(files: Iterable[FileSpec]) -> str:
    return f"{sum(spec.bytes for spec in files) / 1e6:.1f}"


def _tensors(name: str, graph: GraphSpec) -> Table:
    from rich.table import Table

    title = f"{name}: {graph.file.file}, {graph.file.bytes / 1e6:.1f} MB, opset {graph.opset}, {graph.precision}"
    table = Table("", "role", "tensor", "dtype", "shape", title=title, title_justify="left")
    for direction, tensors in (("in", graph.inputs), ("out", graph.outputs)):
        for role, spec in tensors.items():
            table.add_row(direction, role, spec.name, spec.dtype, _shape(spec))
    return table


def _shape(spec: TensorSpec) -> str:
    return " x ".join(str(side) for side in spec.shape)


def _cost(graph: GraphSpec, nodes: Mapping[str, str] | None) -> str:
    """One line: what a frame, or a mask, costs in this graph, and what its nodes compute in."""
    macs = NOT_RECORDED if graph.macs is None else f"{graph.macs / 1e6:,.1f} million"
    parameters = NOT_RECORDED if graph.parameters is None else f"{graph.parameters / 1e6:,.2f} million"
    counted = Counter(nodes.values()) if nodes else {}
    by_precision = ", ".join(f"{number} {precision}" for precision, number in sorted(counted.items()))
    return f"  multiply-accumulates {macs}, parameters {parameters}, nodes {by_precision or graph.precision}"


def _list_engines(console: Console, cache: EngineCache, onnx_sha256: str, flavours: Sequence[str]) -> None:
    kept = [found for found in cache.kept(onnx_sha256) if found.key["flavour"] in flavours]
    for found in kept:
        console.print(_engine(found), markup=False)
    if not kept:
        console.print(f"  no engine of {' or '.join(flavours)} is kept in {cache.folder}", markup=False)


def _engine(kept: KeptEngine) -> str:
    """One line: what an engine is, what it is for and what it computes in."""
    key = kept.key
    profile = ", ".join(f"{symbol} {'/'.join(map(str, sizes))}" for symbol, sizes in key["profile"])
    layers = ", ".join(f"{count} {kind}" for kind, count in kept.precision.items() if not kind.startswith("tensor "))
    cuda = f", CUDA {key['cuda']}" if key.get("cuda") else ""
    doubtful = f"{len(kept.unaccounted)} messages NOT accounted for; " if kept.unaccounted else ""
    return (
        f"  engine of {key['flavour']} {key['version']} for {key['gpu']}{cuda}: {kept.bytes / 1e6:.1f} MB, "
        f"{key['precision']}, {profile}; computes in {layers}; {len(kept.warnings)} accepted messages; {doubtful}"
        f"built {kept.created}; {kept.path.name}"
    )


def _moved(manifest: Manifest, masks: int) -> Table:
    """Bytes a frame of one stream moves: tensor by tensor, the sums of each graph, and of all. On the CPU nothing
    moves.

    What stays on the device, state and what one graph passes to another, is listed once, where it is computed.
    """
    from rich.table import Table

    from visrt.runtime.bundles.dynamic_axes import one_frame
    from visrt.runtime.engines.trt.device_tensor import bytes_of

    sizes = defaultdict(lambda: 1, one_frame(manifest, masks))
    title = f"bytes a frame of one stream moves on a GPU, with {masks} masks kept"
    table = Table("graph", "tensor", "way", "bytes", title=title, title_justify="left")
    sums: Counter[str] = Counter()
    for name, graph in manifest.graphs.items():
        handed = manifest.device_roles(name)
        moved = [(role, spec, "host to device") for role, spec in graph.inputs.items() if role not in handed]
        moved += [
            (role, spec, "stays on the device" if role in handed else "device to host")
            for role, spec in graph.outputs.items()
        ]
        of_graph: Counter[str] = Counter()
        for role, spec, way in moved:
            size = bytes_of(spec, sizes)
            table.add_row(name, role, way, f"{size:,}")
            of_graph[way] += size
        for way, total in of_graph.items():
            table.add_row(name, "all", way, f"{total:,}")
        table.add_section()
        sums += of_graph
    for way, total in sums.items():
        table.add_row("sum", "", way, f"{total:,}")
    return table


def _list_nodes(console: Console, precisions: Mapping[str, Mapping[str, str]]) -> None:
    if not precisions:
        console.print("the precision of single nodes is not recorded; the graphs' own applies to all")
    for graph, nodes in precisions.items():
        for node, precision in nodes.items():
            console.print(f"{graph}\t{precision}\t{node}", markup=False)
