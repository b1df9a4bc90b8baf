import numpy as np
import pytest
from PIL import Image

from pml_xbml.comparison import METRICS, Result, Run
from pml_xbml.comparison.figures import plot_differences, plot_learning_curves
from pml_xbml.comparison.report import pair_results


@pytest.fixture(scope="module")
def results():
    """Two losses, plain and two weights, three seeds."""
    generator = np.random.default_rng(0)
    return [
        Result(
            run=Run(
                loss=loss,
                variant="plain" if weight is None else "xml",
                cross_batch_weight=weight,
                seed=seed,
                iterations=300,
            ),
            best_epoch=3,
            validation=dict.fromkeys(METRICS, 0.5),
            test={metric: generator.uniform(0.4, 0.6) for metric in METRICS},
            history={metric: sorted(generator.uniform(0.2, 0.6, size=3)) for metric in METRICS},
            cover_radius=None,
            seconds=1.0,
        )
        for loss in ("contrastive", "triplet")
        for weight in (None, 0.1, 0.3)
        for seed in range(3)
    ]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved = []
    savefig = "matplotlib.figure.Figure.savefig"
    monkeypatch.setattr(savefig, lambda figure, *args, **kwargs: saved.append(figure))
    return saved


def test_differences_show_every_seed_the_mean_and_the_interval(results, figures, tmp_path):
    pairings = pair_results(results)
    plot_differences(pairings, tmp_path / "differences.png")
    [figure] = figures
    for panel, metric in zip(figure.axes, METRICS, strict=True):
        _, *lines = panel.lines  # after the line at zero: dots, interval and mean of each pairing
        for pairing, dots, interval, mean in zip(pairings, lines[::3], lines[1::3], lines[2::3], strict=True):
            compared = pairing.compare(metric)
            shown = [
                100 * (xml.test[metric] - plain.test[metric])
                for plain, xml in zip(pairing.plain, pairing.xml, strict=True)
            ]
            assert list(dots.get_xdata()) == pytest.approx(shown)
            assert list(interval.get_xdata()) == pytest.approx([compared.low, compared.high])
            assert list(mean.get_xdata()) == pytest.approx([compared.difference])


def test_learning_curves_show_every_run_and_the_means(results, figures, tmp_path):
    plot_learning_curves(results, tmp_path / "curves.png")
    [figure] = figures
    assert [panel.get_title() for panel in figure.axes] == ["contrastive", "triplet"]
    lines = figure.axes[0].lines
    assert len(lines) == 3 * (3 + 1)
    plain = [
        result for result in results if result.run.loss == "contrastive" and result.run.variant == "plain"
    ]
    curves = 100 * np.array([result.history["mean_average_precision_at_r"] for result in plain])
    assert lines[3].get_label() == "plain"
    assert list(lines[3].get_xdata()) == [100, 200, 300]
    np.testing.assert_allclose(lines[3].get_ydata(), curves.mean(axis=0))


def test_pictures_are_written(results, tmp_path):
    plot_differences(pair_results(results), tmp_path / "differences.png")
    plot_learning_curves(results, tmp_path / "curves.png")
    for name in ("differences.png", "curves.png"):
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 10
