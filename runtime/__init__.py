"""The runtime, for the machine where frames arrive: numpy, scipy, opencv, av and one inference library. Never imports
torch."""
