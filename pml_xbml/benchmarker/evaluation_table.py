import csv
from collections.abc import Sequence
from pathlib import Path

_LEVEL = "_level0"
_STANDARD_ERROR = "SEM_"


def evaluation_table(csv_folder: Path, splits: Sequence[str], aggregator: str) -> str:
    """The accuracies that an evaluation of powerful-benchmarker has left in its CSV files, in percent.

    Args:
        csv_folder: ``meta_logs/saved_csvs`` of the experiment.
        splits: the evaluated splits, "val" or "test".
        aggregator: what the files' names begin with: the class that joined the folds, ``MeanAggregator`` or
            ``ConcatenateEmbeddings``.

    Returns:
        A line a metric for each split and each state of the networks, with the standard error over the folds
        where there are several.
    """
    lines = []
    for split in splits:
        for path in sorted(csv_folder.glob(f"{aggregator}_accuracies_*_{split.upper()}_vs_*.csv")):
            with path.open() as file:
                rows = list(csv.DictReader(file))
            # Evaluated again, a state is there again: the last row is the one of now.
            for status, row in {row["trained_status"]: row for row in rows}.items():
                lines.append(f"{split}, {status.replace('_', ' ')}:")
                lines += [
                    f"  {name.removesuffix(_LEVEL):30} {100 * float(value):6.2f}{_spread(row, name)}"
                    for name, value in row.items()
                    if name.endswith(_LEVEL) and not name.startswith(_STANDARD_ERROR)
                ]
    return "\n".join(lines)


def _spread(row: dict[str, str], name: str) -> str:
    error = row.get(_STANDARD_ERROR + name)
    return f" ± {100 * float(error):.2f}" if error else ""
