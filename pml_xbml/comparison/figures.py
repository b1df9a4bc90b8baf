"""Figures of a comparison."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .paired_results import PairedResults
from .result import METRICS, PRIMARY_METRIC, Result, Split
from .run_config import Arm

PLAIN_COLOR = "#555555"
CONTROL_COLOR = "#b8860b"
XML_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def plot_differences(paired_results: Sequence[PairedResults], path: Path, split: Split = "test") -> None:
    """Plots the paired differences: a dot a seed, the mean, and its 95% interval.

    All panels have one x axis, so that lengths can be compared between them.

    Args:
        paired_results: what to plot, one line each, and a second one against the control if there is one.
        path: the PNG file to write.
        split: the classes that the figure is of.
    """
    baselines: tuple[Arm, ...] = ("plain", "control")
    lines = [(paired, baseline) for paired in paired_results for baseline in baselines if paired.of(baseline)]
    figure = Figure(figsize=(11, 2.1 + 0.45 * len(lines)), layout="constrained")
    panels = figure.subplots(1, len(METRICS), sharey=True, sharex=True)
    for panel, (metric, name) in zip(panels, METRICS.items(), strict=True):
        panel.axvline(0, color="black", linewidth=0.8)
        for line, (paired, baseline) in enumerate(lines):
            test = paired.t_test(metric, split, baseline)
            xml, others = paired.scores("xml", metric, split), paired.scores(baseline, metric, split)
            color = XML_COLORS[0] if baseline == "plain" else CONTROL_COLOR
            dots = {"color": color, "alpha": 0.4, "markersize": 5}
            panel.plot(np.subtract(xml, others), np.full(len(xml), line), "o", **dots)
            if test.num_seeds > 1:
                panel.plot([test.low, test.high], [line, line], color="black", linewidth=1.5)
            panel.plot(test.difference, line, "D", color="black", markersize=5)
        panel.set_title(name)
        panel.set_xlabel("difference in percentage points")
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(
        range(len(lines)),
        [
            f"{paired.loss}, weight {paired.cross_batch_weight:g}: XML − {baseline}"
            for paired, baseline in lines
        ],
    )
    panels[0].set_ylim(len(lines) - 0.5, -0.5)
    figure.suptitle(
        f"{split.capitalize()} classes. A dot a seed; diamond and bar: mean and 95% interval; right of 0 XML "
        "is better",
        fontsize="medium",
    )
    figure.savefig(path, dpi=120)


def plot_learning_curves(results: Iterable[Result], path: Path) -> None:
    """Plots MAP@R on the validation classes against iterations: a thin line a run, a thick one their mean.

    The network without training, if it was measured, is a level line. Runs that stopped early end where they
    stopped, and the mean ends with the first of them.

    Args:
        results: what to plot, a panel a loss.
        path: the PNG file to write.
    """
    untouched = []
    by_loss: dict[str, dict[tuple[Arm, float], list[Result]]] = {}
    for result in results:
        run = result.run
        if run.arm == "untouched":
            untouched.append(100 * result.validation[PRIMARY_METRIC])
        else:
            weighted_arm = (run.arm, run.cross_batch_weight or 0)
            by_loss.setdefault(run.loss, {}).setdefault(weighted_arm, []).append(result)
    columns = min(3, len(by_loss))
    rows = -(-len(by_loss) // columns)
    figure = Figure(figsize=(1 + 4.2 * columns, 0.6 + 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (loss, by_arm) in zip(panels, by_loss.items(), strict=False):
        for level in untouched:
            panel.axhline(level, color="black", linestyle=":", linewidth=1.5, label="untouched")
        weights = sorted({weight for _, weight in by_arm if weight})
        for (arm, weight), of_arm in by_arm.items():
            color = PLAIN_COLOR if arm == "plain" else XML_COLORS[weights.index(weight) % len(XML_COLORS)]
            _plot_runs(panel, of_arm, color)
        panel.set_title(loss)
        panel.set_xlabel("iterations")
        panel.set_ylabel("validation MAP@R, %")
        panel.grid(alpha=0.3)
        panel.legend()
    for panel in panels[len(by_loss) :]:
        panel.remove()
    figure.suptitle(
        "Thin: a seed; thick: their mean\nCurves that still rise at their end need more iterations",
        fontsize="medium",
    )
    figure.savefig(path, dpi=120)


def _plot_runs(panel: Any, results: Sequence[Result], color: str) -> None:
    run = results[0].run
    curves = [100 * np.array(result.history[PRIMARY_METRIC]) for result in results]
    style = "--" if run.arm == "control" else "-"
    name = {"plain": "plain", "control": "control", "xml": "XML"}[run.arm]
    label = name if run.arm == "plain" else f"{name}, weight {run.cross_batch_weight:g}"
    for curve in curves:
        iterations = run.iterations_per_epoch * np.arange(1, len(curve) + 1)
        panel.plot(iterations, curve, style, color=color, linewidth=0.8, alpha=0.4)
    shortest = min(map(len, curves))
    mean = np.mean([curve[:shortest] for curve in curves], axis=0)
    iterations = run.iterations_per_epoch * np.arange(1, shortest + 1)
    panel.plot(iterations, mean, style, color=color, linewidth=2, label=label)
