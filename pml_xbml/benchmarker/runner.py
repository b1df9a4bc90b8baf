import functools
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from powerful_benchmarker import api_parsers
from powerful_benchmarker.runners import single_experiment_runner
from powerful_benchmarker.utils import common_functions as benchmarker_c_f

from .._checks import did_you_mean
from ..losses import CrossBatchPrototypeLoss
from ..samplers import DisjointClassPairSampler
from ..trunks import PrototypePoolingTrunk, SmallTrunk
from . import datasets, factories
from .api_parser import PluginAPIParserMixin
from .class_getter import ClassGetter
from .hook_container import HookContainer
from .query_gallery_split_manager import QueryGallerySplitManager

# Options that come before powerful-benchmarker's parser, to name the nearest of them.
_OPTIONS_OF_RUNNERS = (
    "bayes_opt_iters",
    "dataset_root",
    "global_db_path",
    "merge_argparse_when_resuming",
    "pytorch_home",
    "reproductions",
    "root_config_folder",
    "root_experiment_folder",
)
_CONFIG_ROOT = Path(__file__).parents[1] / "benchmarker_configs"
_SIMILARITY_OF_MISSPELT_KEYS = 0.8


class PluginRunnerMixin:
    """Registers the plugin's classes, and those that make powerful-benchmarker run with PML 2.

    For any of powerful-benchmarker's runners. More classes are registered as ever, with ``register``.

    Args:
        arguments: the command line, without what the runner itself is built with.
        **options: those of powerful-benchmarker's runner.
    """

    YR: Any
    config_foldernames_base: str
    pytorch_getter: Any
    root_config_folder: str

    def __init__(self, arguments: Sequence[str], **options: Any) -> None:
        # powerful-benchmarker wants dictionaries and lists as a shell splits them. In quotes, which some
        # shells need, they come in one piece.
        self.arguments = [
            word
            for argument in arguments
            for word in (argument.split() if argument.startswith(("{", "[")) else [argument])
        ]
        super().__init__(**options)

    def init_pytorch_getter(self) -> None:
        """Registers all classes that YAML files can name; the last that was registered goes first."""
        super().init_pytorch_getter()  # type: ignore[misc]
        getter = ClassGetter(use_pretrainedmodels_package=True)
        getter.__dict__.update(self.pytorch_getter.__dict__)
        getter.register("dataset", datasets)
        getter.register("factory", factories)
        getter.register("hook_container", HookContainer)
        getter.register("loss", CrossBatchPrototypeLoss)
        getter.register("model", PrototypePoolingTrunk)
        getter.register("model", SmallTrunk)
        getter.register("sampler", DisjointClassPairSampler)
        getter.register("split_manager", QueryGallerySplitManager)
        for name, api_parser in vars(api_parsers).items():
            if isinstance(api_parser, type):
                getter.register("api_parser", type(name, (PluginAPIParserMixin, api_parser), {}))
        self.pytorch_getter = getter

    def setup_argparser(self) -> Any:
        """powerful-benchmarker's parser, which reads the arguments that the runner was given."""
        parser = super().setup_argparser()  # type: ignore[misc]
        parser.prog = "pml-xbml benchmark"
        parser.parse_known_args = functools.partial(parser.parse_known_args, self.arguments)
        return parser

    def setup_yaml_reader(self) -> Any:
        """Reads the command line.

        Returns:
            The reader of the YAML files that it names.

        Raises:
            FileNotFoundError: if the experiment to go on with, to evaluate or to reproduce is not there.
        """
        reader = super().setup_yaml_reader()  # type: ignore[misc]
        args = reader.args
        for folder in args.config_foldernames:
            setattr(args, folder, benchmarker_c_f.if_str_convert_to_singleton_list(getattr(args, folder)))
        if args.resume_training or args.evaluate or args.evaluate_ensemble:
            _check_experiment(args.place_to_save_configs)
        if args.reproduce_results:
            _check_experiment(os.path.join(args.reproduce_results, "configs"))
        return reader

    def start_experiment(self, args: Any) -> Any:
        """Trains or evaluates.

        Args:
            args: the merged configs.

        Returns:
            As :meth:`~pml_xbml.benchmarker.api_parser.PluginAPIParserMixin.run`.

        Raises:
            ValueError: on a flag that is no option and no key of a YAML file, and on a key that is nearly
                one that is read.
        """
        options = vars(self.setup_argparser().parse_known_args()[0])
        keys = {key for config in args.dict_of_yamls.values() for key in config}
        _check_flags(self.arguments, {*options, *args.config_foldernames, *keys})
        _check_keys(keys)
        return super().start_experiment(args)  # type: ignore[misc]

    def get_root_config_paths(self, args: Any) -> dict[str, list[str]]:
        """The YAML files that the command line names.

        Args:
            args: the command line.

        Returns:
            The paths for each folder of the root of configs.

        Raises:
            FileNotFoundError: if one of them does not exist.
        """
        config_paths: dict[str, list[str]] = super().get_root_config_paths(args)  # type: ignore[misc]
        for folder, paths in config_paths.items():
            for path in paths:
                if not os.path.isfile(path):
                    known = sorted(file.stem for file in Path(self.root_config_folder, folder).glob("*.yaml"))
                    raise FileNotFoundError(
                        f"--{folder}: there is no file {path!r}; there are {', '.join(known) or 'none'}"
                    )
        return config_paths


class SingleExperimentRunner(PluginRunnerMixin, single_experiment_runner.SingleExperimentRunner):
    """Trains, resumes, evaluates or reproduces one experiment."""


def _check_flags(arguments: Sequence[str], known: Collection[str]) -> None:
    for word in arguments:
        name = word.removeprefix("--").partition("~")[0]
        if word.startswith("--") and name not in known:
            options = [f"--{option}" for option in (*known, *_OPTIONS_OF_RUNNERS)]
            hint = did_you_mean(f"--{name}", options) or "; pml-xbml benchmark --help lists them"
            raise ValueError(f"--{name} must be an option or a key of a YAML file{hint}")


def _check_keys(keys: Iterable[str]) -> None:
    """Refuses misspelt keys of YAML files. Keys like no other may be those of an API parser of one's own."""
    read = {
        key.partition("~")[0]
        for path in _CONFIG_ROOT.glob("config_*/*.yaml")
        for key in benchmarker_c_f.load_yaml(path)
    }
    for key in sorted({key.partition("~")[0] for key in keys} - read):
        if hint := did_you_mean(key, read, _SIMILARITY_OF_MISSPELT_KEYS):
            raise ValueError(f"{key!r} in a YAML file is a key that nothing reads{hint}")


def _check_experiment(configs_folder: str) -> None:
    if not os.path.isdir(configs_folder):
        raise FileNotFoundError(f"There is no experiment with saved configs in {configs_folder!r}")
