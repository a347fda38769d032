"""Training data: annotated sets, cutouts, pseudo-videos and the clips made of them."""
