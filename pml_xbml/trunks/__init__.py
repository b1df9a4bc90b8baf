from .prototype_pooling import PrototypePooling
from .prototype_pooling_trunk import PrototypePoolingTrunk

__all__ = ["PrototypePooling", "PrototypePoolingTrunk"]
