"""Streams whose frames share the calls of stateful graphs, against the same streams alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from visrt.runtime.arrays import Feed, Tensor
from visrt.runtime.bundles.bundle import Bundle, initial_states
from visrt.runtime.engines.backends import SizedEngines, open_engines
from visrt.runtime.engines.engine import Engine, HostEngine
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.errors import EngineError, VisrtError
from visrt.runtime.image import Frame
from visrt.runtime.methods.registry import method_of
from visrt.runtime.network import Networks
from visrt.runtime.results import FrameResult
from visrt.runtime.session import Session
from visrt.runtime.times import Stopwatch
from visrt.runtime.tracker import PendingCalls, SessionSettings, StreamTracker, update_together

STREAMS, FRAMES = 8, 6


class Counted(HostEngine):
    """Counts its calls by the number of streams, and takes no more than `most`."""

    def __init__(self, engine: Engine, most: int) -> None:
        self.engine, self.most, self.calls = engine, most, Counter[int]()

    @property
    def provider(self) -> str:
        return self.engine.provider

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        streams = next(iter(feeds.values())).shape[0]
        if streams > self.most:
            raise EngineError(f"{streams} streams are too many")
        self.calls[streams] += 1
        return self.engine(feeds)

    def close(self) -> None:
        self.engine.close()


def picture(stream: int, t: int) -> Frame:
    return np.random.default_rng(100 * stream + t).integers(0, 256, (80, 120, 3), dtype=np.uint8)


def has_frame(stream: int, t: int, missing: bool) -> bool:
    return not (missing and t and (t + stream) % 3 == 0)


def assert_together_as_alone(
    bundle: Bundle,
    graph: str,
    association: Mapping[str, Any] | None = None,
    *,
    missing: bool = False,
    most: int = STREAMS,
) -> None:
    """Ids, labels, scores and masks of 8 streams in one call are those of single runs; with `missing`, streams lack
    frames by turns. `graph` is called once for all that have one."""
    options = EngineOptions(threads=1, batch=STREAMS)
    engines = open_engines(bundle, options=options)
    counted = engines[graph] = Counted(engines[graph], most)
    watch, method = Stopwatch(), method_of(bundle.manifest, association)
    networks = Networks([SizedEngines(bundle.manifest, engines, initial_states(bundle))], watch)
    trackers = [StreamTracker(method, networks, SessionSettings()) for _ in range(STREAMS)]
    together: list[list[FrameResult]] = [[] for _ in trackers]
    calls = PendingCalls()
    for t in range(FRAMES):
        ready = [at for at in range(STREAMS) if has_frame(at, t, missing)]
        batches = [networks.prepare([picture(at, t)], [t / 10])[0] for at in ready]
        calls.submit([(trackers[at], batch) for at, batch in zip(ready, batches, strict=True)])
        [outputs] = calls.finish(keep_in_flight=0)
        for at, found in zip(ready, update_together(outputs, watch), strict=True):
            assert not isinstance(found, VisrtError), str(found)
            together[at] += [make() for make in found]
    for at in range(STREAMS):
        with Session.open(bundle, threads=1, association=association) as session:
            frames = [t for t in range(FRAMES) if has_frame(at, t, missing)]
            alone = [result for t in frames for result in session.step(picture(at, t), t / 10)]
        assert together[at] == alone
    assert any(result.objects for results in together for result in results)
    counts = Counter(sum(has_frame(at, t, missing) for at in range(STREAMS)) for t in range(FRAMES))
    assert counted.calls == (counts if most == STREAMS else Counter({1: sum(n * t for n, t in counts.items())}))
    networks.close()
