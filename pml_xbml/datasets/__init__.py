"""Data sets in the manner of pytorch-metric-learning's own."""

from pml_xbml.datasets.glyphs import Glyphs

__all__ = ["Glyphs"]
