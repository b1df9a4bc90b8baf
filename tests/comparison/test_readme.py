"""The page beside the comparison says what the code does."""

import re
import subprocess
from pathlib import Path

import pytest

from pml_xbml import comparison
from pml_xbml.cli.parser import build_parser
from tests.cli.option_table import option_table

README = (Path(comparison.__file__).parent / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("command", ["compare", "demo"])
def test_tables_of_options_are_the_parsers(command):
    """Where they differ, ``python -m tests.cli.option_table COMMAND`` prints the table to paste."""
    assert f"## Options of `{command}`\n\n{option_table(command)}\n" in README


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_python_blocks_run(code):
    exec(code, {})


def test_command_lines_are_parsed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path/to/my/images").mkdir(parents=True)
    (tmp_path / "grocery").mkdir()
    lines = [code for _, code in BLOCKS if code.startswith("pml-xbml")]
    parsed = [build_parser().parse_args(line.split()[1:]) for line in lines]
    assert [
        (options.freeze, getattr(options, "patience", None), options.with_control) for options in parsed
    ] == [
        ("auto", 4, True),
        ("auto", None, True),
    ]


def test_grocery_photographs_are_laid_out_as_a_folder_a_class(tmp_path):
    names = ["train/Banana/Banana_002.jpg", "test/Fruit/Apple/Royal-Gala/Royal-Gala_001.jpg"]
    for name in names:
        path = tmp_path / "dataset" / name
        path.parent.mkdir(parents=True)
        path.touch()
    (tmp_path / "dataset" / "val").mkdir()
    [command] = [code for _, code in BLOCKS if code.startswith("find")]
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("grocery/*/*"))
    assert files == ["grocery/Banana/Banana_002.jpg", "grocery/Royal-Gala/Royal-Gala_001.jpg"]
