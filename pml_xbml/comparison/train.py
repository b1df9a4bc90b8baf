"""The one place where the package trains: a run, from its settings to its result, with PML's own parts."""

import contextlib
import dataclasses
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning import losses, testers, trainers
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from ..checkpoint.atomic_file import atomic_file
from ..losses import CrossBatchPrototypeLoss
from ..monitoring import PrototypeHookContainer, get_record_keeper
from ..samplers import DisjointClassPairSampler
from ..trunks import PrototypePoolingTrunk
from .class_subset import ClassSubset
from .loss_table import LOSSES
from .networks import build_network
from .result import METRICS, PRIMARY_METRIC, Result, Split
from .run_config import RUN_FILE, RunConfig, check_same_run
from .splits import Splits, load_splits

RESULT_FILE = "result.json"
LOG_FILE = "training.log"
MODEL_FOLDER = "models"
RECORD_FOLDER = "records"
PICTURE_FOLDER = "pictures"

EVALUATION_BATCH_SIZE = 128

#: Makes the loss of an XML run from the run, the loss by itself and the wrapped trunk.
MakeLoss = Callable[[RunConfig, losses.BaseMetricLossFunction, PrototypePoolingTrunk], torch.nn.Module]


def cross_batch_loss(
    run: RunConfig, loss: losses.BaseMetricLossFunction, trunk: PrototypePoolingTrunk
) -> CrossBatchPrototypeLoss:
    """The XML loss of a run, as its settings have it."""
    options = {"cross_batch_weight": run.cross_batch_weight, "collect_stats": True, **run.loss_options}
    name = options.get("expressed_loss")
    if name is not None:
        options["expressed_loss"] = LOSSES[name].build(0, run.embedding_size)
    return CrossBatchPrototypeLoss(loss, pooling=trunk, **options)


def train(
    run: RunConfig,
    folder: str | Path,
    split: Split = "test",
    make_loss: MakeLoss = cross_batch_loss,
    on_iterations: Callable[[int], object] = lambda count: None,
) -> Result:
    """Train a run, or go on with it where it was killed, or read its result if it is done.

    What PML and its progress bars print goes into the run's ``training.log``. The seeds of ``random``,
    ``numpy.random`` and PyTorch are set, globally.

    Args:
        run: what to train.
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
    check_same_run(run, folder)
    if (folder / RESULT_FILE).exists():
        result = Result.load(folder / RESULT_FILE)
        if result.test is not None or split == "validation":
            on_iterations(run.iterations)
            return result
    folder.mkdir(parents=True, exist_ok=True)
    with _printing_to(folder / LOG_FILE):
        result = _train(run, folder, split, make_loss, on_iterations)
    result.save(folder / RESULT_FILE)
    return result


@dataclass(frozen=True)
class LoadedRun:
    """A run as it was after its best epoch.

    Attributes:
        run: its settings.
        best_epoch: the epoch that its weights are of.
        trunk: in evaluation mode; a ``PrototypePoolingTrunk`` unless the run is plain.
        embedder: in evaluation mode.
        splits: its data.
    """

    run: RunConfig
    best_epoch: int
    trunk: torch.nn.Module
    embedder: torch.nn.Module
    splits: Splits


def load_run(folder: str | Path) -> LoadedRun:
    """Load a run's models, as they were after its best epoch so far, and its data.

    Args:
        folder: the folder of the run.

    Returns:
        The run; its models are on the CPU.

    Raises:
        ValueError: if the folder holds no run, or one that has not been validated yet.
    """
    folder = Path(folder)
    if not (folder / RUN_FILE).is_file():
        raise ValueError(
            f"there is no run in {str(folder)!r}: it has no {RUN_FILE}; give a folder below the 'runs' "
            "folder of a demo or comparison"
        )
    run = RunConfig.from_json((folder / RUN_FILE).read_text())
    best_epoch, suffix = c_f.latest_version(str(folder / MODEL_FOLDER), "trunk_best*.pth", best=True)
    if suffix is None:
        raise ValueError(
            f"the run in {str(folder)!r} has no model yet: it was stopped before its first validation"
        )
    cpu = torch.device("cpu")
    trunk, embedder = _build_models(run, cpu)
    _load_models({"trunk": trunk, "embedder": embedder}, suffix, folder, cpu)
    return LoadedRun(run, best_epoch, trunk.eval(), embedder.eval(), _load_splits(run))


def _train(
    run: RunConfig, folder: Path, split: Split, make_loss: MakeLoss, on_iterations: Callable[[int], object]
) -> Result:
    started = time.monotonic()
    device = c_f.use_cuda_if_available()
    splits = _load_splits(run)
    models, loss, cover_radius = _build_trainable(run, splits.train, make_loss, device)
    # The event files are in the run's own folder, so that TensorBoard gives the run its name.
    record_keeper = get_record_keeper(folder / RECORD_FOLDER, folder)
    hooks = PrototypeHookContainer(
        record_keeper,
        primary_metric=PRIMARY_METRIC,
        log_freq=10,
        picture_interval=max(1, run.epochs // 2),
        picture_folder=folder / PICTURE_FOLDER,
    )
    tester = testers.GlobalEmbeddingSpaceTester(
        batch_size=EVALUATION_BATCH_SIZE,
        dataloader_num_workers=run.dataloader_num_workers,
        end_of_testing_hook=hooks.end_of_testing_hook,
        accuracy_calculator=AccuracyCalculator(include=tuple(METRICS), k="max_bin_count"),
    )
    # A run that is resumed after its last epoch asks for its validation history without validating again.
    tester.reference_split_names["val"] = ["val"]

    def end_of_iteration_hook(trainer: trainers.MetricLossOnly) -> None:
        hooks.end_of_iteration_hook(trainer)
        on_iterations(1)

    trainer = trainers.MetricLossOnly(
        models=models,
        optimizers=_build_optimizers(run, models, loss),
        batch_size=run.batch_size,
        loss_funcs={"metric_loss": loss},
        mining_funcs=_build_miners(run),
        dataset=splits.train,
        iterations_per_epoch=run.iterations_per_epoch,
        sampler=DisjointClassPairSampler(
            splits.train.labels,
            m=run.samples_per_class,
            batch_size=run.batch_size,
            length_before_new_iter=run.iterations * run.batch_size,
            seed=run.seed,
        ),
        dataloader_num_workers=run.dataloader_num_workers,
        end_of_iteration_hook=end_of_iteration_hook,
        end_of_epoch_hook=hooks.end_of_epoch_hook(tester, {"val": splits.val}, str(folder / MODEL_FOLDER)),
    )
    trainer.lr_schedulers = _build_schedulers(run, trainer.optimizers)
    # Not before: settings that cannot be trained with may be mended in the same folder.
    with atomic_file(folder / RUN_FILE) as file:
        file.write(run.to_json().encode())
    # Whatever an XML run drew so far for its prototypes, from here on it draws what a plain one does.
    _seed_everything(run.seed)
    start_epoch = hooks.resume(trainer, str(folder / MODEL_FOLDER))
    if start_epoch == 1:
        record_keeper.record_run_settings(dataclasses.asdict(run), METRICS)
    on_iterations((start_epoch - 1) * run.iterations_per_epoch)
    try:
        trainer.train(start_epoch, run.epochs)
        history = hooks.get_accuracy_history(tester, "val", metrics=list(METRICS))
        by_metric = {metric: history[tester.accuracies_keyname(metric)] for metric in METRICS}
        best = int(np.argmax(by_metric[PRIMARY_METRIC]))
        best_epoch = history["epoch"][best]
        test = None
        if split == "test":
            _load_models(models, f"best{best_epoch}", folder, device)
            tester.test(
                splits.test, best_epoch, models["trunk"], models["embedder"],
                splits_to_eval=[(splits.test_query, [splits.test_reference])],
            )  # fmt: skip
            accuracies = tester.all_accuracies[splits.test_query]
            test = {metric: float(accuracies[tester.accuracies_keyname(metric)]) for metric in METRICS}
    except BaseException:
        # Ctrl-C in the middle of a save leaves it half done, and saving again may fail. That must not hide
        # what ended the run; a resumed one goes on from its checkpoint.
        with contextlib.suppress(Exception):
            record_keeper.save_records()
        raise
    else:
        record_keeper.save_records()
    finally:
        record_keeper.tensorboard_writer.close()
    return Result(
        run=run,
        best_epoch=best_epoch,
        validation={metric: values[best] for metric, values in by_metric.items()},
        test=test,
        history=by_metric,
        cover_radius=cover_radius,
        seconds=time.monotonic() - started,
    )


def _load_splits(run: RunConfig) -> Splits:
    return load_splits(run.dataset, run.root, run.train_classes, run.image_size)


def _build_models(run: RunConfig, device: torch.device) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Trunk and embedder, with the same weights for plain and XML, whose prototypes are drawn apart."""
    _seed_everything(run.seed)
    pooling_options = {"collect_stats": True, **run.pooling_options}
    wrapped = PrototypePoolingTrunk(build_network(run.trunk, run.pretrained), **pooling_options)
    embedder = torch.nn.Linear(wrapped.num_features, run.embedding_size)
    trunk = wrapped.unwrap() if run.arm != "xml" else wrapped
    if device.type == "cpu":
        # There convolutions and poolings take less time so, those of small and mobile networks most.
        trunk.to(memory_format=torch.channels_last)
    return trunk.to(device), embedder.to(device)


def _build_trainable(
    run: RunConfig, train: ClassSubset, make_loss: MakeLoss, device: torch.device
) -> tuple[dict[str, torch.nn.Module], torch.nn.Module, float | None]:
    trunk, embedder = _build_models(run, device)
    loss: torch.nn.Module = LOSSES[run.loss].build(len(train.classes), run.embedding_size)
    cover_radius = None
    if isinstance(trunk, PrototypePoolingTrunk):
        if run.prototype_images:
            chosen = np.random.default_rng(run.seed).permutation(len(train))[: run.prototype_images]
            cover_radius = trunk.init_prototypes(torch.stack([train[index][0] for index in chosen]))
        loss = make_loss(run, loss, trunk)
    return {"trunk": trunk, "embedder": embedder}, loss.to(device), cover_radius


def _build_optimizers(
    run: RunConfig, models: dict[str, torch.nn.Module], loss: torch.nn.Module
) -> dict[str, torch.optim.Optimizer]:
    trunk = models["trunk"]
    prototypes = [trunk.prototypes] if isinstance(trunk, PrototypePoolingTrunk) else []
    backbone = [p for p in trunk.parameters() if all(p is not prototype for prototype in prototypes)]
    groups: list[dict[str, Any]] = [
        {"params": backbone},
        {"params": prototypes, "lr": run.prototypes_learning_rate},
    ]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "trunk_optimizer": torch.optim.Adam(groups, lr=run.trunk_learning_rate),
        "embedder_optimizer": torch.optim.Adam(
            models["embedder"].parameters(), lr=run.embedder_learning_rate
        ),
    }
    loss_learning_rate = LOSSES[run.loss].learning_rate
    if loss_learning_rate is not None:
        optimizers["metric_loss_optimizer"] = torch.optim.Adam(loss.parameters(), lr=loss_learning_rate)
    return optimizers


def _build_schedulers(run: RunConfig, optimizers: dict[str, torch.optim.Optimizer]) -> dict[str, Any]:
    if run.schedule == "constant":
        return {}
    return {
        name.replace("_optimizer", "_scheduler_by_iteration"): torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=run.iterations
        )
        for name, optimizer in optimizers.items()
    }


def _build_miners(run: RunConfig) -> dict[str, Any]:
    build_miner = LOSSES[run.loss].build_miner
    return {} if build_miner is None else {"tuple_miner": build_miner()}


def _load_models(models: dict[str, torch.nn.Module], suffix: str, folder: Path, device: torch.device) -> None:
    c_f.load_dict_of_models(models, suffix, str(folder / MODEL_FOLDER), device, assert_success=True)


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  PML's losses and miners draw from the global generator
    torch.manual_seed(seed)


@contextlib.contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """PML's trainer and tester draw a progress bar an epoch and take no option against it."""
    with open(path, "a") as file, contextlib.redirect_stderr(file):
        yield
