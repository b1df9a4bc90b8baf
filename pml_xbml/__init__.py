"""Cross-batch metric learning (XML) for pytorch-metric-learning."""

from . import datasets, functional, losses, samplers, trunks
from .registration import register

__all__ = ["datasets", "functional", "losses", "register", "samplers", "trunks"]
