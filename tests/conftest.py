"""Lies here so that pytest puts this folder on the path: tests import `golden` and the like by their plain names."""
