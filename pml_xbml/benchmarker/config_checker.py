import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from pytorch_metric_learning.trainers import BaseTrainer

from .._checks import did_you_mean
from ..trunks import PrototypePoolingTrunk, prototype_pooling_trunk
from .class_getter import argument_names

# Classes that the configs name one of each of.
_KINDS_OF_CLASSES = (
    "dataset",
    "split_manager",
    "sampler",
    "trainer",
    "tester",
    "hook_container",
    "aggregator",
    "ensemble",
)

# Those that the configs name several of, each under a name of its own.
_KINDS_OF_GROUPS = {"models": "model", "loss_funcs": "loss", "mining_funcs": "miner"}

# What may stand beside the class of an optimizer.
_OPTIONS_OF_OPTIMIZERS = (
    "scheduler_by_epoch",
    "scheduler_by_iteration",
    "scheduler_by_plateau",
    "clip_grad_norm",
    "prototypes_lr",
)

# What a class nested in another's arguments is, by the argument's name.
_KINDS_OF_NESTED_CLASSES = {
    "accuracy_calculator": "accuracy_calculator",
    "distance": "distance",
    "embedding_regularizer": "regularizer",
    "loss": "loss",
    "expressed_loss": "loss",
    "helper_split_manager": "split_manager",
    "miner": "miner",
    "reducer": "reducer",
    "trunk": "model",
    "visualizer": "visualizer",
    "weight_init_func": "weight_init_func",
    "weight_regularizer": "regularizer",
}

# What powerful-benchmarker asks for by these names.
_FACTORIES = (
    "model",
    "loss",
    "miner",
    "sampler",
    "optimizer",
    "tester",
    "trainer",
    "transform",
    "split_manager",
    "record_keeper",
    "hook",
    "aggregator",
    "ensemble",
)
_TRANSFORMS = ("train", "eval", "augmentation.*")

# The smallest value, and whether null will do.
_INTEGERS = {"num_epochs_train": (1, False), "save_interval": (1, False), "patience": (0, True)}
_INTEGERS_OF_THE_TRAINER = {
    "batch_size": (1, False),
    "iterations_per_epoch": (1, True),
    "dataloader_num_workers": (0, False),
}
_SWITCHES = (
    "check_untrained_accuracy",
    "skip_eval_if_already_done",
    "skip_ensemble_eval_if_already_done",
    "log_data_to_tensorboard",
    "save_figures_on_tensorboard",
    "save_lists_in_db",
    "override_required_compatible_factories",
)
_METRIC_PREFIX = "calculate_"
# Names that a trainer of one's own may have made up are only refused where they are nearly another.
_SIMILARITY_OF_MISSPELT_NAMES = 0.8


class ConfigChecker:
    """Looks for misspelt names and unusable values in the merged configs, before anything is made.

    Whatever is wrong is a ``ValueError`` that says where it stands, what would do, and the nearest name.

    Args:
        args: the merged configs.
        getter: finds the classes.
    """

    def __init__(self, args: Any, getter: Any) -> None:
        self.args = args
        self.getter = getter

    def check(self) -> None:
        """Checks all but the names of splits."""
        self._check_values()
        for group in ("factories", "optimizers", "transforms", *_KINDS_OF_GROUPS):
            _check_dictionary(group, getattr(self.args, group), "{name: {Class: {argument: value}}}")
        for kind in _KINDS_OF_CLASSES:
            self._check_class(kind, getattr(self.args, kind))
        _check_names("keys of factories", self.args.factories, _FACTORIES)
        _check_names("keys of transforms", self.args.transforms, _TRANSFORMS)
        self._check_integers_of_the_trainer()
        self._check_names_of_the_trainer()
        for group, kind in _KINDS_OF_GROUPS.items():
            for specs in getattr(self.args, group).values():
                self._check_class(kind, specs)
        for name, transforms in self.args.transforms.items():
            _check_dictionary(f"{name} of transforms", transforms, "{Class: {argument: value}}")
            for transform, arguments in transforms.items():
                self._check_class("transform", {transform: arguments})
        self._check_optimizers()
        self._check_metrics()

    def check_splits(self, split_names: Collection[str], is_training: bool) -> None:
        """Checks the names of splits.

        Args:
            split_names: those that the split manager makes.
            is_training: whether the run trains, and needs the accuracies that the best model is chosen by.
        """
        splits_to_eval = self.args.splits_to_eval
        if not isinstance(splits_to_eval, list):
            raise ValueError(f"splits_to_eval must be a list such as [val], got {splits_to_eval!r}")
        _check_names("splits_to_eval", splits_to_eval, split_names)
        for kind, argument in (
            ("hook_container", "validation_split_name"),
            ("aggregator", "split_to_aggregate"),
        ):
            _, arguments = self._arguments(kind)
            if argument not in arguments:
                continue
            _check_names(argument, [arguments[argument]], split_names)
            if is_training and arguments[argument] not in splits_to_eval:
                raise ValueError(
                    f"splits_to_eval must hold {arguments[argument]!r} in training, the {argument} of the "
                    f"{kind}, got {splits_to_eval!r}"
                )

    def _check_values(self) -> None:
        for name, (smallest, or_null) in _INTEGERS.items():
            value = getattr(self.args, name)
            # To reproduce an experiment that was resumed, each fold has its own.
            for each in value.values() if isinstance(value, dict) else [value]:
                _check_integer(name, each, smallest, or_null)
        for name in _SWITCHES:
            value = getattr(self.args, name)
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False, got {value!r}")

    def _check_integers_of_the_trainer(self) -> None:
        _, arguments = self._arguments("trainer")
        for name, (smallest, or_null) in _INTEGERS_OF_THE_TRAINER.items():
            if name in arguments:
                _check_integer(f"{name} of the trainer", arguments[name], smallest, or_null)

    def _check_names_of_the_trainer(self) -> None:
        """Asks PML's trainer, which knows the names of its models, losses and miners."""
        trainer, arguments = self._arguments("trainer")
        schema = self._schema(trainer)
        known = {group: list(schema[group].keys) if schema else [] for group in _KINDS_OF_GROUPS}
        for group, names in known.items():
            if names:
                _check_names(f"keys of {group}", getattr(self.args, group), names)
        modules = [*self.args.models, *self.args.loss_funcs]
        _check_names("keys of optimizers", self.args.optimizers, [f"{name}_optimizer" for name in modules])
        if schema:
            _check_names(
                "freeze_these of the trainer",
                arguments.get("freeze_these") or [],
                known["models"] + known["loss_funcs"],
            )
        for name in set(arguments.get("loss_weights") or []) - set(self.args.loss_funcs):
            if hint := did_you_mean(name, self.args.loss_funcs, _SIMILARITY_OF_MISSPELT_NAMES):
                known_losses = ", ".join(self.args.loss_funcs)
                raise ValueError(
                    f"loss_weights of the trainer must be among {known_losses}, got {name!r}{hint}"
                )

    def _schema(self, trainer: Any) -> Any:
        if not (isinstance(trainer, type) and issubclass(trainer, BaseTrainer)):
            return None
        # The schema needs a trainer, and a trainer needs what is not built yet.
        blank: Any = object.__new__(trainer)
        blank.models, blank.loss_names = self.args.models, list(self.args.loss_funcs)
        blank.allowed_lr_scheduler_key_suffixes = {}
        try:
            blank.set_schema()
        except AttributeError:
            # A trainer of one's own whose names depend on its arguments will check them itself.
            return None
        return blank.schema

    def _check_optimizers(self) -> None:
        for optimizer, specs in self.args.optimizers.items():
            _check_dictionary(f"{optimizer} of optimizers", specs, "{Class: {argument: value}}")
            for name, value in specs.items():
                if name.startswith("scheduler_by_"):
                    self._check_class("lr_scheduler", value)
                elif isinstance(value, dict):
                    self._check_class("optimizer", {name: value})
                elif name not in _OPTIONS_OF_OPTIMIZERS:
                    hint = did_you_mean(name, _OPTIONS_OF_OPTIMIZERS)
                    raise ValueError(f"optimizers: {optimizer} has no option {name!r}{hint}")

    def _check_metrics(self) -> None:
        _, tester_arguments = self._arguments("tester")
        specs = tester_arguments.get("accuracy_calculator")
        _check_dictionary("accuracy_calculator of the tester", specs, "{Class: {argument: value}}")
        calculator, arguments = self.getter.get(
            "accuracy_calculator", yaml_dict=specs, return_uninitialized=True
        )
        metrics = [
            name.removeprefix(_METRIC_PREFIX) for name in dir(calculator) if name.startswith(_METRIC_PREFIX)
        ]
        for argument in ("include", "exclude"):
            given = arguments.get(argument) or []
            _check_names(f"{argument} of the accuracy_calculator", given, metrics)
        included = arguments.get("include") or metrics
        excluded = arguments.get("exclude") or []
        _, hook_arguments = self._arguments("hook_container")
        if "primary_metric" in hook_arguments:
            _check_names(
                "primary_metric of the hook_container",
                [hook_arguments["primary_metric"]],
                [metric for metric in included if metric not in excluded],
            )

    def _arguments(self, kind: str) -> tuple[Any, dict[str, Any]]:
        found, arguments = self.getter.get(
            kind, yaml_dict=getattr(self.args, kind), return_uninitialized=True
        )
        return found, arguments

    def _check_class(self, kind: str, specs: dict[str, Any]) -> None:
        if not specs:
            return
        found, arguments = self.getter.get(kind, yaml_dict=specs, return_uninitialized=True)
        known = _argument_names(found)
        for name, nested in arguments.items():
            # TesterFactory has its own words on PML's former "reference_set".
            if known is not None and name not in known and name != "reference_set":
                # "weight" has half of its letters in common with "cross_batch_weight".
                hint = did_you_mean(name, known, or_part_of=True)
                raise ValueError(f"{kind}: {found.__name__} has no argument {name!r}{hint}")
            if name in _KINDS_OF_NESTED_CLASSES and isinstance(nested, dict):
                self._check_class(_KINDS_OF_NESTED_CLASSES[name], nested)
            elif name == "losses":
                _check_dictionary(f"losses of {found.__name__}", nested, "{Class: {argument: value}}")
                for loss, loss_arguments in nested.items():
                    self._check_class("loss", {loss: loss_arguments})


def _argument_names(function: Callable[..., Any]) -> Collection[str] | None:
    if function is PrototypePoolingTrunk:
        return prototype_pooling_trunk.names_of_arguments()
    return argument_names(function)


def _check_integer(what: str, value: Any, smallest: int, or_null: bool) -> None:
    is_integer = isinstance(value, int) and not isinstance(value, bool) and value >= smallest
    if not is_integer and not (or_null and value is None):
        wanted = f"an integer from {smallest} on" + (" or null" if or_null else "")
        raise ValueError(f"{what} must be {wanted}, got {_as_given(value)}")


def _check_dictionary(what: str, value: Any, form: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be {form}, got {_as_given(value)}")


def _check_names(what: str, names: Iterable[Any], known: Collection[str]) -> None:
    """Raises a ValueError on a name that is none of those known, which may be regular expressions."""
    for name in names:
        if not any(re.fullmatch(each, str(name)) for each in known):
            hint = did_you_mean(str(name), known)
            raise ValueError(f"{what} must be among {', '.join(known)}, got {name!r}{hint}")


def _as_given(value: Any) -> str:
    return "no value" if value is True else repr(value)
