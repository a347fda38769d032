"""Lets every test import what is shared from this folder: fakes, golden."""

from hypothesis import settings

# Machines that test are busy: a slow example is not a wrong one.
settings.register_profile("visrt", deadline=None, max_examples=60)
settings.load_profile("visrt")
