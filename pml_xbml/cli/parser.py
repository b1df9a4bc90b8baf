import argparse
import dataclasses
from typing import Any

from .. import comparison
from ..comparison import Run
from . import commands

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Run)}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands.

    Options that are settings of a :class:`~pml_xbml.comparison.Run` go by its fields' names; those that are
    not given are absent from the namespace.
    """
    parser = argparse.ArgumentParser(
        prog="pml-xbml", description="Cross-batch metric learning (XML) for pytorch-metric-learning."
    )
    subparsers = parser.add_subparsers(required=True, metavar="command")
    _add_demo(subparsers)
    _add_compare(subparsers)
    _add_look(subparsers)
    # Listed here for --help; `main` hands its line over unread.
    subparsers.add_parser("benchmark", help="powerful-benchmarker with this plugin; takes its options")
    return parser


def _add_demo(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="plain training against XML on characters never seen, in a few minutes on a CPU",
        description="Train a small network with the plain contrastive loss and with XML, on the same batches "
        "of 64 characters, and compare how well each finds images of characters that it has never seen.",
    )
    parser.set_defaults(command=commands.demo)
    parser.add_argument(
        "--out",
        default="runs/demo",
        metavar="DIR",
        help="folder for logs, models and pictures (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds", type=int, default=2, metavar="N", help="pairs of runs, a seed each (default: %(default)s)"
    )
    _add_seed_iterations_and_jobs(parser)


def _add_compare(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "compare",
        help="does XML help, on my data, by how much, and is that luck?",
        description="Train with and without XML from the same weights on the same batches, pair by pair, and "
        "tell by how much the two differ on classes never seen, and whether that can be told from noise. A "
        "comparison that was stopped goes on where it was when the same command is given again.",
    )
    parser.set_defaults(command=commands.compare)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        default="glyphs",
        metavar="NAME|PATH",
        help=f"{', '.join(comparison.NAMED_DATASETS)}, or a folder with one folder of images a class, whose "
        "classes are split into training, validation and test (default: %(default)s)",
    )
    _add_setting(data, "--root", str, "DIR", "the folder of cub, cars196, sop or inshop")
    data.add_argument(
        "--download", action="store_true", help="let PML download cub, cars196 or sop into --root"
    )
    data.add_argument(
        "--train-classes",
        type=int,
        default=argparse.SUPPRESS,
        metavar="N",
        help="classes to train on; validation takes those that training and test leave (default: 64 of "
        "glyphs; of others three quarters of the classes that are not for test)",
    )
    _add_setting(
        data, "--image-size", int, "PIXELS", "side of the images (default: 32 for glyphs, 224 for others)"
    )
    _add_setting(
        data, "--workers", int, "N", "processes that load images, a run", dest="dataloader_num_workers"
    )

    compared = parser.add_argument_group("what is compared")
    compared.add_argument(
        "--loss",
        dest="losses",
        nargs="+",
        default=["contrastive"],
        choices=list(comparison.LOSSES),
        metavar="NAME",
        help=f"one or more of {', '.join(comparison.LOSSES)} (default: contrastive)",
    )
    compared.add_argument(
        "--weight",
        dest="cross_batch_weights",
        nargs="+",
        type=float,
        metavar="LAMBDA",
        help="one or more weights of the cross-batch term, between 0 and 1, each against the same plain "
        f"runs (default: {_weight_of_each_loss()}; with --weights 0.1)",
    )
    compared.add_argument(
        "--center-histograms",
        action=argparse.BooleanOptionalAction,
        help="whether the loss centres the histograms before the fit (default: "
        f"{_of_each_loss('center_histograms')}; with --weights no)",
    )
    compared.add_argument(
        "--expressed-loss",
        choices=[commands.SAME_LOSS, *_without_parameters()],
        help="what is applied to expressed embeddings: the loss itself, or another one (default: "
        f"{_of_each_loss('expressed_loss')})",
    )
    compared.add_argument(
        "--seeds",
        type=int,
        default=5,
        metavar="N",
        help="pairs of runs for each loss and weight; fewer than 5 tell nothing (default: %(default)s)",
    )
    compared.add_argument(
        "--validation-only",
        action="store_true",
        help="leave the test classes alone and report on the validation classes: to choose settings by, such "
        "as the best of several weights",
    )
    compared.add_argument(
        "--num-prototypes",
        type=int,
        metavar="M",
        help="prototypes of the XML runs (default: that of PrototypePoolingTrunk)",
    )

    network = parser.add_argument_group("network and training, the same for plain and XML")
    _add_setting(
        network, "--trunk", str, "NAME", "'small', or a model of torchvision or, when installed, of timm"
    )
    network.add_argument(
        "--weights",
        nargs="?",
        const="DEFAULT",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help="pretrained weights: the library's default ones, those of this NAME (torchvision), or a file "
        "with a state dict (default: random weights)",
    )
    _add_setting(network, "--embedding-size", int, "N", "size of the embeddings")
    _add_setting(network, "--batch-size", int, "N", "images in a batch, both halves together")
    _add_setting(network, "--samples-per-class", int, "N", "images of each class in a batch")
    network.add_argument(
        "--learning-rate",
        type=float,
        default=argparse.SUPPRESS,
        metavar="RATE",
        help=f"Adam's, of the trunk without its prototypes (default: {Run.learning_rate:g}; with --weights "
        f"{commands.PRETRAINED_LEARNING_RATE:g})",
    )
    _add_setting(network, "--prototypes-learning-rate", float, "RATE", "Adam's, of the prototypes")
    _add_setting(network, "--embedder-learning-rate", float, "RATE", "Adam's, of the linear embedder")
    network.add_argument(
        "--schedule",
        choices=comparison.SCHEDULES,
        default=Run.schedule,
        help="of the learning rates, over all iterations (default: %(default)s)",
    )

    parser.add_argument(
        "--out",
        default="runs/compare",
        metavar="DIR",
        help="folder for results.csv, pictures, logs and models (default: %(default)s)",
    )
    _add_seed_iterations_and_jobs(parser)


def _weight_of_each_loss() -> str:
    return ", ".join(f"{loss} {table.cross_batch_weight}" for loss, table in comparison.LOSSES.items())


def _of_each_loss(option: str) -> str:
    having = [loss for loss, table in comparison.LOSSES.items() if option in table.cross_batch_options]
    return f"as the table of losses has it, for {', '.join(having)}" if having else "no"


def _without_parameters() -> list[str]:
    return [loss for loss, table in comparison.LOSSES.items() if table.learning_rate is None]


def _add_look(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "look",
        help="pictures of what the prototypes of a run respond to",
        description="Draw what the prototypes of a run that was trained with XML respond to.",
    )
    parser.set_defaults(command=commands.look)
    parser.add_argument(
        "run_dir", metavar="RUN_DIR", help="a folder below the 'runs' folder of a demo or comparison"
    )
    parser.add_argument(
        "--images", metavar="DIR", help="a folder of images to look at (default: of the test classes)"
    )


def _add_seed_iterations_and_jobs(parser: argparse.ArgumentParser) -> None:
    _add_setting(
        parser,
        "--seed",
        int,
        "S",
        "the first seed, from which the others count up; it makes the table repeat",
    )
    _add_setting(parser, "--iterations", int, "N", "batches that each run trains on")
    parser.add_argument(
        "--iterations-per-epoch",
        type=int,
        default=argparse.SUPPRESS,
        metavar="N",
        help="batches between two validations, of which the best is kept; divides --iterations (default: "
        f"{Run.iterations_per_epoch}, or --iterations if that is less)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=commands.default_jobs(),
        metavar="N",
        help="runs at once, each on one CPU thread (default: %(default)s; on a GPU 1, otherwise the number "
        "of cores, up to 2)",
    )


def _add_setting(
    parser: Any, flag: str, type_: type, metavar: str, explanation: str, dest: str | None = None
) -> None:
    name = dest or flag.removeprefix("--").replace("-", "_")
    default = _DEFAULTS[name]
    if default is not None:
        explanation = f"{explanation} (default: {default})"
    parser.add_argument(
        flag, dest=name, type=type_, default=argparse.SUPPRESS, metavar=metavar, help=explanation
    )
