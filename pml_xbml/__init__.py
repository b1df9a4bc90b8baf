"""Cross-batch metric learning (XML) for pytorch-metric-learning."""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register

if TYPE_CHECKING:
    from . import datasets, functional, losses, samplers, trunks

__all__ = ["datasets", "functional", "losses", "register", "samplers", "trunks"]


def __getattr__(name: str) -> Any:
    """Imports a subpackage when it is first used: a trunk alone needs nothing but torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
