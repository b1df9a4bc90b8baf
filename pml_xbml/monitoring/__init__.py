from .prototype_hook_container import PrototypeHookContainer
from .visualize import look

__all__ = ["PrototypeHookContainer", "look"]
