"""Tracking methods: from a network's outputs to objects with steady ids."""
