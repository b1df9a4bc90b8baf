"""Data sets as powerful-benchmarker builds them: each in a folder of its own under the root of all."""

from .glyphs import Glyphs
from .in_shop import InShop
from .pml_datasets import CUB, Cars196, StanfordOnlineProducts

__all__ = ["CUB", "Cars196", "Glyphs", "InShop", "StanfordOnlineProducts"]
