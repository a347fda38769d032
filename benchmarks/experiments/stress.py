"""Every preset over synthetic streams made to break identities: id switches, ids found again over gaps, time a frame.

    python -m visrt.benchmarks.experiments.stress --write --plot docs/stress.png

The owner of every query is known (`stress_streams`), so nothing has to be matched by overlap. Intervals are by
bootstrap over streams.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import thread_time
from typing import Any

from threadpoolctl import threadpool_limits

from visrt.benchmarks.accuracy.result_files import (
    COMPARED_PRESETS,
    EXPERIMENT_RESULTS,
    add_result_options,
    preset_settings,
    write_result,
)
from visrt.benchmarks.experiments.bootstrap import difference_of_rates, rate
from visrt.benchmarks.experiments.stress_streams import NOBODY, StreamFrame, StreamSettings, make_stream
from visrt.runtime.methods.method import PerFrameMethod, Track
from visrt.runtime.methods.registry import method_from_preset

__all__ = ["CONTENDERS", "GAPS_FRAMES", "SCENARIOS", "StreamCounts", "follow_stream", "stress"]

FPS = 24.0
GAPS_FRAMES = (1, 2, 3, 5, 8, 12, 20, 30, 45, 60)
FOUND_AGAIN_WITHIN_FRAMES = 5
BASELINE = "minvis"
STYLES = ("-", "--", ":")
"""Of the plot's lines, so that those that lie on each other can be distinguished."""

CONTENDERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    **{name: (name, {}) for name in COMPARED_PRESETS},
    "minvis, lost_s 3": ("minvis", {"lost_s": 3.0}),
}
"""By name, a preset and changes of its settings: MinVIS once more with the patience of the memory presets, so that
what memory does can be told from what patience does."""

SCENARIOS: dict[str, tuple[StreamSettings, tuple[int, ...]]] = {
    "different objects": (StreamSettings(), GAPS_FRAMES),
    "look-alikes": (StreamSettings(likeness=0.95), GAPS_FRAMES),
    "look-alikes that cross": (StreamSettings(likeness=0.95, meetings="plan", before_frames=24, after_frames=24), (0,)),
    "noise": (
        StreamSettings(likeness=0.5, noise=0.5, missed=0.15, false_alarms=2.0, before_frames=24),
        (5,),
    ),
}
"""By name, streams and the lengths of the gaps in them; 0 is none."""


@dataclass(frozen=True)
class StreamCounts:
    """Of one stream. wanted, found: objects in sight over frames, and those reported. links: objects reported in two
    successive frames; switches: links whose id changed. returns: objects reported again after frames without, whyever;
    lost_ids: returns with another id. duplicates: reports of an object beyond the first; spurious: of none.
    gaps: scripted absences; recovered: of these, those after which the object was reported within 5 frames with the id
    it had. seconds: of processor time in association.
    """

    frames: int = 0
    wanted: int = 0
    found: int = 0
    links: int = 0
    switches: int = 0
    returns: int = 0
    lost_ids: int = 0
    duplicates: int = 0
    spurious: int = 0
    gaps: int = 0
    recovered: int = 0
    seconds: float = 0.0


def follow_stream(family: PerFrameMethod[Any], frames: Sequence[StreamFrame]) -> StreamCounts:
    """What `family` makes of the stream, counted."""
    follower = _Follower()
    state = family.start()
    for t, frame in enumerate(frames):
        started = thread_time()
        tracks, state = family.associate(frame.queries, frame.mask_logits, t / FPS, state)
        seconds = thread_time() - started
        follower.add(t, frame, tracks, seconds)
    return follower.counts


class _Follower:
    """The counts of one stream under way. last: of each object, the id and the frame of its last report. away: since
    when an object is kept out of sight and the id it had. back: which returned objects are still to be reported, from
    which frame on, and the id they had.
    """

    def __init__(self) -> None:
        self.counts = StreamCounts()
        self._last: dict[int, tuple[int, int]] = {}
        self._away: dict[int, int] = {}
        self._back: dict[int, tuple[int, int]] = {}

    def add(self, t: int, frame: StreamFrame, tracks: Sequence[Track], seconds: float) -> None:
        ids, duplicates, spurious = reported(frame, tracks)
        self._script(t, frame)
        for one, identity in ids.items():
            self._report(t, one, identity)
        c = self.counts
        self.counts = replace(
            c,
            frames=c.frames + 1,
            wanted=c.wanted + int(frame.present.sum()),
            found=c.found + len(ids),
            duplicates=c.duplicates + duplicates,
            spurious=c.spurious + spurious,
            seconds=c.seconds + seconds,
        )

    def _script(self, t: int, frame: StreamFrame) -> None:
        """Who is sent away, and who is let in again. One that had no id when it went has none to recover."""
        for one, away in enumerate(frame.away):
            if away and one not in self._away and one in self._last:
                self._away[one] = self._last[one][0]
            elif not away and frame.present[one] and one in self._away:
                self._back[one] = t, self._away.pop(one)
                self.counts = replace(self.counts, gaps=self.counts.gaps + 1)

    def _report(self, t: int, one: int, identity: int) -> None:
        c = self.counts
        if one in self._back:
            since, before = self._back.pop(one)
            recovered = identity == before and t - since < FOUND_AGAIN_WITHIN_FRAMES
            c = replace(c, recovered=c.recovered + int(recovered))
        if one in self._last:
            last_id, last_frame = self._last[one]
            changed = int(identity != last_id)
            if last_frame == t - 1:
                c = replace(c, links=c.links + 1, switches=c.switches + changed)
            else:
                c = replace(c, returns=c.returns + 1, lost_ids=c.lost_ids + changed)
        self._last[one] = identity, t
        self.counts = c


def reported(frame: StreamFrame, tracks: Sequence[Track]) -> tuple[dict[int, int], int, int]:
    """The id each object is reported with, the number of reports beyond the first, and of those of no object.

    Of several reports of an object the one of its first query counts.
    """
    rows = [frame.row_of(track.mask_logits) for track in tracks]
    ids: dict[int, int] = {}
    spurious = 0
    for row, track in sorted(zip(rows, tracks, strict=True), key=lambda pair: bool(frame.copies[pair[0]])):
        owner = int(frame.owners[row])
        if owner == NOBODY:
            spurious += 1
        else:
            ids.setdefault(owner, track.id)
    return ids, len(tracks) - spurious - len(ids), spurious


def stress(streams: int, seed: int, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Figures by scenario, gap length and contender, over `streams` streams each."""
    found: dict[str, Any] = {}
    for scenario, (settings, gaps) in SCENARIOS.items():
        by_gap = {gap: _over_streams(replace(settings, gap_frames=gap), streams, seed) for gap in gaps}
        progress(scenario)
        found[scenario] = {
            "by_gap_frames": {gap: _figures(counts) for gap, counts in by_gap.items()},
            "all": _figures({name: [c for by in by_gap.values() for c in by[name]] for name in CONTENDERS}),
        }
    return found


def _over_streams(settings: StreamSettings, streams: int, seed: int) -> dict[str, list[StreamCounts]]:
    """By contender, the counts of each stream; all see the same streams."""
    families = {name: method_from_preset(preset, changes) for name, (preset, changes) in CONTENDERS.items()}
    counts: dict[str, list[StreamCounts]] = {name: [] for name in CONTENDERS}
    for frames in _streams(settings, streams, seed):
        for name, family in families.items():
            counts[name].append(follow_stream(family, frames))
    return counts


def _streams(settings: StreamSettings, streams: int, seed: int) -> Iterator[list[StreamFrame]]:
    for number in range(streams):
        yield make_stream(settings, seed * 10_000 + number)


def _figures(counts: Mapping[str, Sequence[StreamCounts]]) -> dict[str, dict[str, Any]]:
    return {name: _figures_of(by_stream, counts[BASELINE]) for name, by_stream in counts.items()}


def _figures_of(counts: Sequence[StreamCounts], baseline: Sequence[StreamCounts]) -> dict[str, Any]:
    """Sums, rates with their intervals, and how the rate of changed ids differs from the baseline's."""
    total = {name: sum(getattr(c, name) for c in counts) for name in StreamCounts.__dataclass_fields__}
    return {
        "counts": {name: value for name, value in total.items() if name != "seconds"},
        "recall": total["found"] / max(total["wanted"], 1),
        "recovered": asdict(rate([c.recovered for c in counts], [c.gaps for c in counts])),
        "changed_ids": asdict(rate(*_changes(counts))),
        "changed_ids_less_minvis": asdict(difference_of_rates(*_changes(counts), *_changes(baseline))),
        "us_a_frame": 1e6 * total["seconds"] / max(total["frames"], 1),
    }


def _changes(counts: Sequence[StreamCounts]) -> tuple[list[int], list[int]]:
    """By stream: how often an object had another id than when last reported, and how often it could have."""
    return [c.switches + c.lost_ids for c in counts], [c.links + c.returns for c in counts]


def plot_recovery(scenarios: Mapping[str, Any], image: Path) -> None:
    """Draws the share of recovered ids over the gap, with its interval, for every scenario that has gaps to compare."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = {name: found["by_gap_frames"] for name, found in scenarios.items() if len(found["by_gap_frames"]) > 1}
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    for axes, (name, by_gap) in zip(panels, drawn.items(), strict=True):
        _draw(axes, by_gap)
        axes.set(title=name, xlabel="frames out of sight", xscale="log", ylim=(-0.03, 1.03))
        axes.set_xticks(list(by_gap), [str(gap) for gap in by_gap], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("ids found again")
    figure.axes[0].legend(fontsize="small")
    figure.savefig(image, dpi=90)


def _draw(axes: Any, by_gap: Mapping[int, Any]) -> None:
    gaps = list(by_gap)
    for at, name in enumerate(by_gap[gaps[0]]):
        shares = [by_gap[gap][name]["recovered"] for gap in gaps]
        [line] = axes.plot(gaps, [s["value"] for s in shares], marker=".", label=name, linestyle=STYLES[at % 3])
        low, high = ([s[end] for s in shares] for end in ("low", "high"))
        axes.fill_between(gaps, low, high, alpha=0.12, color=line.get_color(), linewidth=0)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run every preset over synthetic streams that break identities.")
    add_result_options(parser, EXPERIMENT_RESULTS / "stress.json")
    parser.add_argument("--plot", type=Path, help="png: ids found again over the length of the gap")
    parser.add_argument("--streams", type=int, default=30, help="streams a scenario and gap length")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "streams": given.streams,
        "seed": given.seed,
        "fps": FPS,
        "found_again_within_frames": FOUND_AGAIN_WITHIN_FRAMES,
        "scenarios": {name: {**asdict(stream), "gaps_frames": gaps} for name, (stream, gaps) in SCENARIOS.items()},
        "contenders": {name: {"preset": preset, "changes": changes} for name, (preset, changes) in CONTENDERS.items()},
        "presets": preset_settings(),
    }


def main() -> None:
    given = arguments()
    with threadpool_limits(1):
        found = stress(given.streams, given.seed, lambda name: print(name, flush=True))
    write_result(given.out, settings_of(given), {"scenarios": found})
    if given.plot:
        plot_recovery(found, given.plot)


if __name__ == "__main__":
    main()
