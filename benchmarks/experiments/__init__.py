"""Experiments: one question each, with its answer; see README.md. Not part of the wheel."""
