import operator
from typing import Any

import numpy as np


def check_integer(name: str, value: Any, minimum: int, below: int | None = None) -> int:
    """The value as an int.

    Raises:
        TypeError: if it is no integer; a bool is none.
        ValueError: if it is out of its range.
    """
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        integer = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}") from error
    if integer < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {integer}")
    if below is not None and integer >= below:
        raise ValueError(f"{name} must be below {below}, got {integer}")
    return integer
