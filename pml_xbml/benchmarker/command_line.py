import argparse
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pml_xbml

from .evaluation_table import evaluation_table

_INSTALLATION = """\
    pip install "pml-xbml[benchmarker]"
    pip install --no-deps powerful-benchmarker==0.9.33 easy-module-attribute-getter==0.9.41
The second line leaves out what powerful-benchmarker pins: pytorch-metric-learning 0.9.92, record-keeper
0.9.29 and faiss-gpu, which cannot be installed together with this plugin."""

_OF_NO_INTEREST = (
    "Importing packages in ",
    "Done importing packages in ",
    "NUMPY_RANDOM = ",
    "Deleted self.",
)


def main(argv: Sequence[str]) -> int:
    """Runs powerful-benchmarker with this plugin.

    Args:
        argv: the command line after ``pml-xbml benchmark``.

    Returns:
        The exit status: 0, or 1 if powerful-benchmarker is not installed.

    Raises:
        Exception: whatever went wrong in the run, as it was raised.
    """
    parser = _parser()
    wants_help = "-h" in argv or "--help" in argv
    try:
        # With gdown 5 or without its dependencies this fails as well.
        import powerful_benchmarker.datasets  # noqa: F401
        from easy_module_attribute_getter import YamlReader  # noqa: F401
    except ImportError as error:
        if wants_help:
            parser.print_help()
        print(
            f"pml-xbml benchmark needs powerful-benchmarker, and it cannot be imported: {error}\n"
            f"Install it with\n{_INSTALLATION}",
            file=sys.stderr,
        )
        return 0 if wants_help else 1
    from .pml_compat import pml_compat

    options, arguments = parser.parse_known_args(argv)
    if options.bayes_opt_iters > 0 and importlib.util.find_spec("ax") is None:
        parser.error("--bayes_opt_iters needs ax-platform: pip install 'ax-platform>=1.1'")
    with pml_compat():
        if wants_help:
            _print_help(parser, options.root_config_folder)
            return 0
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        logging.getLogger().addFilter(_is_of_interest)
        runner = _build_runner(options, arguments)
        result = runner.run()
    if options.bayes_opt_iters == 0:
        print(_summary(runner.YR.args, result))
    return 0


def _is_of_interest(record: logging.LogRecord) -> bool:
    """Not what powerful-benchmarker tells about itself: imports, attributes that it deletes, …."""
    return not record.getMessage().startswith(_OF_NO_INTEREST)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pml-xbml benchmark",
        usage="pml-xbml benchmark --experiment_name NAME [option ...] [config ...]",
        description="Run powerful-benchmarker with this plugin. By itself, --experiment_name NAME\n"
        "trains and validates XML on Glyphs with 4-fold cross validation, in a few minutes on a CPU.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    folders = parser.add_argument_group("what the runner is built with")
    folders.add_argument("--dataset_root", default="datasets", metavar="DIR", help="(default: %(default)s)")
    folders.add_argument(
        "--root_experiment_folder", default="experiments", metavar="DIR", help="(default: %(default)s)"
    )
    folders.add_argument(
        "--root_config_folder",
        default=str(Path(pml_xbml.__file__).with_name("benchmarker_configs")),
        metavar="DIR",
        help="the YAML files (default: those of this plugin)",
    )
    folders.add_argument("--pytorch_home", metavar="DIR", help="where pretrained weights are kept")
    folders.add_argument("--global_db_path", metavar="FILE", help="a SQLite database of all experiments")
    folders.add_argument(
        "--merge_argparse_when_resuming",
        action="store_true",
        help="let the command line change the saved configs of --resume_training and --reproduce_results too",
    )
    search = parser.add_argument_group(
        "Bayesian optimization of what YAML files mark with ~BAYESIAN~, ~LOG_BAYESIAN~ or ~INT_BAYESIAN~"
    )
    search.add_argument(
        "--bayes_opt_iters", type=int, default=0, metavar="N", help="number of trials; needs ax-platform"
    )
    search.add_argument(
        "--reproductions", type=int, default=0, metavar="N", help="how often to train the best trial again"
    )
    return parser


def _build_runner(options: argparse.Namespace, arguments: list[str]) -> Any:
    arguments_of_runner = dict(vars(options))
    search = {name: arguments_of_runner.pop(name) for name in ("bayes_opt_iters", "reproductions")}
    if search["bayes_opt_iters"] > 0:
        from .bayes_opt_runner import BayesOptRunner

        return BayesOptRunner(arguments, **search, **arguments_of_runner)
    from .runner import SingleExperimentRunner

    return SingleExperimentRunner(arguments, **arguments_of_runner)


def _print_help(parser: argparse.ArgumentParser, config_root: str) -> None:
    from .runner import SingleExperimentRunner

    runner = SingleExperimentRunner([], root_config_folder=config_root)
    _, _, own_options = runner.setup_argparser().format_help().partition("options:\n")
    folders = sorted(folder for folder in Path(config_root).glob("config_*") if folder.is_dir())
    files = (f"  --{folder.name} [{', '.join(_names_of_yaml_files(folder))}]" for folder in folders)
    parser.epilog = "\n".join(
        [
            "powerful-benchmarker's own options:",
            own_options.rstrip(),
            "",
            "configs, of which each flag takes one or several; the first lines of each file tell what it is:",
            *files,
            "",
            "Every key of these files is a flag too, such as --num_epochs_train 10",
        ]
    )
    parser.print_help()


def _names_of_yaml_files(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _summary(args: Any, result: Any) -> str:
    folder = args.experiment_folder
    if result is None:
        splits = ", ".join(args.splits_to_eval)
        csv_folder = Path(folder, "meta_logs", "saved_csvs")
        (aggregator,) = args.ensemble if args.evaluate_ensemble else args.aggregator
        return (
            f"{args.experiment_name}, {aggregator}, in percent:\n"
            f"{evaluation_table(csv_folder, args.splits_to_eval, aggregator)}\n"
            f"{args.experiment_name}: evaluated on {splits}; the files are in {csv_folder}"
        )
    (hooks,) = args.hook_container.values()
    if isinstance(result, tuple):
        accuracy = "{:.4f} ± {:.4f} (mean and standard error of the training sets)".format(*result)
    else:
        accuracy = f"{result:.4f}"
    return (
        f"{args.experiment_name}: {hooks['primary_metric']} on validation classes {accuracy}; "
        f"models and logs are in {folder}"
    )
