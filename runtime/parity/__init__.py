"""Parity: whether engines compute what PyTorch computed, within the tolerance of their precision."""
