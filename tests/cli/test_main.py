import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from importlib import metadata

import pytest
from PIL import Image

from pml_xbml import benchmarker, cli, comparison
from pml_xbml.cli import commands, main
from pml_xbml.cli.parser import build_parser
from pml_xbml.comparison import METRICS, RunConfig, splits
from pml_xbml.datasets import Glyphs
from pml_xbml.monitoring.figure_writer import FigureWriter

TINY = ["--image-size", "16", "--embedding-size", "8", "--num-prototypes", "4", "--jobs", "1"]
TINY += ["--batch-size", "8", "--samples-per-class", "2"]


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """Twelve classes of three images, in shades of gray."""
    folder = tmp_path_factory.mktemp("images")
    for label in range(12):
        (folder / f"class_{label:02d}").mkdir()
        for index in range(3):
            shade = (20 * label + 7 * index, 128, 40 * index)
            Image.new("RGB", (16, 16), shade).save(folder / f"class_{label:02d}" / f"{index}.png")
    return folder


@pytest.fixture
def settings_of(monkeypatch):
    """What a command line asks the comparison for, without training."""

    class Asked(Exception):
        pass

    def asked(*line):
        given = {}

        def compare(*arguments):
            names = (
                *("settings", "losses", "weights", "num_seeds", "out", "jobs", "download", "split"),
                "control",
            )
            given.update(zip(names, arguments, strict=True))
            raise Asked

        monkeypatch.setattr(commands.comparison, "compare", compare)
        with pytest.raises(Asked):
            main(line)
        return given

    return asked


class FewGlyphs(Glyphs):
    """The first 70 characters of each split."""

    def generate_split(self):
        super().generate_split()
        kept = [label for label in self.labels if label < self.labels[0] + 70]
        self.labels, self.images = kept, self.images[: len(kept)]


@pytest.mark.slow
def test_demo_shows_the_table_and_where_everything_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(splits.datasets, "Glyphs", FewGlyphs)
    monkeypatch.setattr(splits, "_load_small_glyphs", splits._load_small_glyphs.__wrapped__)
    out = tmp_path / "demo"
    line = ["demo", "--out", str(out), "--seeds", "1", "--iterations", "3", "--jobs", "1"]
    assert main(line) == 0
    printed = capsys.readouterr()
    assert re.search(r" plain +XML +difference ", printed.out)
    for name in METRICS.values():
        assert f"\n{name} " in printed.out
    assert "cannot be told from noise with 1 seed" in printed.out
    assert f"tensorboard --logdir {out / 'runs'}" in printed.out
    for path in ("results.csv", "differences.png", "learning_curves.png"):
        assert f"{out / path}\n" in printed.out
        assert (out / path).is_file()
    assert "6/6" in printed.err
    # The same command again reads what is there, and prints the same table.
    assert main(line) == 0
    table = printed.out.split("\n\n")[1]
    assert table in capsys.readouterr().out


def test_demo_is_the_smallest_comparison(settings_of):
    asked = settings_of("demo")
    assert asked["settings"] == RunConfig()
    assert (asked["losses"], asked["num_seeds"], asked["out"]) == (["contrastive"], 5, "runs/demo")
    assert settings_of("demo", "--seed", "5")["settings"] == RunConfig(seed=5)
    assert settings_of("demo", "--iterations", "30")["settings"] == RunConfig(
        iterations=30, iterations_per_epoch=30
    )


@pytest.mark.slow
def test_compare_on_a_folder(image_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(FigureWriter, "write", lambda *args: None)  # the demo draws pictures enough
    line = [
        "compare",
        "--dataset",
        str(image_folder),
        "--seeds",
        "1",
        "--iterations",
        "2",
        "--cross-batch-weight",
        "0.1",
        "0.3",
    ]
    assert main([*line, "--out", str(tmp_path), "--loss", "contrastive", "triplet", *TINY]) == 0
    printed = capsys.readouterr().out
    for loss in ("contrastive", "triplet"):
        for weight in ("0.1", "0.3"):
            assert f"{loss}, weight {weight}: mean of 1 seed(s)" in printed
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + 6


def test_compare_options_become_settings(settings_of):
    line = (
        "compare --dataset cub --root /data --download --train-classes 40 --image-size 64 --workers 3 "
        "--loss triplet proxy_nca --cross-batch-weight 0.1 0.3 --seeds 7 --num-prototypes 32 "
        "--trunk resnet18 --pretrained --embedding-size 16 --batch-size 64 --samples-per-class 2 "
        "--embedder-learning-rate 0.01 --schedule constant --out /out --seed 3 --iterations 500 "
        "--iterations-per-epoch 50 --jobs 4 --validation-only --control --freeze layer3 --copies 3 "
        "--patience 2"
    )
    asked = settings_of(*line.split())
    assert asked.pop("settings") == RunConfig(
        dataset="cub",
        root="/data",
        train_classes=40,
        image_size=64,
        dataloader_num_workers=3,
        pooling_options={"num_prototypes": 32},
        trunk="resnet18",
        pretrained="DEFAULT",
        embedding_size=16,
        batch_size=64,
        samples_per_class=2,
        embedder_learning_rate=0.01,
        schedule="constant",
        freeze="layer3",
        copies=3,
        patience=2,
        seed=3,
        iterations=500,
        iterations_per_epoch=50,
    )
    assert asked == {
        "losses": ["triplet", "proxy_nca"],
        "weights": [0.1, 0.3],
        "num_seeds": 7,
        "out": "/out",
        "jobs": 4,
        "download": True,
        "split": "validation",
        "control": True,
    }


def test_defaults_that_depend_on_other_options(settings_of):
    assert settings_of("compare")["split"] == "test"
    assert settings_of("compare")["weights"] is None
    assert settings_of("compare")["settings"] == RunConfig(train_classes=64)
    assert settings_of("compare", "--dataset", "cub")["settings"].train_classes is None
    assert (
        settings_of("compare", "--pretrained", "a.pth", "--learning-rate", "0.1")["settings"].learning_rate
        == 0.1
    )


@pytest.mark.parametrize("command", ["demo", "compare", "look"])
def test_every_option_is_explained(command, capsys):
    subparsers = next(action for action in build_parser()._actions if isinstance(action.choices, dict))
    for action in subparsers.choices[command]._actions:
        assert action.help, action.dest
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "--" in capsys.readouterr().out


def refused(line, capsys):
    """The one line of text that a command line ends with, which cannot be used."""
    try:
        status = main(line)
    except SystemExit as end:  # argparse's way
        status = end.code
    assert status == 2
    error = capsys.readouterr().err
    assert re.match(r"pml-xbml( \w+)?: error: ", error)
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["compare", "--dataset", "cub"], "--root: give the folder of cub"),
        (["compare", "--cross-batch-weight", "2"], "--cross-batch-weight: must be a number between 0 and 1"),
        (["compare", "--cross-batch-weight", "much"], "must be a number between 0 and 1, got 'much'"),
        (["compare", "--learning-rate", "0"], "--learning-rate: must be a positive number, got '0'"),
        (["compare", "--seeds", "0"], "--seeds: must be an integer of at least 1, got '0'"),
        (["compare", "--seeds", "2.5"], "--seeds: must be an integer of at least 1, got '2.5'"),
        (["compare", "--num-prototypes", "0"], "--num-prototypes: must be an integer of at least 1, got '0'"),
        (["compare", "--jobs", "0"], "--jobs: must be an integer of at least 1, got '0'"),
        (["compare", "--copies", "0"], "--copies: must be an integer of at least 1, got '0'"),
        (["compare", "--patience", "-1"], "--patience: must be an integer of at least 1, got '-1'"),
        (["compare", "--copies", "4"], "--copies must come with freeze, whose"),
        (
            ["compare", "--root", "there"],
            "--root must be left out with --dataset='glyphs', got 'there': it is",
        ),
        (
            ["compare", "--download"],
            "--download must be left out with --dataset='glyphs', got True: it is for cub",
        ),
        (["demo", "--iterations", "230"], "--iterations must be a multiple of --iterations-per-epoch"),
        (["compare", "--trunk", "resnet1800"], "--trunk must be 'small'"),
        (["compare", "--batch-size", "30"], "--batch-size must be a multiple of 2"),
        (["compare", "--schedule", "cosin"], "must be one of cosine, constant, got 'cosin'; did you mean"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_line_and_never_starts(line, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison.comparison, "run_all", lambda *arguments: pytest.fail("it has started"))
    monkeypatch.setattr(comparison.comparison, "check_same_run", lambda *arguments: pytest.fail("it looked"))
    assert message in refused([*line, "--out", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()


OWN_NETWORKS = """
import torch


class Boom(torch.nn.Conv2d):
    def forward(self, images):
        raise RuntimeError("first line\\nsecond line")


def boom():
    return Boom(3, 8, 3)


def maps():
    return torch.nn.Conv2d(3, 8, 3)


def vectors():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(8))


def wants(channels):
    return maps()
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            ["--trunk", "{folder}/networks.py:wants"],
            "--trunk must name a function .*networks.py:wants', which",
        ),
        (["--trunk", "{folder}/nothing.py:maps"], "--trunk must name a function .*nothing.py:maps': FileNot"),
        (["--trunk", "{folder}/networks.py:boom"], "got '.*networks.py:boom': .*first line second line"),
        (
            ["--pretrained", "{folder}/networks.py"],
            "--pretrained must be a file with a state dict, got '.*networks",
        ),
        (
            ["--trunk", "resnet18", "--pretrained", "V9"],
            "--pretrained must be a file, 'DEFAULT' or .*, got 'V9'",
        ),
        (["--freeze", "layer9"], "--freeze must name a module .*, got 'layer9'"),
        (["--trunk", "{folder}/networks.py:maps", "--freeze", "auto"], "--freeze='auto' must find"),
        (["--num-prototypes", "100000"], "--num-prototypes must be at most .*, got 100000"),
        (["--batch-size", "48"], r"--batch-size must be at most --samples-per-class \* training classes"),
        (["--root", "there"], "--root must be left out with --dataset='.*', got 'there': it is for cub"),
        (
            ["--trunk", "{folder}/networks.py:vectors"],
            "--trunk must be .*what a function of yours returns, as",
        ),
        (["--image-size", "1"], "--trunk must train on images of 1 pixels, got 'small', .*--image-size=1"),
    ],
)
def test_what_a_trial_finds_is_told_in_a_line_and_leaves_nothing_behind(
    line, message, image_folder, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(comparison.comparison, "run_all", lambda *arguments: pytest.fail("it has started"))
    (tmp_path / "networks.py").write_text(OWN_NETWORKS)
    line = [word.format(folder=tmp_path) for word in line]
    out = tmp_path / "out"
    error = refused(["compare", "--dataset", str(image_folder), *TINY, *line, "--out", str(out)], capsys)
    assert re.search(message, error)
    assert not out.exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--los", "triplet"], "unknown: --los; did you mean --loss?"),
        (["--iteration=5"], "unknown: --iteration; did you mean --iterations?"),
        (["--weights"], "unknown: --weights"),
        (["glyphs"], "unknown: glyphs"),
        (
            ["--loss", "tripletts"],
            "must be one of contrastive, triplet, .* got 'tripletts'; did you mean triplet",
        ),
        (
            ["--dataset", "glyph"],
            "must be one of glyphs, cub, cars196, sop, inshop, or a folder .* mean glyphs?",
        ),
        (["--dataset", "/nowhere"], "got '/nowhere', which is no folder"),
    ],
)
def test_misspelt_options_and_names_get_the_nearest(line, message, capsys):
    assert re.search(message.replace("?", r"\?"), refused(["compare", *line], capsys))


def test_options_are_not_abbreviated(capsys):
    assert "unknown: --see; did you mean --seed?" in refused(["demo", "--see", "3"], capsys)
    assert "unknown: --vers" in refused(["demo", "--vers"], capsys)


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"pml-xbml {metadata.version('pml-xbml')}\n"


def test_other_settings_in_the_folder_are_told_by_their_options(image_folder, tmp_path, capsys):
    line = ["compare", "--dataset", str(image_folder), "--out", str(tmp_path), "--seeds", "1", *TINY]
    folder = tmp_path / "runs" / "contrastive_plain_seed-0"
    folder.mkdir(parents=True)
    recorded = RunConfig(dataset=str(image_folder), embedding_size=99)
    (folder / "run.json").write_text(recorded.to_json())
    error = refused([*line, "--iterations", "100"], capsys)
    assert "--embedding-size=99 (now 8)" in error
    assert "--iterations=400 (now 100)" in error


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert f"'{tmp_path / 'file'}'" in capsys.readouterr().err


def test_look_hands_over(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(comparison, "look", lambda *args, **kwargs: calls.append((args, kwargs)) or ["a.png"])
    assert main(["look", "some/run", "--images", "some/images"]) == 0
    assert calls == [(("some/run",), {"images": "some/images"})]
    assert capsys.readouterr().out == "a.png\n"


def test_benchmark_hands_over_the_rest_of_the_line_unread(monkeypatch):
    lines = []
    monkeypatch.setattr(benchmarker, "main", lambda argv: lines.append(argv) or 3)
    assert main(["benchmark", "--help", "--experiment_name", "x", "--seed", "1"]) == 3
    assert lines == [["--help", "--experiment_name", "x", "--seed", "1"]]


def test_ctrl_c_in_a_benchmark_tells_how_to_go_on(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmarker, "main", interrupted)
    assert main(["benchmark", "--experiment_name", "x"]) == 130
    assert "--resume_training latest goes on" in capsys.readouterr().err


def run_in_a_session_of_its_own(line):
    os.setsid()
    # Started in the background of a shell, pytest ignores Ctrl-C, and its children with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    raise SystemExit(main(line))


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_keeps_what_was_recorded(image_folder, tmp_path, jobs):
    line = ["compare", "--dataset", str(image_folder), "--out", str(tmp_path), *TINY, "--jobs", jobs]
    endless = [*line, "--seeds", "1", "--iterations", "100000", "--iterations-per-epoch", "4"]
    process = multiprocessing.get_context("fork").Process(target=run_in_a_session_of_its_own, args=(endless,))
    process.start()
    first_run = tmp_path / "runs" / "contrastive_plain_seed-0"
    deadline = time.monotonic() + 60
    while not list(first_run.glob("models/trunk_best*.pth")):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert (tmp_path / "results.csv").is_file()
    assert (first_run / "records" / "loss_histories.csv").is_file()


@pytest.mark.slow
def test_module_can_be_run():
    done = subprocess.run(
        [sys.executable, "-m", "pml_xbml.cli", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("demo", "compare", "look", "benchmark"):
        assert re.search(rf"^ +{command}\b", done.stdout, re.MULTILINE)
    assert cli.main is main
