"""From a bundle to how its engines are asked for everything they say of a frame, for parity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from visrt.runtime.bundle import Bundle, initial_states
from visrt.runtime.engine_outputs import Ask, outputs_of
from visrt.runtime.families import family_of
from visrt.runtime.genvis import BASE, GenVis
from visrt.runtime.genvis_outputs import genvis_asker
from visrt.runtime.inspro import InsPro, first_step
from visrt.runtime.inspro_outputs import inspro_asker

__all__ = ["asker_of"]


def _genvis(bundle: Bundle, family: GenVis) -> Ask:
    return genvis_asker(initial_states(bundle)[BASE], family.settings.clip_lengths)


def _inspro(bundle: Bundle, _: InsPro) -> Ask:
    spec = bundle.manifest.input
    return inspro_asker(first_step(initial_states(bundle)).pairs, (spec.height, spec.width))


ASKERS: dict[type[Any], Callable[[Bundle, Any], Ask]] = {GenVis: _genvis, InsPro: _inspro}


def asker_of(bundle: Bundle) -> Ask:
    """How the engines of `bundle` are asked. Raises BundleError where its graphs do not fit its family."""
    family = family_of(bundle.manifest)
    asker = ASKERS.get(type(family))
    return outputs_of if asker is None else asker(bundle, family)
