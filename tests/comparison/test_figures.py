import dataclasses

import numpy as np
import pytest
from PIL import Image

from pml_xbml.comparison import METRICS, Result, RunConfig
from pml_xbml.comparison.figures import plot_differences, plot_learning_curves
from pml_xbml.comparison.paired_results import pair_results

MAP_AT_R = "mean_average_precision_at_r"


@pytest.fixture(scope="module")
def results():
    """The untouched network; two losses, plain, control and two weights, three seeds."""
    generator = np.random.default_rng(0)

    def make(**settings):
        run = RunConfig(**{"iterations": 300, "iterations_per_epoch": 100, **settings})
        return Result(
            run=run,
            best_epoch=3,
            validation=dict.fromkeys(METRICS, 0.5),
            test={metric: generator.uniform(0.4, 0.6) for metric in METRICS},
            history={metric: sorted(generator.uniform(0.2, 0.6, size=run.epochs)) for metric in METRICS},
            cover_radius=None,
            seconds=1.0,
        )

    arms = [(None, False), (0.1, False), (0.1, True), (0.3, False)]
    return [
        make(iterations=0),
        *(
            make(loss=loss, cross_batch_weight=weight, control=control, seed=seed)
            for loss in ("contrastive", "triplet")
            for weight, control in arms
            for seed in range(3)
        ),
    ]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved = []
    savefig = "matplotlib.figure.Figure.savefig"
    monkeypatch.setattr(savefig, lambda figure, *args, **kwargs: saved.append(figure))
    return saved


def test_differences_show_every_seed_the_mean_and_the_interval(results, figures, tmp_path):
    paired_results = pair_results(results)
    plot_differences(paired_results, tmp_path / "differences.png")
    [figure] = figures
    compared = [
        (paired, baseline)
        for paired in paired_results
        for baseline in ("plain", "control")
        if paired.of(baseline)
    ]
    assert len(compared) == 2 * (2 + 1)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[:2] == [
        "contrastive, weight 0.1: XML − plain",
        "contrastive, weight 0.1: XML − control",
    ]
    for panel, metric in zip(figure.axes, METRICS, strict=True):
        _, *lines = panel.lines  # after the line at zero: dots, interval and mean of each difference
        for (paired, baseline), dots, interval, mean in zip(
            compared, lines[::3], lines[1::3], lines[2::3], strict=True
        ):
            test = paired.t_test(metric, "test", baseline)
            shown = [
                100 * (after.test[metric] - before.test[metric])
                for before, after in zip(paired.of(baseline), paired.xml, strict=True)
            ]
            assert list(dots.get_xdata()) == pytest.approx(shown)
            assert list(interval.get_xdata()) == pytest.approx([test.low, test.high])
            assert list(mean.get_xdata()) == pytest.approx([test.difference])


def test_all_metrics_have_one_x_axis(results, figures, tmp_path):
    plot_differences(pair_results(results), tmp_path / "differences.png")
    assert len({panel.get_xlim() for panel in figures[0].axes}) == 1


def test_learning_curves_show_every_run_the_means_and_the_untouched_network(results, figures, tmp_path):
    plot_learning_curves(results, tmp_path / "curves.png")
    [figure] = figures
    assert [panel.get_title() for panel in figure.axes] == ["contrastive", "triplet"]
    untouched, *lines = figure.axes[0].lines
    assert untouched.get_label() == "untouched"
    assert set(untouched.get_ydata()) == {50}
    assert len(lines) == 4 * (3 + 1)
    labels = [line.get_label() for line in lines[3::4]]
    assert labels == ["plain", "XML, weight 0.1", "control, weight 0.1", "XML, weight 0.3"]
    plain = [result for result in results if result.run.loss == "contrastive" and result.run.arm == "plain"]
    curves = 100 * np.array([result.history[MAP_AT_R] for result in plain])
    assert list(lines[3].get_xdata()) == [100, 200, 300]
    np.testing.assert_allclose(lines[3].get_ydata(), curves.mean(axis=0))


def test_curves_of_runs_that_stopped_early_end_there(results, figures, tmp_path):
    _, first, *others = results
    shorter = dataclasses.replace(
        first, history={metric: values[:2] for metric, values in first.history.items()}
    )
    plot_learning_curves([shorter, *others], tmp_path / "curves.png")
    lines = figures[0].axes[0].lines
    assert [list(line.get_xdata()) for line in lines[:4]] == [
        [100, 200],
        [100, 200, 300],
        [100, 200, 300],
        [100, 200],
    ]


def test_figures_are_written(results, tmp_path):
    plot_differences(pair_results(results), tmp_path / "differences.png")
    plot_learning_curves(results, tmp_path / "curves.png")
    for name in ("differences.png", "curves.png"):
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 10
