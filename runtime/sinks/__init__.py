"""Where results go: json lines, YouTube-VIS json, overlay videos and summaries."""
