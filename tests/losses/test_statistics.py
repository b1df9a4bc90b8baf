import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from pml_xbml import functional
from pml_xbml.losses._statistics import expression_statistics


def reference(histograms, embeddings, ridge, first_half):
    halves = [(histograms[half].numpy(), embeddings[half].numpy()) for half in (first_half, ~first_half)]
    # The ridge is relative to the variance.
    alphas = [ridge * z.var(0).sum() for z, _ in halves]
    fits = [Ridge(alpha=alpha).fit(*half) for alpha, half in zip(alphas, halves, strict=True)]

    def mean_r2(fits, fitted_halves):
        scores = []
        for fit, (_, fitted), (sources, targets) in zip(fits, fitted_halves, halves, strict=True):
            # Deviations are compared: the fitted half's mean gives way to that of the half that is expressed.
            predicted = fit.predict(sources) - fitted.mean(0) + targets.mean(0)
            scores.append(r2_score(targets, predicted, multioutput="variance_weighted"))
        return np.mean(scores)

    systems = []
    for alpha, (sources, _) in zip(alphas, halves, strict=True):
        sources = sources - sources.mean(0)
        gram = sources.T @ sources if len(sources) >= sources.shape[1] else sources @ sources.T
        systems.append(np.linalg.cond(gram + alpha * np.eye(len(gram))))
    return mean_r2(fits, halves), mean_r2(fits[::-1], halves[::-1]), max(systems)


@pytest.mark.parametrize(("num_samples", "num_prototypes"), [(12, 3), (12, 20)])
def test_is_what_scikit_learn_gives(num_samples, num_prototypes):
    histograms = torch.rand(num_samples, num_prototypes, dtype=torch.float64)
    embeddings = torch.randn(num_samples, 4, dtype=torch.float64)
    first_half = torch.arange(num_samples) % 3 == 0
    statistics = expression_statistics(histograms, embeddings, 0.05, functional.Halves(first_half))
    assert [value.item() for value in statistics] == pytest.approx(
        reference(histograms, embeddings, 0.05, first_half)
    )


def test_cuts_in_the_middle_without_a_mask():
    histograms, embeddings = torch.rand(8, 3), torch.randn(8, 4)
    cut = expression_statistics(histograms, embeddings, 0.1)
    assert cut == expression_statistics(histograms, embeddings, 0.1, functional.Halves(torch.arange(8) < 4))


def test_carries_no_graph_that_a_record_would_keep():
    inputs = torch.rand(8, 3, requires_grad=True), torch.randn(8, 4, requires_grad=True)
    assert not any(value.requires_grad for value in expression_statistics(*inputs, 0.1))


@pytest.mark.parametrize("value", [0, 3])
def test_embeddings_that_are_all_alike_have_no_variance_to_explain(value):
    statistics = expression_statistics(torch.rand(8, 3), torch.full((8, 4), value).float(), 0.1)
    assert (statistics.fit_r2, statistics.transfer_r2) == (0, 0)
    assert statistics.condition_number.isfinite()


def test_histograms_that_are_all_alike_explain_nothing():
    statistics = expression_statistics(torch.ones(8, 3), torch.randn(8, 4), 0.1)
    assert (statistics.fit_r2, statistics.transfer_r2) == (0, 0)
    assert statistics.condition_number == 1


def test_the_transfer_is_that_of_functional():
    histograms, embeddings = torch.rand(8, 3), torch.randn(8, 4)
    expressed = functional.cross_batch_expression(histograms, embeddings, 0.1, intercept=True)
    expected = functional.transfer_r2(expressed, embeddings).mean()
    statistics = expression_statistics(histograms, embeddings, 0.1)
    torch.testing.assert_close(statistics.transfer_r2.float(), expected)
