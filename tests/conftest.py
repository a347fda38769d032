"""Lets every test import what is shared from this folder: fakes, golden."""

import os

from hypothesis import settings

# Test processes side by side share the cores: each computes with its part of them. Read when torch is imported.
BESIDE = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if BESIDE > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // BESIDE)))

# Machines that test are busy: a slow example is not a wrong one.
settings.register_profile("visrt", deadline=None, max_examples=60)
settings.load_profile("visrt")
