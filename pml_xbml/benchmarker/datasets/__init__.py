"""Data sets as powerful-benchmarker builds them: each in a folder of its own under the root of all."""

from .cars196 import Cars196
from .cub import CUB
from .glyphs import Glyphs
from .in_shop import InShop
from .stanford_online_products import StanfordOnlineProducts

__all__ = ["CUB", "Cars196", "Glyphs", "InShop", "StanfordOnlineProducts"]
