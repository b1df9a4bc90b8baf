from .prototype_pooling import PrototypePooling
from .prototype_pooling_trunk import PrototypePoolingTrunk
from .small_trunk import SmallTrunk

__all__ = ["PrototypePooling", "PrototypePoolingTrunk", "SmallTrunk"]
