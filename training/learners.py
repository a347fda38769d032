"""Which learner a run's settings ask for. A new family is one file beside this one and one line."""

from __future__ import annotations

from visrt.training.frame_learner import FrameLearner
from visrt.training.genvis_learner import GenVisLearner
from visrt.training.learner import Learner
from visrt.training.settings import TrainSettings, check_settings

__all__ = ["learner_of"]


def learner_of(settings: TrainSettings) -> Learner:
    """The learner of `settings`. Raises SettingsError if they contradict each other."""
    check_settings(settings)
    if settings.genvis is not None:
        return GenVisLearner(settings, settings.genvis)
    return FrameLearner(settings)
