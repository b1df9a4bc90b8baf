import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from powerful_benchmarker.utils import common_functions as benchmarker_c_f

from ..checkpoint.random_state import preserved_random_state
from ..trunks import PrototypePoolingTrunk
from .config_checker import ConfigChecker
from .fresh_folder import FreshFolder

# Prototypes are chosen among the local features of so many images.
_NUM_IMAGES_FOR_PROTOTYPES = 256


class _CarriedError(Exception):
    """Carries a ``ValueError`` past the place that would drop its message."""

    def __init__(self, error: ValueError) -> None:
        super().__init__(str(error))
        self.error = error


def _create(kind: str, create: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return create(*args, **kwargs)
    except (AssertionError, TypeError) as error:
        # Classes do not agree on what they raise for an argument that they cannot use.
        raise ValueError(f"{kind}: {str(error) or repr(error)}") from error


class PluginAPIParserMixin:
    """What a run of powerful-benchmarker does differently with this plugin, and with PML 2.

    - All names in the configs are checked before there is a folder, errors keep their words,
      and a folder that is taken is an error. A run that fails before it has trained leaves no folder.
    - Event files lie in the folder of their fold, so that TensorBoard shows the name of the fold.
    - The loss gets the trunk's histograms, the prototypes start from training images.
    - A resumed run draws the random numbers that an unbroken one would have drawn.

    For any of powerful-benchmarker's API parsers.
    """

    args: Any
    device: torch.device
    epoch: int
    experiment_folder: str
    factories: dict[str, Any]
    latest_sub_experiment_epochs: dict[str, int]
    models: dict[str, torch.nn.Module]
    pytorch_getter: Any
    split_manager: Any
    sub_experiment_dirs: dict[str, str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fresh_folder: FreshFolder | None = None
        # powerful-benchmarker's own are patterns for the experiment's and the fold's folder too.
        self.sub_experiment_dirs["tensorboard"] = os.path.join("%s", "%s")

    def run(self) -> Any:
        """Trains or evaluates.

        Returns:
            The primary metric on the validation set, averaged over the training sets, and its standard error
            if there are several; None after an evaluation.

        Raises:
            ValueError: if a name in the configs does not exist, or a value cannot be used.
        """
        self.check_configs()
        try:
            return super().run()  # type: ignore[misc]
        except Exception:
            # The corrected command would find the folder taken.
            if self._fresh_folder is not None:
                self.flush_tensorboard()  # type: ignore[attr-defined]
                self._fresh_folder.remove_what_is_new()
            raise

    def check_configs(self) -> None:
        """Checks the merged configs, before anything is made.

        Raises:
            ValueError: if a name in the configs does not exist, or a value cannot be used.
        """
        checker = ConfigChecker(self.args, self.pytorch_getter)
        checker.check()
        build_split_manager = self.factories["split_manager"].get_split_manager
        split_manager = _create("split_manager", build_split_manager, self.args.split_manager)
        checker.check_splits(split_manager.split_names, self.is_training())  # type: ignore[attr-defined]

    def make_dir(self) -> None:
        """Makes the experiment's folder.

        Raises:
            FileExistsError: if there is an experiment in it.
        """
        fresh_folder = FreshFolder(self.experiment_folder)
        try:
            super().make_dir()  # type: ignore[misc]
        except SystemExit:
            raise FileExistsError(
                f"There is an experiment in {self.experiment_folder!r}. Go on with it with --resume_training "
                "latest, give another --experiment_name, or delete the folder."
            ) from None
        self._fresh_folder = fresh_folder

    def training_assertions(self, trainer: Any) -> None:
        """As in powerful-benchmarker, which trains right after it.

        Args:
            trainer: as in powerful-benchmarker.
        """
        super().training_assertions(trainer)  # type: ignore[misc]
        # From here on there is something to keep.
        self._fresh_folder = None

    def set_factories(self) -> None:
        """Builds the factories, whose errors about what the YAML files say are each a ``ValueError``."""
        super().set_factories()  # type: ignore[misc]
        for kind, factory in self.factories.items():
            factory.create = functools.partial(_create, kind, factory.create)

    def run_train_or_eval(self) -> Any:
        """As in powerful-benchmarker, where every ``ValueError`` loses its message.

        Returns:
            As :meth:`run`.
        """
        try:
            return super().run_train_or_eval()  # type: ignore[misc]
        except _CarriedError as carried:
            raise carried.error from None

    def run_for_each_split_scheme(self) -> None:
        """As in powerful-benchmarker."""
        try:
            super().run_for_each_split_scheme()  # type: ignore[misc]
        except ValueError as error:
            raise _CarriedError(error) from error

    def set_models_optimizers_losses(self) -> None:
        """Builds all that training needs, and chooses the prototypes of a run that begins."""
        super().set_models_optimizers_losses()  # type: ignore[misc]
        if self.is_training():  # type: ignore[attr-defined]
            # The model files may be one step ahead of the checkpoint that training goes on from.
            self.latest_sub_experiment_epochs[self.split_manager.curr_split_scheme_name] = self.epoch - 1
            if self.epoch == 1:
                self._init_prototypes()

    def setup_eval_and_run(self, load_best_model: bool, use_input_embedder: bool) -> None:
        """Evaluates untrained and best models, without a trace in what is drawn afterwards.

        Args:
            load_best_model: as in powerful-benchmarker.
            use_input_embedder: as in powerful-benchmarker.
        """
        with preserved_random_state():
            super().setup_eval_and_run(load_best_model, use_input_embedder)  # type: ignore[misc]

    def eval_ensemble(self) -> None:
        """Evaluates the concatenated embeddings of all training sets' models."""
        if "val" in self.args.splits_to_eval and self.split_manager.num_split_schemes > 1:
            logging.warning(
                "The ensemble is evaluated on the validation classes of the first training set, which its "
                "other models were trained on. For a number to report, give --splits_to_eval [test]."
            )
        super().eval_ensemble()  # type: ignore[misc]

    def get_tester(self, **kwargs: Any) -> Any:
        """Builds the tester.

        Args:
            **kwargs: As in powerful-benchmarker.

        Returns:
            The tester, which knows the splits that each split is compared with.
        """
        tester = super().get_tester(**kwargs)  # type: ignore[misc]
        split_manager, _ = self.pytorch_getter.get(
            "split_manager", yaml_dict=self.args.split_manager, return_uninitialized=True
        )
        references = getattr(split_manager, "reference_splits", {})
        tester.reference_split_names.update({query: list(splits) for query, splits in references.items()})
        return tester

    def default_kwargs_hooks(self) -> dict[str, Any]:
        """What the hook container is told."""
        return {
            **super().default_kwargs_hooks(),  # type: ignore[misc]
            # Where only names of tables are asked for, there is no such folder yet.
            "picture_folder": lambda: getattr(self, "plots_folder", None),
        }

    def default_kwargs_loss_funcs(self) -> dict[str, Any]:
        """What the loss factory is told."""
        return {
            **super().default_kwargs_loss_funcs(),  # type: ignore[misc]
            "embedding_size": lambda: self._embedding_size(),
            "pooling": lambda: self._prototype_trunk(),
        }

    def default_kwargs_sampler(self) -> dict[str, Any]:
        """What the sampler factory is told."""
        return {
            **super().default_kwargs_sampler(),  # type: ignore[misc]
            "batch_size": lambda: benchmarker_c_f.first_val_of_dict(self.args.trainer)["batch_size"],
        }

    def required_compatible_factories(self) -> dict[str, Any]:
        """The factories that a trainer cannot do without, the plugin's rather than powerful-benchmarker's."""
        return {
            kind: self.pytorch_getter.get(
                "factory", class_name=type(factory).__name__, params={"getter": self.pytorch_getter}
            )
            for kind, factory in super().required_compatible_factories().items()  # type: ignore[misc]
        }

    def set_dataparallel(self, models: dict[str, torch.nn.Module]) -> None:
        """Wraps the models, on one device if histograms have to reach the loss.

        Args:
            models: by name; changed in place.
        """
        if torch.cuda.device_count() > 1 and self._prototype_trunk() is not None:
            for name, model in models.items():
                models[name] = torch.nn.DataParallel(model, device_ids=[torch.cuda.current_device()])
        else:
            super().set_dataparallel(models)  # type: ignore[misc]

    def _prototype_trunk(self) -> PrototypePoolingTrunk | None:
        trunk = self.models["trunk"]
        trunk = getattr(trunk, "module", trunk)
        return trunk if isinstance(trunk, PrototypePoolingTrunk) else None

    def _embedding_size(self) -> int | None:
        last_linear = benchmarker_c_f.get_last_linear(self.models["embedder"])
        return getattr(last_linear, "out_features", None)

    def _init_prototypes(self) -> None:
        trunk = self._prototype_trunk()
        if trunk is None:
            return
        dataset = self.split_manager.get_dataset("eval", "train")
        # Evenly spaced, so that all classes have their share.
        indices = np.linspace(0, len(dataset) - 1, min(len(dataset), _NUM_IMAGES_FOR_PROTOTYPES)).astype(int)
        images = [self.split_manager.data_and_label_getter(dataset[int(i)])[0] for i in indices]
        radius = trunk.init_prototypes(torch.stack(images))
        logging.info(
            "Prototypes are local features of %d training images; cover radius %.3f", len(images), radius
        )
