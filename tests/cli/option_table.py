"""The options in the comparison's README: ``python -m tests.cli.option_table compare`` prints a table."""

import argparse
import re
import sys

from pml_xbml.cli.parser import build_parser


def option_table(command: str) -> str:
    """The options of a subcommand as a Markdown table, from its parser."""
    subparsers = next(action for action in build_parser()._actions if isinstance(action.choices, dict))
    rows = ["| option | default | |", "|---|---|---|"]
    for action in subparsers.choices[command]._actions:
        if action.option_strings and action.dest != "help":
            text = str(action.help).replace("%(default)s", str(action.default))
            # argparse adds the default of --x and --no-x by itself before Python 3.13.
            text, _, default = re.sub(r" \(default: (None|==SUPPRESS==)\)$", "", text).rpartition(
                " (default: "
            )
            text, default = (text, default.removesuffix(")")) if text else (default, "")
            if isinstance(action, argparse._StoreTrueAction):
                default = "off"
            option = ", ".join(f"`{name}`" for name in action.option_strings)
            rows.append(f"| {option} | {default} | {text} |".replace("NAME|DIR", "NAME or DIR"))
    return "\n".join(rows)


if __name__ == "__main__":
    print(option_table(sys.argv[1]))
