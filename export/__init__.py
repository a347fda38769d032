"""Checkpoint to bundle: graphs, ONNX, parity with torch."""
