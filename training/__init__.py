"""Data sets, pseudo-videos, targets, losses and the training loop."""
