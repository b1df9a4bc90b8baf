"""Plain training against XML on equal terms: the engine of ``pml-xbml demo`` and ``pml-xbml compare``."""

from .comparison import DEFAULT_WEIGHT, Comparison, compare, plan_runs
from .loaded_run import LoadedRun, load_run
from .loss_table import LOSSES
from .models import cross_batch_loss
from .result import METRICS, PRIMARY_METRIC, Result
from .run_all import run_all
from .run_config import SCHEDULES, Arm, RunConfig
from .run_pictures import look
from .splits import NAMED_DATASETS
from .train import train

__all__ = [
    "DEFAULT_WEIGHT",
    "LOSSES",
    "METRICS",
    "NAMED_DATASETS",
    "PRIMARY_METRIC",
    "SCHEDULES",
    "Arm",
    "Comparison",
    "LoadedRun",
    "Result",
    "RunConfig",
    "compare",
    "cross_batch_loss",
    "load_run",
    "look",
    "plan_runs",
    "run_all",
    "train",
]
