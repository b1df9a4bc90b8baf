"""Checks of arguments that several classes take. Errors have one form: "X must be …, got …"."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Collection, Iterable
from typing import Any


def check_number(name: str, value: Any) -> None:
    """Raises a TypeError unless the value is a real number; numbers of NumPy are, a bool is not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_positive_integer(name: str, value: Any) -> None:
    """Raises a TypeError unless the value is an integer, and a ValueError unless it is at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises a ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_options(names: Iterable[str], class_name: str, known: Collection[str]) -> None:
    """Raises a TypeError with the nearest name on a keyword argument that a class does not know."""
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known, or_part_of=True)
            raise TypeError(f"arguments of {class_name} must be among {', '.join(known)}, got {name}{hint}")


def did_you_mean(name: str, known: Iterable[str], similarity: float = 0.6, or_part_of: bool = False) -> str:
    """The end of a message about an unknown name: the known name that is nearest, or nothing.

    Args:
        name: unknown.
        known: names.
        similarity: of the nearest name at least, from 0 to 1.
        or_part_of: whether else a name counts that has all words of the unknown one, as "cross_batch_weight"
            has of "weight", however much there is besides.
    """
    names = list(known)
    longer = [other for other in names if or_part_of and f"_{name}_" in f"_{other}_"]
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=similarity)
    nearest = nearest or difflib.get_close_matches(name, longer, n=1, cutoff=0)
    return f"; did you mean {nearest[0]}?" if nearest else ""
