from dataclasses import dataclass
from pathlib import Path

import torch
from pytorch_metric_learning.utils import common_functions as c_f

from .class_subset import ClassSubset
from .models import build_models, splits_of
from .run_config import RUN_FILE, RunConfig
from .splits import Splits
from .train import MODEL_FOLDER, load_models


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
    splits: Splits[ClassSubset]


def load_run(folder: str | Path) -> LoadedRun:
    """Loads a run's models, as they were after its best epoch so far, and its data.

    Args:
        folder: the folder of the run.

    Returns:
        The run; its models are on the CPU.

    Raises:
        ValueError: if the folder holds no run, or one that has not been validated yet.
    """
    folder = Path(folder)
    run = recorded_run(folder)
    best_epoch, suffix = c_f.latest_version(str(folder / MODEL_FOLDER), "trunk_best*.pth", best=True)
    if suffix is None:
        raise ValueError(
            f"the run in {str(folder)!r} has no model"
            + (
                ": it is untouched"
                if run.arm == "untouched"
                else " yet: it was stopped before its first validation"
            )
        )
    cpu = torch.device("cpu")
    trunk, embedder = build_models(run, cpu)
    try:
        load_models({"trunk": trunk, "embedder": embedder}, suffix, folder, cpu)
    except Exception as error:  # torch.load raises whatever its readers do
        raise ValueError(
            f"the models in {str(folder / MODEL_FOLDER)!r} must be those of the run, got files that cannot "
            f"be loaded: {error}"
        ) from error
    return LoadedRun(run, best_epoch, trunk.eval(), embedder.eval(), splits_of(run))


def recorded_run(folder: Path) -> RunConfig:
    """The settings of the run in a folder.

    Raises:
        ValueError: if the folder holds no run, or one of another version.
    """
    if not (folder / RUN_FILE).is_file():
        raise ValueError(
            f"there is no run in {str(folder)!r}: it has no {RUN_FILE}; give a folder below the 'runs' "
            "folder of a demo or comparison"
        )
    try:
        return RunConfig.from_json((folder / RUN_FILE).read_text())
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{str(folder / RUN_FILE)!r} must hold the settings of a run of this version, got others: {error}"
        ) from error
