"""Annotated sets: their formats, checks and contact sheets."""
