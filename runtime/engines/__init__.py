"""Engines: the protocol, the registry of backends, ONNX Runtime, and what this machine can run."""
