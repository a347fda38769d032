"""`make gpu-check`: builds, verifies and times bundles of every family on every engine of a GPU, part by part."""
