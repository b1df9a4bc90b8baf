"""The tables of a comparison: for the terminal, and as a CSV file."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.atomic_file import atomic_file
from .paired_results import PairedResults
from .result import METRICS, Result, Split
from .run_config import Arm
from .statistics import PairedDifference, format_p, format_points

CLASSES: dict[Split, str] = {
    "test": "classes never seen in training",
    "validation": "the validation classes",
}
_NAME = 13
_COLUMN = 10


def format_table(paired: PairedResults, split: Split = "test", untouched: Result | None = None) -> str:
    """The table of one loss and weight, in percent.

    Args:
        paired: the results.
        split: the classes that the table is of.
        untouched: the result of the pretrained network without training, if there is one.

    Returns:
        Lines of text: XML against plain, and against the control if there is one.
    """
    title = (
        f"{paired.loss}, weight {paired.cross_batch_weight:g}: "
        f"mean of {len(paired.xml)} seed(s) on {CLASSES[split]}, in percent"
    )
    blocks = [title, *_block(paired, split, "plain", untouched)]
    if paired.control:
        blocks += ["", *_block(paired, split, "control", None)]
    return "\n".join([*blocks, "", _best_iterations(paired)])


def _block(paired: PairedResults, split: Split, baseline: Arm, untouched: Result | None) -> list[str]:
    levels = [] if untouched is None else ["untouched"]
    lines = [_row("", [*levels, baseline, "XML"], DIFFERENCE_TITLES)]
    for metric, name in METRICS.items():
        test = paired.t_test(metric, split, baseline)
        means = [] if untouched is None else [100 * untouched.on(split)[metric]]
        means += [test.baseline, test.candidate]
        lines.append(_row(name, [f"{mean:.2f}" for mean in means], difference_cells(test)))
    return lines


#: Of the cells that :func:`difference_cells` makes.
DIFFERENCE_TITLES = ["difference", "95% interval", "p", "seeds won"]


def difference_cells(test: PairedDifference) -> list[str]:
    """A paired difference in the cells of a table."""
    several = test.num_seeds > 1
    return [
        format_points(test.difference),
        f"[{format_points(test.low)}, {format_points(test.high)}]" if several else "–",
        format_p(test.p_value) if several else "–",
        f"{test.num_better} of {test.num_seeds}",
    ]


def _row(name: str, levels: Sequence[str], differences: Sequence[str]) -> str:
    interval_width, p_width, won_width = 18, 8, 12
    cells = [f"{level:>{_COLUMN}}" for level in levels]
    difference, interval, p_value, won = differences
    return (
        f"{name:<{_NAME}}{''.join(cells)}{difference:>{_COLUMN + 2}}{interval:>{interval_width}}"
        f"{p_value:>{p_width}}{won:>{won_width}}"
    )


def _best_iterations(paired: PairedResults) -> str:
    """Which epochs validation chose, arm by arm."""
    chosen = []
    for name, results in (("plain", paired.plain), ("control", paired.control), ("XML", paired.xml)):
        iterations = [result.best_epoch * result.run.iterations_per_epoch for result in results]
        if iterations:
            low, high = min(iterations), max(iterations)
            chosen.append(f"{low} ({name})" if low == high else f"{low} to {high} ({name})")
    most = paired.plain[0].run.iterations
    return f"Best on the validation classes, of at most {most} iterations: {', '.join(chosen)}."


def footnotes(has_control: bool, has_untouched: bool) -> str:
    """What the columns mean."""
    notes = [
        "difference: XML minus the column before it, seed by seed. Its 95% interval and p are of one paired "
        "t-test over",
        "the seeds: p is below 0.05 exactly where the interval leaves out 0.",
    ]
    if has_untouched:
        notes.append("untouched: the pooled features of the pretrained network, without training.")
    if has_control:
        notes += [
            "control: the second term is its loss on the embeddings themselves, without the cross-batch fit.",
            "For contrastive loss that is plain training.",
        ]
    return "\n".join(notes)


def write_csv(results: Iterable[Result], path: Path) -> None:
    """Writes a row a run: what sets it apart, its best epoch, and each metric as a fraction.

    Args:
        results: in the order of the rows.
        path: the file, which is replaced in one step.
    """
    rows = [_csv_row(result) for result in results]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def _csv_row(result: Result) -> dict[str, Any]:
    run = result.run
    row = {
        "arm": run.arm,
        "loss": "" if run.arm == "untouched" else run.loss,
        "cross_batch_weight": run.cross_batch_weight,
        "seed": run.seed,
        **run.loss_options,
        **run.pooling_options,
        "best_epoch": result.best_epoch,
        **{f"validation_{metric}": value for metric, value in result.validation.items()},
    }
    if result.test is not None:
        row.update({f"test_{metric}": value for metric, value in result.test.items()})
    return row
