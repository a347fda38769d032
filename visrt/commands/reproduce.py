"""`visrt reproduce`: the published figures, the commands that lead to one, and whether it was reached."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from visrt.benchmarks.accuracy.published import Figure, Scores

__all__ = ["reproduce"]


def reproduce(
    name: Annotated[str | None, typer.Argument(help="A figure of the list, as minvis-r50-ytvis19.")] = None,
    ap: Annotated[
        float | None, typer.Option("--ap", help="AP in percent, as the evaluation server gave it: is it the published?")
    ] = None,
    trained: Annotated[
        bool, typer.Option("--trained", help="The weights are of your own training: the paper's AP counts.")
    ] = False,
) -> None:
    """List the published figures; with a NAME, print the commands that lead there, or judge an AP.

    Leaves with code 5 where the AP is not the published one within its tolerance.
    """
    from visrt.benchmarks.accuracy.published import FIGURES, figure_named, verdict
    from visrt.runtime.errors import UsageError

    if name is None:
        if ap is not None or trained:
            raise UsageError(
                "--ap and --trained are about one figure: name it, as in visrt reproduce minvis-r50-ytvis19"
            )
        _list(tuple(FIGURES.values()))
    elif ap is not None:
        print(verdict(figure_named(name), ap, trained))
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
            str(one.short_side), files[1],
        )  # fmt: skip
    table.columns[0].no_wrap = True
    # A file or pipe has no width: a line a figure.
    Console(width=None if Console().is_terminal else 240, highlight=False).print(table)
    print("\nThe paper's AP, and that of the released file by its page. The commands that lead to a figure:")
    print("visrt reproduce NAME, of the form")
    print("  visrt export FILE --family FAMILY --classes CLASSES --sizes ytvis --short-side PIXELS --out DIR/bundle")
    print("  visrt eval --bundle DIR/bundle --data SET --split valid --rule official --write-results DIR/results")


def _ap(scores: Scores | None) -> str:
    return "" if scores is None else f"{scores.ap:.1f}"


def _show(figure: Figure, trained: bool) -> None:
    from visrt.training.data.official_sets import OFFICIAL_SETS

    print(f"{figure.name}: {figure.model}, {OFFICIAL_SETS[figure.set].title}, valid split")
    print(_scores_table(figure))
    print(f"expected: {figure.expectation(trained)}")
    print(f"frames: short side {figure.short_side}, long side at most {figure.long_side} pixels")
    print(_weights_line(figure, trained))
    print(f"annotations: not public; {figure.server} measures the zip")
    print()
    weights = _weights(figure, trained)
    for line in (
        command(export_arguments(figure, weights, Path("DIR"))),
        command(eval_arguments(figure, Path("ROOT") / OFFICIAL_SETS[figure.set].folders[0], Path("DIR"))),
        command(("reproduce", figure.name, "--ap", "AP", *(("--trained",) if trained else ()))),
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


def export_arguments(figure: Figure, weights: Path, out: Path) -> tuple[str, ...]:
    """`visrt export` to the bundle of `figure` in the folder `out`."""
    # A file of visrt knows its classes.
    classes = () if weights.suffix == ".safetensors" else ("--classes", figure.classes)
    clips = () if figure.clip_frames is None else ("--clip-lengths", str(figure.clip_frames))
    size = ("--sizes", "ytvis", "--short-side", str(figure.short_side))
    return ("export", str(weights), "--family", figure.family, *clips, *classes, *size, "--out", str(out / "bundle"))


def eval_arguments(figure: Figure, data: Path, out: Path) -> tuple[str, ...]:
    """`visrt eval` of that bundle on the valid split of the set at `data`."""
    where = ("--bundle", str(out / "bundle"), "--data", str(data), "--split", "valid")
    rule = ("--rule", "official", "--top-k", str(figure.top_k))
    return ("eval", *where, *rule, "--write-results", str(out / "results"))
