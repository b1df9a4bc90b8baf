import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .._checks import did_you_mean


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser that takes no abbreviated options and says which option was probably meant.

    An abbreviated option is most often a misspelt one: taken for another, it would start hours of training
    with a setting that nobody asked for.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "allow_abbrev": False})

    @property
    def option_names(self) -> dict[str, str]:
        """The option of each name in the namespace."""
        return {
            action.dest: next(option for option in action.option_strings if option.startswith("--"))
            for action in self._actions
            if action.option_strings
        }

    def refuse_unknown(self, arguments: Sequence[str]) -> None:
        """Ends with an error that names the nearest options, if there are any arguments.

        Args:
            arguments: what :meth:`parse_known_args` left over.
        """
        if arguments:
            unknown = [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]
            names = unknown or list(arguments)
            self.error(f"unknown: {', '.join(names)}{did_you_mean(names[0], self.option_names.values())}")

    def error(self, message: str) -> NoReturn:
        """One line, as all errors of the command line have, in place of the usage of thirty options."""
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help lists all options)\n")

    def name_options(self, message: str) -> str:
        """A message of the library with the options' names in place of its arguments' names."""
        for name, option in sorted(self.option_names.items(), key=lambda item: -len(item[0])):
            # A name of one word may be any word, except at the start of a message and before a value.
            pattern = (
                rf"(?<![-\w]){name}\b" if "_" in name else rf"^{name}(?=:| must\b)|(?<![-\w]){name}(?==)"
            )
            message = re.sub(pattern, option, message)
        return message


def one_of(known: Iterable[str]) -> Callable[[str], str]:
    """A type of argument: one of some names."""
    names = list(known)

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(
                f"must be one of {', '.join(names)}, got {text!r}{did_you_mean(text, names)}"
            )
        return text

    return parse


def name_or_folder(names: Sequence[str]) -> Callable[[str], str]:
    """A type of argument: one of some names, or an existing folder."""

    def parse(text: str) -> str:
        if text not in names and not Path(text).is_dir():
            raise argparse.ArgumentTypeError(
                f"must be one of {', '.join(names)}, or a folder with one folder of images a class, got "
                f"{text!r}, which is no folder{did_you_mean(text, names)}"
            )
        return text

    return parse


def integer(low: int) -> Callable[[str], int]:
    """A type of argument: an integer, at least ``low``."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if number < low:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {low}, got {text!r}")
        return number

    return parse


def positive(text: str) -> float:
    """A type of argument: a positive number."""
    return _number(text, "a positive number", lambda number: 0 < number < float("inf"))


def fraction(text: str) -> float:
    """A type of argument: a number between 0 and 1."""
    return _number(text, "a number between 0 and 1", lambda number: 0 <= number <= 1)


def _number(text: str, what: str, holds: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not holds(number):
        raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}")
    return number
