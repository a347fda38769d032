"""INT8: frames to calibrate on, ranges, and the layers that keep their precision."""
