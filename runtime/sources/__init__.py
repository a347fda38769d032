"""Sources of frames: video files, image folders and cameras."""
