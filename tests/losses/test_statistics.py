import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from pml_xbml import functional
from pml_xbml.losses._statistics import expression_statistics


def reference(histograms, embeddings, ridge, first_half):
    halves = [(histograms[half].numpy(), embeddings[half].numpy()) for half in (first_half, ~first_half)]
    fits = [Ridge(alpha=ridge, fit_intercept=False).fit(*half) for half in halves]

    def error(fit, half):
        return np.linalg.norm(fit.predict(half[0]) - half[1]) / np.linalg.norm(half[1])

    fit_error = np.mean([error(fits[0], halves[0]), error(fits[1], halves[1])])
    expression_error = np.mean([error(fits[1], halves[0]), error(fits[0], halves[1])])
    systems = []
    for sources, _ in halves:
        gram = sources.T @ sources if len(sources) >= sources.shape[1] else sources @ sources.T
        systems.append(np.linalg.cond(gram + ridge * np.eye(len(gram))))
    return fit_error, expression_error, expression_error - fit_error, max(systems)


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


def test_embeddings_of_zero_give_finite_numbers():
    statistics = expression_statistics(torch.rand(8, 3), torch.zeros(8, 4), 0.1)
    assert all(value.isfinite() for value in statistics)
