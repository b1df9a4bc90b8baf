"""The pages: their Python blocks run, their links lead somewhere, their commands parse."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import torchvision
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import samplers as pml_samplers

from pml_xbml.cli.parser import build_parser

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(
        page
        for folder in ("pml_xbml", "benchmarker_configs", "tests")
        for page in (ROOT / folder).rglob("README.md")
    ),
]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
BLOCKS = [
    pytest.param(block, id=f"{name}-{number}")
    for name, text in TEXTS.items()
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
]
COMMANDS = sorted(
    {
        command.replace("path/to/my/images", "images").replace("…", "").strip()
        for text in TEXTS.values()
        for command in re.findall(r"pml-xbml ((?:demo|compare|look)\b[^`#\n]*)", text.replace("\\\n", " "))
    }
)


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def test_the_lines_to_change_run():
    (diff,) = re.findall(r"```diff\n(.*?)```", TEXTS["README.md"], flags=re.DOTALL)
    labels = torch.arange(20).repeat_interleave(4)
    for sign in "-+":
        lines = [line[2:] for line in diff.splitlines() if line.startswith(sign)]
        # Nothing can be downloaded in tests.
        lines = [line.replace('weights="DEFAULT"', "") for line in lines]
        names = {
            "torch": torch, "torchvision": torchvision, "labels": labels, "images": torch.rand(24, 3, 64, 64),
            "losses": pml_losses, "samplers": pml_samplers,
        }  # fmt: skip
        exec("\n".join(lines), names)
        embeddings = names["trunk"](torch.rand(8, 3, 64, 64))
        assert torch.isfinite(names["loss"](embeddings, torch.arange(8) // 2))
        assert set(names["sampler"]) <= set(range(80))


def test_there_are_python_blocks():
    assert BLOCKS


@pytest.mark.parametrize("name", TEXTS)
def test_relative_links_and_pictures_exist(name):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", TEXTS[name])
    missing = [t for t in targets if "://" not in t and not (ROOT / name).parent.joinpath(t).exists()]
    assert not missing


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_the_commands_exist(command):
    subcommand, *words = shlex.split(command)
    options = [word for word in words if word.startswith("--")]
    choices = build_parser()._subparsers._group_actions[0].choices
    assert set(options) <= set(choices[subcommand]._option_string_actions)


def test_there_are_commands():
    assert COMMANDS


def test_the_first_page_is_read_in_five_minutes():
    assert len(TEXTS["README.md"]) <= 9_000
