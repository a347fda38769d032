"""Sinks of results: json lines, YouTube-VIS json, overlay videos and summaries."""
