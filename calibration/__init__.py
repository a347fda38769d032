"""Which frames to calibrate on, INT8, thresholds fitted on labelled clips."""
