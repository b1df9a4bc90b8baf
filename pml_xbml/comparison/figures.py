"""Pictures of a comparison."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .report import Pairing
from .result import METRICS, PRIMARY_METRIC, Result, Split
from .run_config import PLAIN

PLAIN_COLOUR = "#555555"
XML_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def plot_differences(pairings: Sequence[Pairing], path: Path, split: Split = "test") -> None:
    """Plot the paired differences: a dot a seed, the mean, and its 95% interval.

    Args:
        pairings: what to plot, one line each.
        path: the PNG file to write.
        split: the classes that the picture is of.
    """
    figure = Figure(figsize=(11, 1.9 + 0.45 * len(pairings)), layout="constrained")
    panels = figure.subplots(1, len(METRICS), sharey=True)
    for panel, (metric, name) in zip(panels, METRICS.items(), strict=True):
        panel.axvline(0, color="black", linewidth=0.8)
        for line, pairing in enumerate(pairings):
            before, after = np.array(pairing.scores(metric, split))
            compared = pairing.compare(metric, split)
            panel.plot(
                after - before, np.full(len(after), line), "o", color=XML_COLOURS[0], alpha=0.4, markersize=5
            )
            if compared.num_seeds > 1:
                panel.plot([compared.low, compared.high], [line, line], color="black", linewidth=1.5)
            panel.plot(compared.difference, line, "D", color="black", markersize=5)
        panel.set_title(name)
        panel.set_xlabel("XML − plain, percentage points")
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(
        range(len(pairings)),
        [f"{pairing.loss}, weight {pairing.cross_batch_weight:g}" for pairing in pairings],
    )
    panels[0].set_ylim(len(pairings) - 0.5, -0.5)
    figure.suptitle(
        f"{split.capitalize()} classes: a dot a seed, mean with 95% paired t-interval", fontsize="medium"
    )
    figure.savefig(path, dpi=120)


def plot_learning_curves(results: Iterable[Result], path: Path) -> None:
    """Plot MAP@R on the validation classes against iterations: a thin line a run, a thick one their mean.

    Args:
        results: what to plot, a panel a loss.
        path: the PNG file to write.
    """
    by_loss: dict[str, dict[float | None, list[Result]]] = {}
    for result in results:
        by_loss.setdefault(result.run.loss, {}).setdefault(result.run.cross_batch_weight, []).append(result)
    columns = min(3, len(by_loss))
    rows = -(-len(by_loss) // columns)
    figure = Figure(figsize=(1 + 4.2 * columns, 0.6 + 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (loss, by_weight) in zip(panels, by_loss.items(), strict=False):
        colours = iter(XML_COLOURS * len(by_weight))
        for weight, of_weight in by_weight.items():
            _plot_runs(panel, of_weight, PLAIN_COLOUR if weight is None else next(colours))
        panel.set_title(loss)
        panel.set_xlabel("iterations")
        panel.set_ylabel("validation MAP@R, %")
        panel.grid(alpha=0.3)
        panel.legend()
    for panel in panels[len(by_loss) :]:
        panel.remove()
    figure.savefig(path, dpi=120)


def _plot_runs(panel: Any, results: Sequence[Result], colour: str) -> None:
    run = results[0].run
    curves = 100 * np.array([result.history[PRIMARY_METRIC] for result in results])
    iterations = run.iterations_per_epoch * np.arange(1, curves.shape[1] + 1)
    label = "plain" if run.variant == PLAIN else f"XML, weight {run.cross_batch_weight:g}"
    panel.plot(iterations, curves.T, color=colour, linewidth=0.8, alpha=0.4)
    panel.plot(iterations, curves.mean(axis=0), color=colour, linewidth=2, label=label)
