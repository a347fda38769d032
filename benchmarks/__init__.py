"""Accuracy by the official rules, speed and memory, and their reports."""
