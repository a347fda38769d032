"""Losses and the matching of predictions with objects."""
