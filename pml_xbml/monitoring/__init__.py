from .look import look
from .prototype_hook_container import PrototypeHookContainer

__all__ = ["PrototypeHookContainer", "look"]
