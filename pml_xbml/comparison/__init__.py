"""Plain training against XML on equal terms: the engine of ``pml-xbml demo`` and ``pml-xbml compare``."""

from pml_xbml.comparison.comparison import Comparison, compare, plan_runs
from pml_xbml.comparison.engine import LoadedRun, cross_batch_loss, load_run, train
from pml_xbml.comparison.executor import run_all
from pml_xbml.comparison.look import look
from pml_xbml.comparison.loss_table import LOSSES
from pml_xbml.comparison.result import METRICS, PRIMARY_METRIC, Result
from pml_xbml.comparison.run import PLAIN, SCHEDULES, XML, Run
from pml_xbml.comparison.splits import NAMED_DATASETS

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
