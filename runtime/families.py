from visrt.runtime.registry import METHODS as FAMILIES
from visrt.runtime.registry import method_from_preset as family_from_preset
from visrt.runtime.registry import method_of as family_of
from visrt.runtime.registry import per_frame_method_of as frame_family_of

__all__ = ["FAMILIES", "family_from_preset", "family_of", "frame_family_of"]
