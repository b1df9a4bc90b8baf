"""The fit and its gradient against float64 references, where the systems are nearly singular."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pml_xbml import functional

EMBEDDING_SIZE = 3
REACH = 1e-3


def problem(num_samples, num_prototypes, num_distinct, concentration, seed):
    """Histograms of which only a few differ, embeddings, and a gradient that reaches the fit; all float32."""
    generator = np.random.default_rng(seed)
    num_distinct = min(num_distinct, num_samples)
    logits = concentration * generator.standard_normal((num_distinct, num_prototypes))
    distinct = np.exp(logits - logits.max(axis=1, keepdims=True))
    distinct /= np.linalg.norm(distinct, axis=1, keepdims=True)
    group = np.arange(num_samples) % num_distinct
    embeddings = generator.standard_normal((num_samples, EMBEDDING_SIZE))
    gradient = generator.standard_normal((num_prototypes, EMBEDDING_SIZE))
    return distinct.astype(np.float32), group, embeddings.astype(np.float32), gradient.astype(np.float32)


def reference(distinct, group, embeddings, gradient, ridge):
    """A and the gradients of <A, gradient> to Z and Y, by the singular values of Z.

    Z = U S Vᵀ, A = V S/(S²+ε) Uᵀ Y, B = (ZᵀZ + εI)⁻¹ ∂A. S and V of Z are those of its distinct rows, each
    times the root of how often it comes, so that large problems with few distinct rows cost little.
    """
    distinct, embeddings, gradient = (
        values.astype(np.float64) for values in (distinct, embeddings, gradient)
    )
    root_counts = np.sqrt(np.bincount(group))[:, None]
    left, singular, right = scipy.linalg.svd(root_counts * distinct, full_matrices=False)
    left = (left / root_counts)[group]
    fitted = right.T @ ((singular / (singular**2 + ridge))[:, None] * (left.T @ embeddings))
    projected = right @ gradient
    to_embeddings = left @ ((singular / (singular**2 + ridge))[:, None] * projected)
    solved = right.T @ (projected / (singular**2 + ridge)[:, None]) + (gradient - right.T @ projected) / ridge
    residual = embeddings - left @ ((singular**2 / (singular**2 + ridge))[:, None] * (left.T @ embeddings))
    to_histograms = residual @ solved.T - to_embeddings @ fitted.T
    return fitted, to_histograms, to_embeddings


def relative_errors(distinct, group, embeddings, gradient, ridge):
    """Of the fit, and of its gradients to the histograms and to the embeddings."""
    histograms = torch.from_numpy(distinct[group]).requires_grad_()
    targets = torch.from_numpy(embeddings).requires_grad_()
    fitted = functional.ridge_fit(histograms, targets, ridge)
    gradients = torch.autograd.grad((fitted * torch.from_numpy(gradient)).sum(), (histograms, targets))
    computed = [values.detach().double().numpy() for values in (fitted, *gradients)]
    expected = reference(distinct, group, embeddings, gradient, ridge)
    return [
        np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        for ours, theirs in zip(computed, expected, strict=True)
    ]


def relative_errors_of_the_expression(first, second, ridge):
    """Of Ŷ = (Z_1 A_2, Z_2 A_1), and of its gradients to all histograms and to all embeddings."""
    histograms = torch.from_numpy(np.concatenate([half[0][half[1]] for half in (first, second)]))
    embeddings = torch.from_numpy(np.concatenate([half[2] for half in (first, second)]))
    upstream = torch.randn_like(embeddings)
    histograms.requires_grad_()
    embeddings.requires_grad_()
    expressed = functional.cross_batch_expression(histograms, embeddings, ridge)
    gradients = torch.autograd.grad((expressed * upstream).sum(), (histograms, embeddings))
    computed = [values.detach().double().numpy() for values in (expressed, *gradients)]

    rows = [half[0][half[1]].astype(np.float64) for half in (first, second)]
    to_expressed = [half.double().numpy() for half in upstream.chunk(2)]
    fits = [
        reference(*half[:3], rows[1 - side].T @ to_expressed[1 - side], ridge)
        for side, half in enumerate((first, second))
    ]
    expected = [
        np.concatenate(parts)
        for parts in zip(
            *(
                (
                    rows[side] @ fits[1 - side][0],
                    fits[side][1] + to_expressed[side] @ fits[1 - side][0].T,
                    fits[side][2],
                )
                for side in (0, 1)
            ),
            strict=True,
        )
    ]
    return [
        np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        for ours, theirs in zip(computed, expected, strict=True)
    ]


def test_the_reference_solves_the_augmented_least_squares_problem():
    distinct, group, embeddings, gradient = problem(12, 5, 7, 1.0, seed=0)
    augmented = np.concatenate([distinct[group], np.sqrt(0.01) * np.eye(5)])
    targets = np.concatenate([embeddings, np.zeros((5, EMBEDDING_SIZE))])
    expected, *_ = np.linalg.lstsq(augmented, targets, rcond=None)
    fitted, *_ = reference(distinct, group, embeddings, gradient, ridge=0.01)
    np.testing.assert_allclose(fitted, expected, rtol=1e-10)


powers_of_two = st.integers(0, 12).map(lambda exponent: 2**exponent)


@settings(max_examples=150)
@given(
    num_samples=powers_of_two,
    num_prototypes=powers_of_two,
    num_distinct=powers_of_two,
    concentration=st.sampled_from((0.01, 1.0, 10.0)),
    ridge=st.sampled_from((1e-6, 1e-5, 1e-4, 0.05)),
    seed=st.integers(0, 100),
)
def test_relative_error_stays_small(num_samples, num_prototypes, num_distinct, concentration, ridge, seed):
    # The cost grows with the smaller size squared.
    if min(num_samples, num_prototypes) > 256:
        num_samples = 256
    given_problem = problem(num_samples, num_prototypes, min(num_distinct, 256), concentration, seed)
    assert max(relative_errors(*given_problem, ridge)) < REACH
    another = problem(num_samples, num_prototypes, min(num_distinct, 256), concentration, seed + 1)
    assert max(relative_errors_of_the_expression(given_problem, another, ridge)) < REACH


@pytest.mark.parametrize("concentration", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("num_distinct", [1, 16, 4096])
@pytest.mark.parametrize(
    ("num_samples", "num_prototypes"), [(1, 1), (4096, 1), (1, 4096), (4096, 64), (64, 4096)]
)
def test_relative_error_stays_small_at_the_limits(num_samples, num_prototypes, num_distinct, concentration):
    given_problem = problem(num_samples, num_prototypes, num_distinct, concentration, seed=0)
    assert max(relative_errors(*given_problem, ridge=1e-6)) < REACH
    another = problem(num_samples, num_prototypes, num_distinct, concentration, seed=1)
    assert max(relative_errors_of_the_expression(given_problem, another, ridge=1e-6)) < REACH


def test_relative_error_stays_small_for_4096_samples_and_prototypes():
    given_problem = problem(4096, 4096, 16, 1.0, seed=0)
    assert max(relative_errors(*given_problem, ridge=1e-6)) < REACH


@pytest.mark.parametrize("seed", range(3))
def test_halves_of_one_and_the_same_histogram_do_not_spoil_the_gradients(seed):
    # The explicit inverse of the dual system is wrong by a quarter here.
    distinct, *first = problem(128, 256, 1, 1.0, seed)
    _, *second = problem(128, 256, 1, 1.0, seed + 10)
    errors = relative_errors_of_the_expression((distinct, *first), (distinct, *second), ridge=1e-6)
    assert max(errors) < REACH


@pytest.mark.parametrize("concentration", [0.01, 1.0, 10.0])
@pytest.mark.parametrize(("num_samples", "num_prototypes"), [(128, 256), (128, 16), (16, 16)])
@pytest.mark.parametrize("ridge", [1e-6, 1e-4, 0.05])
def test_relative_error_of_a_fit_with_an_intercept_stays_small(
    num_samples, num_prototypes, concentration, ridge
):
    """Of float32 embeddings whose mean is ten times their deviation, against autograd in float64."""
    halves = [problem(num_samples, num_prototypes, 16, concentration, seed) for seed in (0, 1)]
    z = torch.from_numpy(np.concatenate([half[0][half[1]] for half in halves])).requires_grad_()
    y = (10 + torch.from_numpy(np.concatenate([half[2] for half in halves]))).requires_grad_()
    upstream = torch.randn_like(y)
    computed = functional.cross_batch_expression(z, y, ridge, intercept=True)
    gradients = torch.autograd.grad(computed, (z, y), upstream)

    precise_z, precise_y = (values.detach().double().requires_grad_() for values in (z, y))
    expected = []
    for fitted, other in (
        (slice(num_samples, None), slice(num_samples)),
        (slice(num_samples), slice(num_samples, None)),
    ):
        mean = precise_z[fitted].mean(0)
        centered, targets = precise_z[fitted] - mean, precise_y[fitted] - precise_y[fitted].mean(0)
        scale = centered.square().sum(1).mean().rsqrt()
        rows = scale * centered
        dual = rows @ rows.T + ridge * torch.eye(num_samples, dtype=torch.float64)
        expected.append(scale * (precise_z[other] - mean) @ (rows.T @ torch.linalg.solve(dual, targets)))
    expected = torch.cat(expected)
    expected_gradients = torch.autograd.grad(expected, (precise_z, precise_y), upstream.double())
    for ours, theirs in zip((computed, *gradients), (expected, *expected_gradients), strict=True):
        assert (ours.double() - theirs).norm() / theirs.norm() < REACH
