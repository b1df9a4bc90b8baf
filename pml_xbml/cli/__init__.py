"""The command line: ``pml-xbml demo | compare | look | benchmark``."""

from pml_xbml.cli.main import main

__all__ = ["main"]
