"""`visrt reproduce`: the published figures, the commands that lead to one, and whether it was reached."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from visrt.benchmarks.accuracy.published import Figure, Scores
    from visrt.training.data.official_sets import SplitPlaces

__all__ = ["reproduce"]

FIGURES_FILE = "figures.json"
"""What was measured, and with what, in the folder of a figure."""


def reproduce(
    name: Annotated[str | None, typer.Argument(help="A figure of the list, as minvis-r50-ytvis19.")] = None,
    weights: Annotated[Path | None, typer.Option(help="The released file, or your own model.safetensors.")] = None,
    data: Annotated[Path | None, typer.Option(help="The folder that holds the data sets.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for bundle, results and figures.")] = None,
    engine: Annotated[str | None, typer.Option(help="What runs the network, as for `visrt eval`.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Videos at a time, as for `visrt eval`.")] = None,
    trained: Annotated[
        bool, typer.Option("--trained", help="The weights are of your own training: the paper's AP counts.")
    ] = False,
    ap: Annotated[
        float | None, typer.Option("--ap", help="AP in percent, as the evaluation server gave it: is it the published?")
    ] = None,
) -> None:
    """List the published figures; with a NAME, print the commands that lead there, or with --weights run them.

    What OUT holds already is taken as it is, so the same command goes on after an interruption. Leaves with code 5
    where the AP is not the published one within its tolerance.
    """
    from visrt.benchmarks.accuracy.published import FIGURES, figure_named, verdict
    from visrt.runtime.errors import UsageError

    run = (weights, data, out)
    if name is None:
        if trained or any(option is not None for option in (*run, engine, jobs, ap)):
            raise UsageError("these options are about one figure: name it, as in visrt reproduce minvis-r50-ytvis19")
        _list(tuple(FIGURES.values()))
    elif ap is not None:
        if any(option is not None for option in (*run, engine, jobs)):
            raise UsageError("--ap judges the figure of a server and runs nothing; leave the other options out")
        print(verdict(figure_named(name), ap, trained))
    elif weights is not None and data is not None and out is not None:
        _run(figure_named(name), weights, data, out, engine or "cpu", jobs, trained)
    elif any(option is not None for option in (*run, engine, jobs)):
        raise UsageError("to run the commands, give --weights, --data and --out; to see them, the name alone")
    else:
        _show(figure_named(name), trained)


def _list(figures: tuple[Figure, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    from visrt.training.data.official_sets import OFFICIAL_SETS

    columns = ("figure", "published in", "model", "set", "AP", "AP of the file", "short side", "file")
    table = Table(*columns, box=None, pad_edge=False)
    for one in figures:
        files = ("", "none released") if one.checkpoint is None else (_ap(one.checkpoint.scores), one.checkpoint.file)
        table.add_row(
            one.name, one.table or one.page, one.model, OFFICIAL_SETS[one.set].title, _ap(one.paper), files[0],
            str(one.resize.short_side), files[1],
        )  # fmt: skip
    table.columns[0].no_wrap = True
    # A file or pipe has no width: a line a figure.
    Console(width=None if Console().is_terminal else 240, highlight=False).print(table)
    print(
        "\nAP of the paper, and of the released file by its page. `visrt reproduce NAME` prints what leads to a figure:"
    )
    print("visrt export FILE --family FAMILY --classes CLASSES --sizes VALID.json --short-side PIXELS --out DIR/bundle")
    print("visrt eval --bundle DIR/bundle --data VALID.json --rule official --write-results DIR/results")


def _ap(scores: Scores | None) -> str:
    return "" if scores is None else f"{scores.ap:.1f}"


def _show(figure: Figure, trained: bool) -> None:
    from visrt.training.data.official_sets import OFFICIAL_SETS

    print(f"{figure.name}: {figure.model}, {OFFICIAL_SETS[figure.set].title}, valid split")
    print(_scores_table(figure))
    print(f"expected: {figure.expectation(trained)}")
    print(f"frames: short side {figure.resize.short_side}, long side at most {figure.resize.long_side} pixels")
    print(_weights_line(figure, trained))
    print(f"annotations: not public; {figure.server} measures the zip")
    print()
    weights, videos = _weights(figure, trained), OFFICIAL_SETS[figure.set].usual(Path("ROOT"), "valid")
    for line in (
        command(export_arguments(figure, weights, videos, Path("DIR"))),
        command(eval_arguments(figure, videos, Path("DIR"))),
        command(_judging(figure, trained)),
    ):
        print(line)


def _scores_table(figure: Figure) -> str:
    rows: list[tuple[str, ...]] = [("", "AP", "AP50", "AP75", "AR1", "AR10")]
    if figure.paper is not None:
        rows.append((figure.table, *_cells(figure.paper)))
    if figure.checkpoint is not None:
        rows.append((f"{figure.checkpoint.file} ({figure.page})", *_cells(figure.checkpoint.scores)))
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{first:{width}}" + "".join(f"{cell:>7}" for cell in cells) for first, *cells in rows)


def _cells(scores: Scores) -> tuple[str, ...]:
    values = (scores.ap, scores.ap50, scores.ap75, scores.ar1, scores.ar10)
    return tuple("-" if value is None else f"{value:.1f}" for value in values)


def _weights(figure: Figure, trained: bool) -> Path:
    """Where the weights usually are: released ones in ROOT/weights, trained ones in their run."""
    if trained or figure.checkpoint is None:
        return Path("runs") / figure.name / "model.safetensors"
    return Path("ROOT") / "weights" / figure.checkpoint.file


def _weights_line(figure: Figure, trained: bool) -> str:
    if trained or figure.checkpoint is None:
        why = "" if trained else "none were released; "
        return f"weights: {why}visrt train --recipe {figure.name} --data ROOT --out runs/{figure.name}"
    return f"weights: {figure.checkpoint.file}, linked in {figure.page}"


def command(arguments: tuple[str, ...]) -> str:
    """The line to type."""
    import shlex

    return shlex.join(("visrt", *arguments))


def export_arguments(figure: Figure, weights: Path, videos: SplitPlaces, out: Path) -> tuple[str, ...]:
    """`visrt export` to the bundle of `figure` in the folder `out`, at the sizes that `videos` need."""
    # A file of visrt knows its classes.
    classes = () if weights.suffix == ".safetensors" else ("--classes", figure.classes)
    clips = () if figure.clip_frames is None else ("--clip-lengths", str(figure.clip_frames))
    resize = ("--short-side", str(figure.resize.short_side), "--long-side", str(figure.resize.long_side))
    size = ("--sizes", str(videos.folder / videos.annotations), *resize)
    return ("export", str(weights), "--family", figure.family, *clips, *classes, *size, "--out", str(out / "bundle"))


def eval_arguments(figure: Figure, videos: SplitPlaces, out: Path) -> tuple[str, ...]:
    """`visrt eval` of that bundle on `videos`."""
    where = ("--bundle", str(out / "bundle"), "--data", str(videos.folder / videos.annotations))
    rule = ("--rule", "official", "--top-k", str(figure.top_k))
    written = ("--write-results", str(out / "results"), "--json", str(out / FIGURES_FILE))
    return ("eval", *where, *rule, *written)


def _judging(figure: Figure, trained: bool) -> tuple[str, ...]:
    """`visrt reproduce` for the AP of the server."""
    return ("reproduce", figure.name, *(("--trained",) if trained else ()), "--ap", "AP")


def _run(figure: Figure, weights: Path, data: Path, out: Path, engine: str, jobs: int | None, trained: bool) -> None:
    """Export and evaluation as far as `out` does not hold them, and what came of it."""
    from visrt.benchmarks.accuracy.published import verdict
    from visrt.runtime.errors import UsageError
    from visrt.training.data.official_sets import OFFICIAL_SETS

    videos = OFFICIAL_SETS[figure.set].find(data, "valid")
    if not weights.exists():
        raise UsageError(f"{weights}: is not there; {_weights_line(figure, trained)}")
    if not _is_exported(figure, weights, videos, out):
        _check_backbone(figure, weights)
        _call(export_arguments(figure, weights, videos, out))
    if not _is_evaluated(figure, videos, out, engine):
        at_once = () if jobs is None else ("--jobs", str(jobs))
        _call((*eval_arguments(figure, videos, out), "--engine", engine, *at_once))
    ap = _measured_ap(out)
    if ap is None or figure.part:
        print(f"upload {out / 'results' / 'results.zip'} to {figure.server}; expected {figure.expectation(trained)}")
        print(command(_judging(figure, trained)))
    else:
        print(verdict(figure, ap, trained))


def _check_backbone(figure: Figure, weights: Path) -> None:
    """Raises UsageError for weights of another kind of backbone, whose AP hours later would be another."""
    from dataclasses import asdict

    from visrt.export.families import read_for
    from visrt.models.checkpoints.published import backbone_in_words, published_backbone
    from visrt.runtime.bundles.manifest import InputSpec
    from visrt.runtime.errors import UsageError
    from visrt.runtime.methods.registry import METHODS

    association = asdict(METHODS[figure.family]({}).settings)
    size = InputSpec(height=384, width=640)
    found = backbone_in_words(read_for(figure.family, weights, size, association).checkpoint.settings)
    expected = published_backbone(figure.backbone)
    if found != expected:
        raise UsageError(
            f"{weights}: its backbone is a {found}; {figure.name} is of {figure.model}, expected a {expected}"
        )


def _call(arguments: tuple[str, ...]) -> None:
    """Runs a command of visrt in this process, as it would be typed."""
    from visrt.cli import load
    from visrt.console import say

    say(command(arguments))
    verb, *rest = arguments
    code = load(verb).main(args=rest, prog_name=f"visrt {verb}", standalone_mode=False)
    if code:
        raise typer.Exit(code)


def _is_exported(figure: Figure, weights: Path, videos: SplitPlaces, out: Path) -> bool:
    """Whether `out` holds the bundle of these weights. Raises UsageError where it holds another one."""
    from visrt.console import say
    from visrt.export.sizes import sizes_for_shapes, video_shapes
    from visrt.models.checkpoints.fingerprint import checkpoint_sha256
    from visrt.runtime.bundles.bundle import open_bundle
    from visrt.runtime.errors import UsageError

    folder = out / "bundle"
    if not folder.exists():
        return False
    manifest = open_bundle(folder).manifest
    shapes = video_shapes(videos.folder / videos.annotations)
    sizes = sizes_for_shapes(shapes, figure.resize.short_side, figure.resize.long_side)
    same = {
        f"weights {manifest.producer.checkpoint}": manifest.producer.checkpoint_sha256 == checkpoint_sha256(weights),
        f"family {manifest.family}": manifest.family == figure.family,
        f"short side {manifest.input.short_side}": manifest.input.short_side == figure.resize.short_side,
        f"long side {manifest.input.long_side}": manifest.input.long_side == figure.resize.long_side,
        f"{len(manifest.sizes)} sizes": {(one.input.height, one.input.width) for one in manifest.sizes} == {*sizes},
        "another clip length": manifest.association.get("clip_frames") == figure.clip_frames,
    }
    if others := [what for what, is_same in same.items() if not is_same]:
        raise UsageError(
            f"{folder}: is not the bundle of {weights} for {figure.name} (it has {', '.join(others)}); give another "
            "--out, or delete it"
        )
    say(f"{folder}: is of these weights and is taken as it is")
    return True


def _is_evaluated(figure: Figure, videos: SplitPlaces, out: Path, engine: str) -> bool:
    """Whether `out` holds the results of its bundle on `videos`, and their figures."""
    from visrt.console import say
    from visrt.runtime.bundles.bundle import open_bundle

    if not (out / "results" / "results.zip").is_file() or not (out / FIGURES_FILE).is_file():
        return False
    expected = {
        "frame_sha256": open_bundle(out / "bundle").manifest.graphs["frame"].file.sha256,
        "data": str(videos.folder / videos.annotations),
        "engine": engine,
        "rule": "official",
        "top_k": figure.top_k,
    }
    made = _figures(out).get("settings", {})
    if any(made.get(key) != value for key, value in expected.items()):
        return False
    say(f"{out / 'results'}: are of this bundle and set and are taken as they are")
    return True


def _figures(out: Path) -> dict[str, Any]:
    """What `visrt eval --json` wrote."""
    from visrt.runtime.json_file import read_json_object

    return read_json_object(out / FIGURES_FILE, "the figures of visrt eval")


def _measured_ap(out: Path) -> float | None:
    """AP in percent; None where the set has no annotations."""
    ap = _figures(out).get("precision", {}).get("ap")
    return None if ap is None else 100.0 * ap
