"""Which learner a run's settings ask for. A new family is one file beside this one and one line."""

from __future__ import annotations

from visrt.training.frame_learner import FrameLearner
from visrt.training.genvis_learner import GenVisLearner
from visrt.training.inspro_learner import InsProLearner
from visrt.training.inspro_settings import InsProTrainSettings, check_inspro_settings
from visrt.training.learner import Learner
from visrt.training.run_settings import RunSettings
from visrt.training.settings import check_settings

__all__ = ["learner_of"]


def learner_of(settings: RunSettings) -> Learner:
    """The learner of `settings`. Raises SettingsError if they contradict each other."""
    if isinstance(settings, InsProTrainSettings):
        check_inspro_settings(settings)
        return InsProLearner(settings)
    check_settings(settings)
    if settings.genvis is not None:
        return GenVisLearner(settings, settings.genvis)
    return FrameLearner(settings)
