"""What `visrt track` does: plans the sources, runs them one after the other or several at a time."""

from __future__ import annotations

from collections.abc import Sequence

from visrt.commands.track_output import finished, opened
from visrt.commands.track_plan import Plan, TrackOptions, plan, worst
from visrt.commands.track_progress import bars
from visrt.commands.track_together import track_together
from visrt.console import say
from visrt.runtime.errors import VisrtError
from visrt.runtime.session import Session, SessionSettings
from visrt.runtime.tracking import track_source
from visrt.signals import StopRequest

__all__ = ["TrackOptions", "track_all", "worst"]


def track_all(sources: Sequence[str], options: TrackOptions) -> int:
    """Tracks every source that can be; returns the exit code. One bad source does not stop the others."""
    plans, code = plan(sources, options)
    if not plans:
        return code
    with StopRequest() as stop:
        track = track_together if options.streams > 1 and len(plans) > 1 else track_in_turn
        return worst(code, track(plans, options, stop))


def track_in_turn(plans: Sequence[Plan], options: TrackOptions, stop: StopRequest) -> int:
    """Tracks one source after the other; the exit code."""
    code = 0
    with _session(options) as session:
        for one in plans:
            code = worst(code, track_one(one, session, options, stop))
            if stop():
                return stop.exit_code
    return code


def track_one(one: Plan, session: Session, options: TrackOptions, stop: StopRequest) -> int:
    """Tracks one source and prints how it went; returns its exit code."""
    try:
        source, sinks = opened(one, session.manifest, options)
    except VisrtError as error:
        say(str(error))
        return error.exit_code
    with bars() as bar_for:
        advance = bar_for(source.info, options.limit)
        outcome = track_source(source, session, sinks, stop, options.limit, advance)
    return finished(one.folder, outcome, session.manifest, session.family, options)


def _session(options: TrackOptions) -> Session:
    return Session.open(
        options.bundle,
        options.engine,
        threads=options.threads,
        settings=SessionSettings(in_flight=options.in_flight),
        association=options.association.changes,
        preset=options.association.preset,
    )
