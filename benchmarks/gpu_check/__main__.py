"""Builds, verifies and times bundles on every engine of a GPU, part by part.

    python -m visrt.benchmarks.gpu_check --bundle bundles/default --clip clips/demo.mp4
    python -m visrt.benchmarks.gpu_check --random minvis-r50@480x864,videomt-s
    python -m visrt.benchmarks.gpu_check --only cuda

Parts that are done are not done again: run it again to go on. Exits with 0 if at least one engine ran on a GPU and
nothing failed, with 5 if something failed, and with 3 on a machine where no engine could run on a GPU: then only the
CPU was measured, and the report says that this was no GPU check. `--only cuda` tries the CUDA layer alone: it needs no
bundle, no clip and no TensorRT.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from visrt.benchmarks.gpu_check.networks import ALL, NETWORKS, PRECISIONS, random_bundles
from visrt.benchmarks.gpu_check.parts import (
    CheckSettings,
    Part,
    Subject,
    cuda_parts,
    engines_here,
    given_subjects,
    layers_here,
    parts_of,
)
from visrt.benchmarks.gpu_check.record import PAGE, RECORD, Done, Record
from visrt.benchmarks.gpu_check.report import advice_lines, exit_code, page, part_line, verdict_of
from visrt.benchmarks.gpu_check.runner import in_process
from visrt.runtime.engines.backends import BACKENDS
from visrt.runtime.engines.trt.cuda import LAYERS
from visrt.runtime.errors import INTERRUPTED, UsageError, VisrtError
from visrt.runtime.machine import machine_and_packages
from visrt.runtime.sinks.output import write_atomically

__all__ = ["check", "main"]

Run = Callable[[Part, str], Done]
SHIPPED = tuple(Path(f"bundles/default{suffix}") for suffix in ("", "-fp16", "-int8"))


def check(parts: Sequence[Part], record: Record, run: Run, say: Callable[[str], None] = print) -> None:
    """Does the parts that are not done yet; `record` has each as soon as it ended. `say` hears every line."""
    for number, part in enumerate(parts, start=1):
        before = record.of(part)
        if before and _is_done(part, before):
            say(f"{part_line(part, before)} (before)")
            continue
        say(f"part {number} of {len(parts)}: {part.id}")
        missing = _missing(part, parts, record)
        done = (
            Done(part.id, part.key(record.machine), "left out", missing)
            if missing
            else run(part, part.key(record.machine))
        )
        record.keep(done)
        for line in (part_line(part, done), *advice_lines(part, done)):
            say(line)


def _is_done(part: Part, done: Done) -> bool:
    """What failed is tried again, and a bundle that was removed is made again."""
    return done.state == "done" and (part.kind != "export" or part.subject.made)


def _missing(part: Part, parts: Sequence[Part], record: Record) -> str:
    """Why `part` cannot be done: there is no bundle, or its engines could not be built; empty if it can."""
    if part.lacks_bundle:
        return f"its bundle is not there: do {part.subject.name}/export first"
    of_the_same = (part.subject, part.engine, part.batch)
    for other in parts:
        if other.kind == "build" and (other.subject, other.engine, other.batch) == of_the_same and other != part:
            built = record.of(other)
            if built and built.state == "failed":
                return "its engines could not be built"
    return ""


def _chosen(parts: Sequence[Part], patterns: Sequence[str] | None) -> list[Part]:
    """The parts that match any of `patterns`, all without. Raises UsageError if there are none."""
    if not patterns:
        return list(parts)
    chosen = [part for part in parts if any(_matches(part.id, pattern) for pattern in patterns)]
    if not chosen:
        raise UsageError(
            f"--only {' '.join(patterns)}: no part is called so; --parts lists them, * stands for any text, as in "
            f"'{parts[0].subject.name}/*'"
        )
    return chosen


def _matches(name: str, pattern: str) -> bool:
    """Whether a part is called so, or is one of a group that is."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}/*")


def _cuda_alone(patterns: Sequence[str] | None) -> bool:
    """Whether --only names nothing but parts of the CUDA layer, which need no bundle."""
    known = [part.id for part in cuda_parts(LAYERS, 0)]
    return bool(patterns) and all(any(_matches(name, pattern) for name in known) for pattern in patterns or ())


def _arguments(arguments: Sequence[str] | None) -> Namespace:
    defaults = CheckSettings()
    description, _, rest = (__doc__ or "").partition("\n")
    parser = ArgumentParser(
        "make gpu-check", description=description, epilog=rest, formatter_class=RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--bundle", type=Path, nargs="+", help="folders; the shipped ones if neither these nor --random are given")
    add("--random", metavar="NAME[@HxW],...", help=f"bundles with random weights, {ALL} or: {', '.join(NETWORKS)}")
    add("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="of the bundles with random weights")
    add("--engine", nargs="+", choices=list(BACKENDS), default=(), help="all that run on a GPU if not given")
    add("--device", type=int, default=defaults.device, help="number of the GPU, as CUDA counts those it is shown")
    add("--batch", type=int, nargs="+", default=list(defaults.batches), help="the most streams that share a call")
    add("--streams", type=int, nargs="+", default=list(defaults.streams), help="streams at a time")
    add("--clip", type=Path, default=Path("clips/demo.mp4"))
    add("--frames", type=int, help="of each stream in a round; fewer on the CPU if not given")
    add("--rounds", type=int, default=defaults.rounds)
    add("--limit-s", type=float, default=600.0, help="seconds after which a part is stopped")
    add("--parts", action="store_true", help="list the parts and leave")
    add("--only", nargs="+", metavar="PART", help="do these parts; * stands for any text")
    add("--out", type=Path, default=Path("out/gpu_check"), help=f"folder of {RECORD}, {PAGE}, bundles and engines")
    return parser.parse_args(arguments)


def _subjects(given: Namespace) -> list[Subject]:
    random = random_bundles(given.random, given.precision) if given.random is not None else []
    folders = given.bundle or (() if random else SHIPPED)
    made = [Subject(one.bundle, given.out / "bundles" / one.bundle, "{}x{}".format(*one.size), one) for one in random]
    return [*given_subjects(folders), *made]


def _planned(given: Namespace, settings: CheckSettings) -> tuple[list[Part], dict[str, str]]:
    """All parts, and why engines and libraries for CUDA are absent, empty where they are not."""
    absences = layers_here()
    parts = cuda_parts([layer for layer, absence in absences.items() if not absence], given.device)
    if _cuda_alone(given.only):
        return parts, absences
    if not given.clip.is_file():
        raise UsageError(f"--clip {given.clip}: no such file; expected a video")
    found = engines_here(given.engine)
    engines = [engine for engine, absence in found.items() if not absence]
    return [*parts, *parts_of(_subjects(given), engines, settings, given.clip)], {**absences, **found}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code; the report goes to stdout and to two files."""
    given = _arguments(arguments)
    batches, streams = _each_once(given.batch), _each_once(given.streams)
    settings = CheckSettings(batches, streams, given.frames, given.rounds, given.device)
    parts, absences = _planned(given, settings)
    record = Record(given.out, machine_and_packages())
    record.absences = absences
    # Without a GPU there are no parts of the CUDA layer, and the report says why.
    chosen = _chosen(parts, given.only) if parts else []
    if given.parts:
        for part in chosen:
            done = record.of(part)
            print(part_line(part, done) if done else f"{part.id}: to do")
        return 0
    try:
        check(chosen, record, partial(in_process, folder=given.out, limit_s=given.limit_s))
    except KeyboardInterrupt:
        print(f"interrupted; what was done is in {given.out / RECORD}: run it again to go on")
        return INTERRUPTED
    finally:
        _report(parts, record, given.out)
    print(f"written to {given.out / RECORD} and {given.out / PAGE}")
    return exit_code(parts, record)


def _each_once(numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(numbers))


def _report(parts: Sequence[Part], record: Record, folder: Path) -> None:
    record.verdict = verdict_of(parts, record)
    record.write()
    text = page(parts, record)
    write_atomically(folder / PAGE, [text.encode()])
    print(text)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VisrtError as error:
        print(f"visrt: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
