"""Checkpoints: visrt's own, published ones and Hugging Face folders."""
