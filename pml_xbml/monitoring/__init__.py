"""What one looks at during and after training. It imports ``checkpoint``, never the other way round."""

from .prototype_hook_container import PrototypeHookContainer
from .tensorboard import TensorBoardRecordKeeper, get_record_keeper
from .visualize import look

__all__ = ["PrototypeHookContainer", "TensorBoardRecordKeeper", "get_record_keeper", "look"]
