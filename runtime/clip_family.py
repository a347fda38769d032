from visrt.runtime.arrays import Tensors
from visrt.runtime.method import RunGraph

__all__ = ["RunGraph", "Tensors"]
