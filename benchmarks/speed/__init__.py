"""Time, memory and throughput: `visrt bench` and its parts."""
