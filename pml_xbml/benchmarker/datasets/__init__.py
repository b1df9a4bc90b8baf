"""Data sets as powerful-benchmarker builds them: each in a folder of its own under the root of all."""

from pml_xbml.benchmarker.datasets.cars196 import Cars196
from pml_xbml.benchmarker.datasets.cub import CUB
from pml_xbml.benchmarker.datasets.glyphs import Glyphs
from pml_xbml.benchmarker.datasets.in_shop import InShop
from pml_xbml.benchmarker.datasets.stanford_online_products import StanfordOnlineProducts

__all__ = ["CUB", "Cars196", "Glyphs", "InShop", "StanfordOnlineProducts"]
