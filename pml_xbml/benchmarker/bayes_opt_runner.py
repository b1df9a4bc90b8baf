import contextlib
import importlib
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from ax.service.utils.instantiation import ObjectiveProperties

from .fresh_folder import FreshFolder
from .record_keeper import RecordKeeper
from .runner import PluginRunnerMixin, SingleExperimentRunner

# Names are lent to these modules, which a type checker would not have.
ax_client_module: Any = importlib.import_module("ax.service.ax_client")
best_point: Any = importlib.import_module("ax.service.utils.best_point")


class _AxClient(ax_client_module.AxClient):
    """ax-platform 1's client, created as ax-platform 0.1's was."""

    def create_experiment(self, objective_name: str, minimize: bool, **options: Any) -> None:
        super().create_experiment(
            objectives={objective_name: ObjectiveProperties(minimize=minimize)}, **options
        )


def _get_best_raw_objective_point(experiment: Any) -> tuple[dict[str, Any], dict[str, tuple[float, float]]]:
    """The best trial's parameters, and mean and standard error of each metric."""
    _, parameters, (means, covariances) = best_point.get_best_raw_objective_point_with_trial_index(experiment)
    return parameters, {name: (mean, math.sqrt(covariances[name][name])) for name, mean in means.items()}


# What powerful-benchmarker draws with, in plot_progress alone, which is replaced below.
_PLOTTING_NAMES = {
    "ax.modelbridge.registry": ["Models"],
    "ax.plot.contour": ["interact_contour"],
    "ax.plot.helper": ["get_range_parameters"],
    "ax.plot.render": ["plot_config_to_html"],
    "ax.plot.slice": ["interact_slice"],
    "ax.utils.report.render": ["render_report_elements"],
}


@contextlib.contextmanager
def _names_of_ax_0() -> Iterator[None]:
    """Lends the names that powerful-benchmarker imports from ax-platform 0.1, and takes them back."""
    originals = {name: sys.modules.get(name) for name in ("ax.modelbridge", *_PLOTTING_NAMES)}
    sys.modules["ax.modelbridge"] = ModuleType("ax.modelbridge")
    for module_name, names in _PLOTTING_NAMES.items():
        module = ModuleType(module_name)
        vars(module).update(dict.fromkeys(names))
        sys.modules[module_name] = module
    original_client = ax_client_module.AxClient
    ax_client_module.AxClient = _AxClient
    best_point.get_best_raw_objective_point = _get_best_raw_objective_point
    try:
        yield
    finally:
        del best_point.get_best_raw_objective_point
        ax_client_module.AxClient = original_client
        for name, original in originals.items():
            del sys.modules[name]
            if original is not None:
                sys.modules[name] = original


with _names_of_ax_0():
    from powerful_benchmarker.runners import bayes_opt_runner


class BayesOptRunner(PluginRunnerMixin, bayes_opt_runner.BayesOptRunner):
    """Searches what YAML files mark with ``~BAYESIAN~``, ``~LOG_BAYESIAN~`` or ``~INT_BAYESIAN~``.

    A search that fails before a trial has trained leaves no folder, as the corrected command would go on with
    the configs that are saved in it.

    Args:
        arguments: the command line, without what the runner itself is built with.
        **options: those of powerful-benchmarker's runner.
    """

    _fresh_folder: FreshFolder | None = None

    def __init__(self, arguments: Sequence[str], **options: Any) -> None:
        with self._nothing_left_behind():
            super().__init__(arguments, **options)

    def setup_yaml_reader(self) -> Any:
        """Reads the command line, before anything is made."""
        reader = super().setup_yaml_reader()
        if self._fresh_folder is None:
            self._fresh_folder = FreshFolder(reader.args.experiment_folder)
        return reader

    def run(self) -> None:
        """Searches, or goes on with a search."""
        with self._nothing_left_behind():
            super().run()

    @contextlib.contextmanager
    def _nothing_left_behind(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            fresh = self._fresh_folder
            # A trial that has not trained has removed its own configs.
            if fresh is not None and not any(fresh.folder.glob("*/configs")):
                fresh.remove_what_is_new()
            raise

    def get_single_experiment_runner(self) -> SingleExperimentRunner:
        """The runner of one trial."""
        runner = SingleExperimentRunner(
            self.arguments,
            root_experiment_folder=self.bayes_opt_root_experiment_folder,
            root_config_folder=self.YR.args.place_to_save_configs,
            dataset_root=self.dataset_root,
            pytorch_home=self.pytorch_home,
            global_db_path=self.global_db_path,
            merge_argparse_when_resuming=self.merge_argparse_when_resuming,
        )
        runner.pytorch_getter = self.pytorch_getter
        return runner

    def run_new_experiment(self, parameters: dict[str, Any], sub_experiment_name: str) -> Any:
        """Trains with the values of one trial.

        Args:
            parameters: the values.
            sub_experiment_name: the name of the trial.

        Returns:
            The accuracy and its standard error; 0 for values that training diverges with, so that the search
            goes on without them.
        """
        try:
            return super().run_new_experiment(parameters, sub_experiment_name)
        except ValueError as error:
            if not any(word in str(error) for word in ("NaN", "nan", "finite")):
                raise
            logging.exception(
                "%s diverged with %s, and counts as accuracy 0", sub_experiment_name, parameters
            )
            return 0.0, 0.0

    def update_records(self, record_keeper: Any, ax_client: Any, iteration: int) -> None:
        """Records a trial.

        Args:
            record_keeper: as PML builds it.
            ax_client: as in powerful-benchmarker.
            iteration: the number of the trial.
        """
        as_called = RecordKeeper(
            record_keeper.tensorboard_writer,
            record_keeper.record_writer,
            record_keeper.attributes_to_search_for,
        )
        super().update_records(as_called, ax_client, iteration)

    def plot_progress(self, ax_client: Any) -> None:
        """Draws the accuracy of each trial, in place of the HTML that ax-platform made until version 0.5.

        Args:
            ax_client: as in powerful-benchmarker.
        """
        from matplotlib.figure import Figure

        trials = ax_client.get_trials_data_frame()
        figure = Figure()
        axes = figure.subplots()
        axes.plot(trials["trial_index"], trials[self.eval_primary_metric], "o", label="trial")
        axes.step(
            trials["trial_index"],
            trials[self.eval_primary_metric].cummax(),
            where="post",
            label="best so far",
        )
        axes.set(xlabel="trial", ylabel=self.eval_primary_metric)
        axes.legend()
        figure.savefig(os.path.join(self.bayes_opt_root_experiment_folder, "optimization.png"))
