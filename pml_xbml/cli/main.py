import argparse
import sys
from collections.abc import Callable, Sequence

from .parser import build_parser

#: What argparse itself returns for a command line that it cannot use.
UNUSABLE = 2
#: What shells report of a command that Ctrl-C has ended.
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments after the program's name; None takes them from ``sys.argv``.

    Returns:
        The exit status: 0; 2 for arguments or data that cannot be used; 130 after Ctrl-C; of ``benchmark``,
        powerful-benchmarker's.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["benchmark"]:
        # Past our parser: powerful-benchmarker has options by the hundred, --help among them.
        from .. import benchmarker

        try:
            return benchmarker.main(arguments[1:])
        except (ValueError, OSError) as error:
            print(f"pml-xbml benchmark: error: {_in_one_line(str(error))}", file=sys.stderr)
            return UNUSABLE
        except KeyboardInterrupt:
            print("\nStopped. --resume_training latest goes on after the last saved epoch.", file=sys.stderr)
            return INTERRUPTED
    options, unknown = build_parser().parse_known_args(arguments)
    options.parser.refuse_unknown(unknown)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except (ValueError, OSError) as error:
        message = _in_one_line(options.parser.name_options(str(error)))
        print(f"pml-xbml: error: {message}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print(
            "\nStopped. What was recorded so far is kept; the same command goes on from there.",
            file=sys.stderr,
        )
        return INTERRUPTED


def _in_one_line(message: str) -> str:
    """A message that may repeat one of several lines, such as that of a network of the user's."""
    return " ".join(message.rstrip().split("\n"))
