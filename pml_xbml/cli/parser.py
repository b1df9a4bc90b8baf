import argparse
import dataclasses
from collections.abc import Callable
from importlib import metadata
from typing import Any

from .. import comparison
from ..comparison import RunConfig
from . import commands
from .argument_parser import ArgumentParser, fraction, integer, name_or_folder, one_of, positive

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(RunConfig)}


def build_parser() -> ArgumentParser:
    """The parser of all subcommands.

    Options that are settings of a :class:`~pml_xbml.comparison.RunConfig` go by its fields' names; those
    that are not given are absent from the namespace.
    """
    parser = ArgumentParser(
        prog="pml-xbml", description="Cross-batch metric learning (XML) for pytorch-metric-learning."
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"pml-xbml {metadata.version('pml-xbml')}",
        help="show the version and exit",
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
    parser.set_defaults(command=commands.demo, parser=parser)
    parser.add_argument(
        "--out",
        default="runs/demo",
        metavar="DIR",
        help="folder for tables, pictures, logs and models (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=integer(1),
        default=5,
        metavar="N",
        help="pairs of runs, a seed each; fewer than 5 give no verdict (default: %(default)s)",
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
    parser.set_defaults(command=commands.compare, parser=parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        type=name_or_folder(comparison.NAMED_DATASETS),
        default="glyphs",
        metavar="NAME|DIR",
        help=f"{', '.join(comparison.NAMED_DATASETS)}, or a folder with one folder of images a class, whose "
        "classes are split into training, validation and test (default: %(default)s)",
    )
    _add_setting(data, "--root", str, "DIR", "the folder of cub, cars196, sop or inshop")
    data.add_argument(
        "--download", action="store_true", help="let PML download cub, cars196 or sop into --root"
    )
    data.add_argument(
        "--train-classes",
        type=integer(2),
        default=argparse.SUPPRESS,
        metavar="N",
        help="classes to train on; validation takes those that training and test leave (default: 64 of "
        "glyphs; of others three quarters of the classes that are not for test)",
    )
    _add_setting(
        data,
        "--image-size",
        integer(1),
        "PIXELS",
        "side of the images (default: 32 for glyphs, 224 for others, or that of the images where they are "
        "smaller)",
    )
    _add_setting(
        data, "--workers", integer(0), "N", "processes that load images, a run", dest="dataloader_num_workers"
    )

    compared = parser.add_argument_group("what is compared")
    compared.add_argument(
        "--loss",
        dest="losses",
        nargs="+",
        type=one_of(comparison.LOSSES),
        default=["contrastive"],
        metavar="NAME",
        help=f"one or more of {', '.join(comparison.LOSSES)} (default: contrastive)",
    )
    compared.add_argument(
        "--cross-batch-weight",
        dest="cross_batch_weights",
        nargs="+",
        type=fraction,
        metavar="LAMBDA",
        help="one or more weights of the cross-batch term, between 0 and 1, each against the same plain "
        f"runs (default: {comparison.DEFAULT_WEIGHT:g})",
    )
    compared.add_argument(
        "--control",
        dest="with_control",
        action="store_true",
        help="add runs whose second term is the same loss on the embeddings themselves, without the "
        "cross-batch fit: they tell whether a gain is that of the fit; of contrastive loss the plain runs do",
    )
    compared.add_argument(
        "--seeds",
        type=integer(1),
        default=5,
        metavar="N",
        help="pairs of runs for each loss and weight; fewer than 5 give no verdict (default: %(default)s)",
    )
    compared.add_argument(
        "--validation-only",
        action="store_true",
        help="leave the test classes alone and report on the validation classes: to choose settings by, such "
        "as the best of several weights",
    )
    compared.add_argument(
        "--num-prototypes",
        type=integer(1),
        metavar="M",
        help="prototypes of the XML runs (default: that of PrototypePoolingTrunk)",
    )

    network = parser.add_argument_group("network and training, the same for plain and XML")
    _add_setting(
        network,
        "--trunk",
        str,
        "NAME",
        "'small', a model of torchvision or, when installed, of timm, or module:function or file.py:function "
        "of your own, which returns the network",
    )
    network.add_argument(
        "--pretrained",
        nargs="?",
        const="DEFAULT",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help="pretrained weights: the library's default ones, those of this NAME (torchvision), or a file "
        "with a state dict (default: random weights)",
    )
    _add_setting(
        network,
        "--freeze",
        str,
        "NAME|auto",
        "freeze the trunk up to this module, included, and compute its activations once for all runs; auto: "
        "about the first two thirds of the trunk's cost (default: train all of it)",
    )
    _add_setting(
        network,
        "--copies",
        integer(1),
        "N",
        "augmented versions of each training image that frozen stages are computed for",
    )
    _add_setting(network, "--embedding-size", integer(1), "N", "size of the embeddings")
    _add_setting(network, "--batch-size", integer(1), "N", "images in a batch, both halves together")
    _add_setting(network, "--samples-per-class", integer(1), "N", "images of each class in a batch")
    network.add_argument(
        "--learning-rate",
        type=positive,
        default=argparse.SUPPRESS,
        metavar="RATE",
        help="Adam's, of the trunk without its prototypes (default: "
        f"{RunConfig().trunk_learning_rate:g}; in fine-tuning "
        f"{RunConfig(freeze='auto').trunk_learning_rate:g})",
    )
    _add_setting(network, "--prototypes-learning-rate", positive, "RATE", "Adam's, of the prototypes")
    _add_setting(network, "--embedder-learning-rate", positive, "RATE", "Adam's, of the linear embedder")
    _add_setting(
        network,
        "--schedule",
        one_of(comparison.SCHEDULES),
        "NAME",
        f"of the learning rates, over all iterations: {' or '.join(comparison.SCHEDULES)}",
    )
    _add_setting(
        network,
        "--patience",
        integer(1),
        "N",
        "stop a run after this many validations in a row without a new best; --iterations stays the most "
        "(default: never)",
    )

    parser.add_argument(
        "--out",
        default="runs/compare",
        metavar="DIR",
        help="folder for tables, pictures, logs and models (default: %(default)s)",
    )
    _add_seed_iterations_and_jobs(parser)


def _add_look(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "look",
        help="pictures of what the prototypes of a run respond to",
        description="Draw what the prototypes of a run that was trained with XML respond to.",
    )
    parser.set_defaults(command=commands.look, parser=parser)
    parser.add_argument(
        "run_dir", metavar="RUN_DIR", help="a folder below the 'runs' folder of a demo or comparison"
    )
    parser.add_argument(
        "--images", metavar="DIR", help="a folder of images to look at (default: of the test classes)"
    )


def _add_seed_iterations_and_jobs(parser: ArgumentParser) -> None:
    _add_setting(
        parser,
        "--seed",
        integer(0),
        "S",
        "the first seed, from which the others count up; it makes the table repeat",
    )
    _add_setting(parser, "--iterations", integer(1), "N", "batches that each run trains on")
    parser.add_argument(
        "--iterations-per-epoch",
        type=integer(1),
        default=argparse.SUPPRESS,
        metavar="N",
        help="batches between two validations, of which the best is kept; divides --iterations (default: "
        f"{RunConfig.iterations_per_epoch}, or --iterations if that is less)",
    )
    parser.add_argument(
        "--jobs",
        type=integer(1),
        default=commands.default_jobs(),
        metavar="N",
        help="runs at once, each on one CPU thread (default: on a GPU 1, otherwise the number of cores, up "
        "to 2)",
    )


def _add_setting(
    parser: Any,
    flag: str,
    type_: Callable[[str], object],
    metavar: str,
    explanation: str,
    dest: str | None = None,
) -> None:
    name = dest or flag.removeprefix("--").replace("-", "_")
    default = _DEFAULTS[name]
    if default is not None:
        explanation = f"{explanation} (default: {default})"
    parser.add_argument(
        flag, dest=name, type=type_, default=argparse.SUPPRESS, metavar=metavar, help=explanation
    )
