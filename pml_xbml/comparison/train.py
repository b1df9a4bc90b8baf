"""The one place where the package trains: a run, from its settings to its result, with PML's own parts."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning import testers, trainers
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from ..checkpoint.atomic_file import atomic_file
from ..monitoring import PrototypeHookContainer, get_record_keeper
from ..samplers import DisjointClassPairSampler
from .feature_cache import CACHE_FOLDER
from .log_file import LogFile
from .loss_table import LOSSES
from .models import (
    MakeLoss,
    build_loss,
    build_models,
    build_optimizers,
    build_schedulers,
    cross_batch_loss,
    keep_norms,
    seed_everything,
    splits_of,
    use_frozen_stages,
)
from .result import METRICS, PRIMARY_METRIC, Result, Split
from .run_config import RUN_FILE, RunConfig, check_same_run
from .splits import Splits

RESULT_FILE = "result.json"
LOG_FILE = "training.log"
MODEL_FOLDER = "models"
RECORD_FOLDER = "records"
PICTURE_FOLDER = "pictures"
CHECKPOINT_FILE = "checkpoint.pth"

EVALUATION_BATCH_SIZE = 128


def train(
    config: RunConfig,
    folder: str | Path,
    split: Split = "test",
    make_loss: MakeLoss = cross_batch_loss,
    on_iterations: Callable[[int], object] = lambda count: None,
) -> Result:
    """Trains a run, or goes on with it where it was killed, or reads its result if it is done.

    What PML and its progress bars print goes into the run's ``training.log``. The seeds of ``random``,
    ``numpy.random`` and PyTorch are set, globally.

    Args:
        config: what to train.
        folder: the run's own folder. It gets the settings, the result, record-keeper's and TensorBoard's
            records, and the models.
        split: "test" measures the best epoch on the test classes too; "validation" leaves them alone, as is
            right while settings are chosen.
        make_loss: makes the loss of runs that are not plain; for studies of other formulations.
        on_iterations: is told how many more iterations are done. What it raises ends the run, which can then
            be resumed.

    Returns:
        The result.

    Raises:
        ValueError: if the folder holds a run with other settings, or the run cannot be trained as asked.
    """
    folder = Path(folder)
    check_same_run(config, folder)
    if (folder / RESULT_FILE).exists():
        result = Result.load(folder / RESULT_FILE)
        if result.test is None and split == "test":
            result = _measured_later(result, folder)
        on_iterations(config.iterations)
        return result
    folder.mkdir(parents=True, exist_ok=True)
    with LogFile(folder / LOG_FILE) as log, contextlib.redirect_stderr(log):
        result = _train(config, folder, split, make_loss, on_iterations)
    result.save(folder / RESULT_FILE)
    _remove_checkpoint(folder)
    return result


def _remove_checkpoint(folder: Path) -> None:
    """There is nothing to go on with; test classes that were left alone are measured with the best models."""
    (folder / MODEL_FOLDER / CHECKPOINT_FILE).unlink(missing_ok=True)


def _measured_later(result: Result, folder: Path) -> Result:
    """The result of a finished run with the test classes, which it was told to leave alone."""
    started = time.monotonic()
    config = result.run
    with LogFile(folder / LOG_FILE) as log, contextlib.redirect_stderr(log):
        if config.arm == "untouched":
            _, test = _evaluate_untouched(config, folder, "test")
        else:
            trunk, embedder = build_models(config, c_f.use_cuda_if_available())
            splits = use_frozen_stages(config, trunk, splits_of(config), folder.parent / CACHE_FOLDER)
            record_keeper, _, tester = _build_recorded_tester(config, folder)
            try:
                models = {"trunk": trunk, "embedder": embedder}
                test = _evaluate(tester, splits, models, result.best_epoch, folder)
                record_keeper.save_records()
            finally:
                record_keeper.tensorboard_writer.close()
    measured = dataclasses.replace(result, test=test, seconds=result.seconds + time.monotonic() - started)
    measured.save(folder / RESULT_FILE)
    _remove_checkpoint(folder)
    return measured


class _HookContainer(PrototypeHookContainer):
    """Keeps the best trunk and embedder alone: the checkpoint holds all that the latest ones are part of."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.saveable_trainer_objects = ["models"]

    def save_models(
        self, trainer: Any, model_folder: str, curr_suffix: int | str, prev_suffix: int | str | None = None
    ) -> None:
        if str(curr_suffix).startswith("best"):
            super().save_models(trainer, model_folder, curr_suffix, prev_suffix)


@dataclass
class _Parts:
    """What a run is trained with."""

    trainer: trainers.MetricLossOnly
    tester: testers.GlobalEmbeddingSpaceTester
    hooks: _HookContainer
    splits: Splits[Any]
    record_keeper: Any
    cover_radius: float | None


def _train(
    config: RunConfig,
    folder: Path,
    split: Split,
    make_loss: MakeLoss,
    on_iterations: Callable[[int], object],
) -> Result:
    started = time.monotonic()
    if config.arm == "untouched":
        best_epoch, validation, test = 0, *_evaluate_untouched(config, folder, split)
        history, cover_radius = {metric: [value] for metric, value in validation.items()}, None
    else:
        parts = _build(config, folder, make_loss, on_iterations)
        try:
            history, best_epoch = _fit(config, parts, folder, on_iterations)
            test = None
            if split == "test":
                test = _evaluate(parts.tester, parts.splits, parts.trainer.models, best_epoch, folder)
        except BaseException:
            # Ctrl-C in the middle of a save leaves it half done, and saving again may fail. That must not
            # hide what ended the run; a resumed one goes on from its checkpoint.
            with contextlib.suppress(Exception):
                parts.record_keeper.save_records()
            raise
        else:
            parts.record_keeper.save_records()
        finally:
            parts.record_keeper.tensorboard_writer.close()
        validation = {metric: values[best_epoch - 1] for metric, values in history.items()}
        cover_radius = parts.cover_radius
    return Result(
        run=config,
        best_epoch=best_epoch,
        validation=validation,
        test=test,
        history=history,
        cover_radius=cover_radius,
        seconds=time.monotonic() - started,
    )


def _build(
    config: RunConfig, folder: Path, make_loss: MakeLoss, on_iterations: Callable[[int], object]
) -> _Parts:
    device = c_f.use_cuda_if_available()
    trunk, embedder = build_models(config, device)
    splits = use_frozen_stages(config, trunk, splits_of(config), folder.parent / CACHE_FOLDER)
    loss, cover_radius = build_loss(config, trunk, splits.train, make_loss)
    keep_norms(config, trunk)
    record_keeper, hooks, tester = _build_recorded_tester(config, folder)
    # A run that is resumed after its last epoch asks for its validation history without validating again.
    tester.reference_split_names["val"] = ["val"]

    def end_of_iteration_hook(trainer: trainers.MetricLossOnly) -> None:
        hooks.end_of_iteration_hook(trainer)
        on_iterations(1)

    models = {"trunk": trunk, "embedder": embedder}
    loss = loss.to(device)
    build_miner = LOSSES[config.loss].build_miner
    trainer = trainers.MetricLossOnly(
        models=models,
        optimizers=build_optimizers(config, models, loss),
        batch_size=config.batch_size,
        loss_funcs={"metric_loss": loss},
        mining_funcs={} if build_miner is None else {"tuple_miner": build_miner()},
        dataset=splits.train,
        iterations_per_epoch=config.iterations_per_epoch,
        sampler=DisjointClassPairSampler(
            splits.train.labels,
            m=config.samples_per_class,
            batch_size=config.batch_size,
            length_before_new_iter=config.iterations * config.batch_size,
            seed=config.seed,
        ),
        dataloader_num_workers=config.dataloader_num_workers,
        end_of_iteration_hook=end_of_iteration_hook,
        end_of_epoch_hook=hooks.end_of_epoch_hook(
            tester,
            {"val": splits.val},
            str(folder / MODEL_FOLDER),
            # PML stops after one validation more.
            patience=None if config.patience is None else config.patience - 1,
        ),
    )
    trainer.lr_schedulers = build_schedulers(config, trainer.optimizers)
    return _Parts(trainer, tester, hooks, splits, record_keeper, cover_radius)


def _fit(
    config: RunConfig, parts: _Parts, folder: Path, on_iterations: Callable[[int], object]
) -> tuple[dict[str, list[float]], int]:
    """Trains to the end; the validation metrics of each epoch, and the best epoch."""
    # Written only now: who corrects settings that could not be trained with may use the folder again.
    with atomic_file(folder / RUN_FILE) as file:
        file.write(config.to_json().encode())
    # Whatever an XML run drew so far for its prototypes, from here on it draws what a plain one does.
    seed_everything(config.seed)
    start_epoch = parts.hooks.resume(parts.trainer, str(folder / MODEL_FOLDER))
    if start_epoch == 1:
        parts.record_keeper.record_run_settings(dataclasses.asdict(config), METRICS)
    on_iterations(min(start_epoch - 1, config.epochs) * config.iterations_per_epoch)
    parts.trainer.train(start_epoch, config.epochs)
    history = parts.hooks.get_accuracy_history(parts.tester, "val", metrics=list(METRICS))
    by_metric = {metric: history[parts.tester.accuracies_keyname(metric)] for metric in METRICS}
    if start_epoch <= config.epochs:
        # What patience left out.
        on_iterations((config.epochs - len(history["epoch"])) * config.iterations_per_epoch)
    return by_metric, history["epoch"][int(np.argmax(by_metric[PRIMARY_METRIC]))]


def _evaluate(
    tester: testers.GlobalEmbeddingSpaceTester,
    splits: Splits[Any],
    models: Mapping[str, torch.nn.Module],
    best_epoch: int,
    folder: Path,
) -> dict[str, float]:
    """The metrics of the best epoch on the test classes."""
    load_models(models, f"best{best_epoch}", folder, next(models["embedder"].parameters()).device)
    return _measure(tester, splits, models, best_epoch)


def _evaluate_untouched(
    config: RunConfig, folder: Path, split: Split
) -> tuple[dict[str, float], dict[str, float] | None]:
    """The metrics of the pooled features on validation and test classes."""
    trunk, embedder = build_models(config, c_f.use_cuda_if_available())
    splits = use_frozen_stages(config, trunk, splits_of(config), folder.parent / CACHE_FOLDER)
    with atomic_file(folder / RUN_FILE) as file:
        file.write(config.to_json().encode())
    models = {"trunk": trunk, "embedder": embedder}
    validation = _measure(
        _build_tester(config), Splits(splits.train, splits.val, {"test": splits.val}), models, 0
    )
    test = _measure(_build_tester(config), splits, models, 0) if split == "test" else None
    return validation, test


def _build_recorded_tester(
    config: RunConfig, folder: Path
) -> tuple[Any, _HookContainer, testers.GlobalEmbeddingSpaceTester]:
    """The run's records, the hooks that write them, and a tester whose accuracies go there."""
    # The event files are in the run's own folder, so that TensorBoard gives the run its name.
    record_keeper = get_record_keeper(folder / RECORD_FOLDER, folder)
    hooks = _HookContainer(
        record_keeper,
        primary_metric=PRIMARY_METRIC,
        log_freq=10,
        # Activations of frozen stages are no pictures to look at.
        picture_interval=max(1, config.epochs // 2) if config.freeze is None else None,
        picture_folder=folder / PICTURE_FOLDER,
    )
    return record_keeper, hooks, _build_tester(config, hooks.end_of_testing_hook)


def _build_tester(config: RunConfig, hook: Any = None) -> testers.GlobalEmbeddingSpaceTester:
    return testers.GlobalEmbeddingSpaceTester(
        batch_size=EVALUATION_BATCH_SIZE,
        dataloader_num_workers=config.dataloader_num_workers,
        end_of_testing_hook=hook,
        accuracy_calculator=AccuracyCalculator(include=tuple(METRICS), k="max_bin_count"),
    )


def _measure(
    tester: testers.GlobalEmbeddingSpaceTester,
    splits: Splits[Any],
    models: Mapping[str, torch.nn.Module],
    epoch: int,
) -> dict[str, float]:
    tester.test(
        splits.test, epoch, models["trunk"], models["embedder"],
        splits_to_eval=[(splits.test_query, [splits.test_reference])],
    )  # fmt: skip
    accuracies = tester.all_accuracies[splits.test_query]
    return {metric: float(accuracies[tester.accuracies_keyname(metric)]) for metric in METRICS}


def load_models(
    models: Mapping[str, torch.nn.Module], suffix: str, folder: Path, device: torch.device
) -> None:
    """Loads the models that a run has saved in its folder."""
    c_f.load_dict_of_models(models, suffix, str(folder / MODEL_FOLDER), device, assert_success=True)
