import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from pml_xbml import functional
from pml_xbml.losses._statistics import expression_statistics


def reference(histograms, embeddings, ridge, first_half):
    halves = [(histograms[half].numpy(), embeddings[half].numpy()) for half in (first_half, ~first_half)]
    fits = [Ridge(alpha=ridge, fit_intercept=False).fit(*half) for half in halves]

    def mean_r2(fits):
        predicted = [fit.predict(sources) for fit, (sources, _) in zip(fits, halves, strict=True)]
        return np.mean(
            [
                r2_score(targets, values, multioutput="variance_weighted")
                for values, (_, targets) in zip(predicted, halves, strict=True)
            ]
        )

    systems = []
    for sources, _ in halves:
        gram = sources.T @ sources if len(sources) >= sources.shape[1] else sources @ sources.T
        systems.append(np.linalg.cond(gram + ridge * np.eye(len(gram))))
    return mean_r2(fits), mean_r2(fits[::-1]), max(systems)


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


@pytest.mark.parametrize("value", [0, 3])
def test_embeddings_that_are_all_alike_have_no_variance_to_explain(value):
    statistics = expression_statistics(torch.rand(8, 3), torch.full((8, 4), value).float(), 0.1)
    assert (statistics.fit_r2, statistics.transfer_r2) == (0, 0)
    assert statistics.condition_number.isfinite()
