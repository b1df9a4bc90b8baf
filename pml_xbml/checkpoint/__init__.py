"""What a killed run resumes from: the state of a whole trainer, written to a file whole or not at all."""

from .atomic_file import atomic_file
from .checkpoint import Checkpoint
from .random_state import preserved_random_state

__all__ = ["Checkpoint", "atomic_file", "preserved_random_state"]
