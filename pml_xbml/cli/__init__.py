"""The command line: ``pml-xbml demo | compare | look | benchmark``."""

from .main import main

__all__ = ["main"]
