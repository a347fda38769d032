from visrt.runtime.arrays import Floats, softmax
from visrt.runtime.method import MasksOf, Track
from visrt.runtime.queries import Queries

__all__ = ["Floats", "MasksOf", "Queries", "Track", "softmax"]
