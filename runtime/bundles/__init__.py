"""Bundles: the manifest, reading, writing, and checks of files that come from strangers."""
