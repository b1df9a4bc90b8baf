"""Data sets in the manner of pytorch-metric-learning's own."""

from pml_xbml.datasets.glyphs import Glyphs
from pml_xbml.datasets.in_shop import InShop

__all__ = ["Glyphs", "InShop"]
