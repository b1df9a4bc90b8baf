"""Data sets in the manner of pytorch-metric-learning's own."""

from .glyphs import Glyphs
from .in_shop import InShop

__all__ = ["Glyphs", "InShop"]
