"""EoMT and VidEoMT in the training loop."""
