"""Plain training against XML on equal terms: the engine of ``pml-xbml demo`` and ``pml-xbml compare``."""

from .comparison import Comparison, compare, plan_runs
from .loss_table import LOSSES
from .result import METRICS, PRIMARY_METRIC, Result
from .run_all import run_all
from .run_config import PLAIN, SCHEDULES, XML, Run
from .splits import NAMED_DATASETS
from .train import LoadedRun, cross_batch_loss, load_run, train
from .visualize import look

__all__ = [
    "LOSSES",
    "METRICS",
    "NAMED_DATASETS",
    "PLAIN",
    "PRIMARY_METRIC",
    "SCHEDULES",
    "XML",
    "Comparison",
    "LoadedRun",
    "Result",
    "Run",
    "compare",
    "cross_batch_loss",
    "load_run",
    "look",
    "plan_runs",
    "run_all",
    "train",
]
