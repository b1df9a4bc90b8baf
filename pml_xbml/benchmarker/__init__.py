"""powerful-benchmarker 0.9.33 on today's PyTorch and pytorch-metric-learning, with this plugin."""

from .command_line import main

__all__ = ["main"]
