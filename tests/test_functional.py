from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from pml_xbml import functional


def double(*shape, requires_grad=False):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=requires_grad)


def simplex(*shape):
    return torch.softmax(double(*shape), dim=-1)


def histograms_by_loop(features, prototypes, temperature, similarity):
    """Equation by equation in numpy: the reference for every faster way."""
    features, prototypes = features.numpy(), prototypes.numpy()
    result = np.zeros((len(features), len(prototypes)))
    for image, local_features in enumerate(features):
        for x in local_features:
            scores = []
            for v in prototypes:
                score = v @ x
                if similarity == "cosine":
                    score /= np.linalg.norm(v) * np.linalg.norm(x)
                scores.append(score / temperature)
            weights = np.exp(np.array(scores) - max(scores))
            result[image] += weights / weights.sum() / len(local_features)
    return torch.from_numpy(result)


def ridge_by_sklearn(histograms, embeddings, ridge, prior=0.0):
    residual = embeddings - histograms @ prior if torch.is_tensor(prior) else embeddings
    model = Ridge(alpha=ridge, fit_intercept=False, solver="svd").fit(histograms.numpy(), residual.numpy())
    return torch.from_numpy(np.atleast_2d(model.coef_).T) + prior


class TestHistograms:
    @pytest.mark.parametrize("similarity", ["cosine", "dot"])
    @pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
    def test_equal_a_loop_over_images_features_and_prototypes(self, similarity, temperature):
        features, prototypes = double(3, 7, 5), double(4, 5)
        expected = histograms_by_loop(features, prototypes, temperature, similarity)
        got = functional.histograms(features, prototypes, temperature, similarity)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)

    @given(
        batch=st.integers(1, 4),
        positions=st.integers(1, 9),
        channels=st.integers(1, 6),
        num_prototypes=st.integers(1, 8),
        temperature=st.floats(0.01, 10),
        similarity=st.sampled_from(functional.SIMILARITIES),
        dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
        seed=st.integers(0, 1000),
    )
    def test_lie_on_the_simplex_whatever_the_order_of_positions(
        self, batch, positions, channels, num_prototypes, temperature, similarity, dtype, seed
    ):
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(batch, positions, channels, generator=generator).to(dtype)
        prototypes = torch.randn(num_prototypes, channels, generator=generator).to(dtype)
        z = functional.histograms(features, prototypes, temperature, similarity)
        assert (z >= 0).all()
        torch.testing.assert_close(z.sum(1), torch.ones_like(z.sum(1)))
        shuffled = features[:, torch.randperm(positions, generator=generator)]
        torch.testing.assert_close(functional.histograms(shuffled, prototypes, temperature, similarity), z)

    @pytest.mark.parametrize("similarity", ["cosine", "dot"])
    def test_tend_to_the_argmax_histogram_as_the_temperature_falls(self, similarity):
        features, prototypes = double(4, 30, 6), double(5, 6)
        best = functional.hard_assignments(features, prototypes, similarity)
        claim_1 = torch.nn.functional.one_hot(best, 5).double().mean(1)
        distances = [
            (functional.histograms(features, prototypes, temperature, similarity) - claim_1).abs().max()
            for temperature in (1.0, 0.1, 0.01, 1e-5)
        ]
        assert distances == sorted(distances, reverse=True)
        torch.testing.assert_close(distances[-1], torch.tensor(0.0).double(), atol=1e-12, rtol=0)

    def test_hard_assignments_pick_the_best_cosine(self):
        features = torch.tensor([[[1.0, 0.1], [0.1, 5.0], [-3.0, 0.0]]])
        prototypes = torch.tensor([[10.0, 0.0], [0.0, 0.1], [-1.0, 0.1]])
        assert functional.hard_assignments(features, prototypes).tolist() == [[0, 1, 2]]

    @pytest.mark.parametrize(
        "function", [functional.assignments, functional.histograms, functional.average_and_histograms]
    )
    def test_by_default_the_temperature_is_a_tenth_and_the_similarity_the_cosine(self, function):
        features, prototypes = double(3, 7, 7), double(4, 7)
        expected = function(features, prototypes, 0.1, "cosine")
        torch.testing.assert_close(function(features, prototypes), expected, rtol=0, atol=0)

    @pytest.mark.parametrize("similarity", ["cosine", "dot"])
    def test_are_float32_under_autocast(self, similarity):
        features, prototypes = torch.randn(3, 7, 5), torch.randn(4, 5)
        expected = functional.histograms(features, prototypes, 0.1, similarity)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(functional.histograms(features, prototypes, 0.1, similarity), expected)

    def test_unknown_similarity_is_named(self):
        with pytest.raises(ValueError, match="cosine, dot, got 'euclid'"):
            functional.histograms(torch.ones(1, 1, 1), torch.ones(1, 1), similarity="euclid")

    @pytest.mark.parametrize("temperature", [0, -0.1, float("nan"), float("inf")])
    def test_refuse_a_temperature_that_is_not_positive_and_finite(self, temperature):
        for function in (functional.assignments, functional.histograms):
            with pytest.raises(
                ValueError, match=f"temperature must be positive and finite, got {temperature}"
            ):
                function(torch.ones(1, 1, 1), torch.ones(1, 1), temperature)

    @pytest.mark.parametrize("similarity", ["cosine", "dot"])
    def test_silenced_features_count_evenly_and_get_a_bounded_gradient(self, similarity):
        features = torch.zeros(2, 3, 4, requires_grad=True)
        z = functional.histograms(features, torch.eye(4), 0.1, similarity)
        torch.testing.assert_close(z, torch.full((2, 4), 0.25))
        z[:, 0].sum().backward()
        assert features.grad.abs().max() < 100


class TestLemma1:
    """‖Σ_i z_i ν_i − (1/n) Σ_j x_j‖ ≤ δ for unit features, unsmoothed z, prototypes by k-center."""

    def gap_and_radius(self, features, num_prototypes):
        features = functional.l2_normalize(features)
        points = features.flatten(0, 1)
        centers, radius = functional.greedy_k_center(points, num_prototypes)
        prototypes = points[centers]
        best = functional.hard_assignments(features, prototypes)
        z = torch.nn.functional.one_hot(best, num_prototypes).to(features).mean(1)
        return torch.linalg.vector_norm(z @ prototypes - features.mean(1), dim=1).max(), radius

    @pytest.mark.parametrize("num_prototypes", [1, 3, 16, 60])
    @pytest.mark.parametrize("seed", range(5))
    def test_on_random_features(self, num_prototypes, seed):
        torch.manual_seed(seed)
        gap, radius = self.gap_and_radius(double(4, 15, 6), num_prototypes)
        assert gap <= radius + 1e-12

    @pytest.mark.parametrize(
        "make_features",
        [
            lambda: torch.cat([double(1, 1, 4).expand(1, 40, 4), -double(1, 1, 4).expand(1, 1, 4)], 1),
            lambda: double(2, 20, 4) * torch.logspace(-6, 6, 20, dtype=torch.float64)[:, None],
            lambda: torch.ones(2, 20, 4).double() + 1e-7 * double(2, 20, 4),
            lambda: torch.eye(8).double().expand(3, 8, 8),
        ],
        ids=["one outlier", "norms over twelve decades", "nearly constant", "orthogonal"],
    )
    @pytest.mark.parametrize("num_prototypes", [1, 2, 7])
    def test_on_adversarial_features(self, make_features, num_prototypes):
        gap, radius = self.gap_and_radius(make_features(), num_prototypes)
        assert gap <= radius + 1e-12

    def test_closed_form_for_two_opposite_directions(self):
        features = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]], dtype=torch.float64)
        gap, radius = self.gap_and_radius(features, 1)
        assert radius == 2
        assert gap == pytest.approx(4 / 3)


class TestGreedyKCenter:
    def test_radius_is_the_largest_distance_to_the_nearest_center(self):
        points = double(50, 4)
        centers, radius = functional.greedy_k_center(points, 6)
        assert len(set(centers.tolist())) == 6
        expected = torch.cdist(points, points[centers]).min(1).values.max()
        torch.testing.assert_close(radius, expected, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("num_centers", [1, 2, 3])
    def test_radius_is_at_most_twice_the_smallest_possible(self, num_centers):
        points = double(10, 2)
        distances = torch.cdist(points, points)
        smallest = min(
            distances[list(chosen)].min(0).values.max() for chosen in combinations(range(10), num_centers)
        )
        _, radius = functional.greedy_k_center(points, num_centers)
        assert smallest - 1e-9 <= radius <= 2 * smallest

    def test_every_point_a_center_leaves_no_distance(self):
        assert functional.greedy_k_center(double(7, 3), 7)[1] == 0

    @pytest.mark.parametrize("num_centers", [0, 4])
    def test_refuses_more_centers_than_points(self, num_centers):
        with pytest.raises(ValueError, match=f"number of points, 3, got {num_centers}"):
            functional.greedy_k_center(double(3, 2), num_centers)


class TestRidgeFit:
    shapes = pytest.mark.parametrize(("num_samples", "num_prototypes"), [(30, 8), (8, 8), (8, 30), (1, 5)])

    @shapes
    @pytest.mark.parametrize("ridge", [1e-3, 0.05, 10.0])
    def test_equals_sklearn(self, num_samples, num_prototypes, ridge):
        z, y = simplex(num_samples, num_prototypes), double(num_samples, 4)
        got = functional.ridge_fit(z, y, ridge)
        torch.testing.assert_close(got, ridge_by_sklearn(z, y, ridge), rtol=1e-8, atol=1e-9)

    @shapes
    def test_equals_sklearn_with_a_prior(self, num_samples, num_prototypes):
        z, y, prior = simplex(num_samples, num_prototypes), double(num_samples, 4), double(num_prototypes, 4)
        got = functional.ridge_fit(z, y, 0.05, prior)
        torch.testing.assert_close(got, ridge_by_sklearn(z, y, 0.05, prior), rtol=1e-9, atol=1e-10)

    @shapes
    def test_primal_equals_dual(self, num_samples, num_prototypes):
        z, y = simplex(num_samples, num_prototypes), double(num_samples, 4)
        eye_m, eye_n = (torch.eye(n, dtype=torch.float64) for n in (num_prototypes, num_samples))
        primal = torch.linalg.solve(z.T @ z + 0.05 * eye_m, z.T @ y)
        dual = z.T @ torch.linalg.solve(z @ z.T + 0.05 * eye_n, y)
        torch.testing.assert_close(primal, dual, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(functional.ridge_fit(z, y, 0.05), primal, rtol=1e-9, atol=1e-10)

    @shapes
    @pytest.mark.parametrize("batch", [(), (9,)])
    def test_solves_the_smaller_system(self, monkeypatch, num_samples, num_prototypes, batch):
        solved = []
        add_ridge = functional.add_ridge
        monkeypatch.setattr(
            functional, "add_ridge", lambda gram, ridge: solved.append(gram.shape) or add_ridge(gram, ridge)
        )
        functional.ridge_fit(
            simplex(*batch, num_samples, num_prototypes), double(*batch, num_samples, 2), 0.1
        )
        size = min(num_samples, num_prototypes)
        assert solved == [(*batch, size, size)]

    @shapes
    def test_passes_gradcheck(self, num_samples, num_prototypes):
        z = simplex(min(num_samples, 6), min(num_prototypes, 9)).requires_grad_()
        y, prior = double(len(z), 2, requires_grad=True), double(z.shape[1], 2, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda *args: functional.ridge_fit(args[0], args[1], 0.05, args[2]), (z, y, prior)
        )

    def test_is_batched(self):
        z, y = simplex(2, 3, 10, 4), double(2, 3, 10, 5)
        fitted = functional.ridge_fit(z, y, 0.05)
        for index in np.ndindex(2, 3):
            torch.testing.assert_close(fitted[index], functional.ridge_fit(z[index], y[index], 0.05))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_solves_in_float64_under_autocast(self, dtype):
        z, y = simplex(40, 8).to(dtype), double(40, 4).to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            fitted = functional.ridge_fit(z, y, 1e-4)
            expressed = functional.express(z, fitted)
        assert fitted.dtype == expressed.dtype == torch.float64
        expected = ridge_by_sklearn(z.double(), y.double(), 1e-4)
        torch.testing.assert_close(fitted, expected, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(expressed, z.double() @ expected, rtol=1e-7, atol=1e-8)

    def test_a_ridge_below_the_resolution_of_float64_still_gives_a_finite_fit(self):
        z = (1e6 * torch.ones(64, 4)).double()
        fitted = functional.ridge_fit(z, double(64, 2), 1e-30)
        assert fitted.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_expression_keeps_the_precision_of_the_prototypes_under_autocast(self, dtype):
        z, fitted = simplex(6, 3), double(3, 4).to(dtype)
        expected = z.to(dtype) @ fitted
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(functional.express(z, fitted), expected)

    @pytest.mark.parametrize("function", [functional.ridge_fit, functional.cross_batch_expression])
    @pytest.mark.parametrize("ridge", [0, -1, float("nan"), float("inf")])
    def test_refuses_a_ridge_that_is_not_positive_and_finite(self, function, ridge):
        with pytest.raises(ValueError, match=f"positive and finite, got {ridge}"):
            function(simplex(4, 2), double(4, 2), ridge)

    def test_recursion_with_covariance_equals_one_fit_on_the_union(self):
        batches = [(simplex(9, 5), double(9, 3)) for _ in range(4)]
        fitted = torch.zeros(5, 3, dtype=torch.float64)
        precision = 0.05 * torch.eye(5, dtype=torch.float64)
        for z, y in batches:
            fitted, precision = functional.recursive_ridge_fit(z, y, fitted, precision)
        union = ridge_by_sklearn(*(torch.cat(parts) for parts in zip(*batches, strict=True)), 0.05)
        torch.testing.assert_close(fitted, union, rtol=1e-9, atol=1e-10)

    def test_recursion_with_a_prior_is_a_step_from_the_last_fit(self):
        (z1, y1), (z2, y2) = [(simplex(9, 5), double(9, 3)) for _ in range(2)]
        first = functional.ridge_fit(z1, y1, 0.05)
        second = functional.ridge_fit(z2, y2, 0.05, prior=first)
        # The gradient of ‖Y − ZA‖² + ε‖A − A_0‖² vanishes at the minimum.
        stationarity = z2.T @ (z2 @ second - y2) + 0.05 * (second - first)
        torch.testing.assert_close(stationarity, torch.zeros_like(stationarity), atol=1e-10, rtol=0)


class TestCrossBatchExpression:
    def by_sklearn(self, z, y, first_half, ridge):
        expressed = torch.empty_like(y)
        expressed[first_half] = z[first_half] @ ridge_by_sklearn(z[~first_half], y[~first_half], ridge)
        expressed[~first_half] = z[~first_half] @ ridge_by_sklearn(z[first_half], y[first_half], ridge)
        return expressed

    @pytest.mark.parametrize("num_prototypes", [3, 40])
    @pytest.mark.parametrize("num_first", [1, 5, 10, 19])
    def test_equals_sklearn_fits_of_the_two_halves(self, num_prototypes, num_first):
        z, y = simplex(20, num_prototypes), double(20, 4)
        first_half = torch.randperm(20) < num_first
        got = functional.cross_batch_expression(z, y, 0.05, functional.Halves(first_half))
        torch.testing.assert_close(got, self.by_sklearn(z, y, first_half, 0.05), rtol=1e-8, atol=1e-9)

    @pytest.mark.parametrize("num_prototypes", [3, 40])
    def test_takes_the_middle_of_the_batch_by_default(self, num_prototypes):
        z, y = simplex(20, num_prototypes), double(20, 4)
        expected = self.by_sklearn(z, y, torch.arange(20) < 10, 0.05)
        torch.testing.assert_close(
            functional.cross_batch_expression(z, y, 0.05), expected, rtol=1e-8, atol=1e-9
        )

    @pytest.mark.parametrize("num_prototypes", [2, 8])
    @pytest.mark.parametrize("first_half", [None, torch.tensor([True, False, False, True, False, True])])
    def test_passes_gradcheck_from_histograms_to_expression(self, first_half, num_prototypes):
        halves = functional.Halves(first_half)

        def expressed(features, prototypes, embeddings):
            z = functional.l2_normalize(functional.histograms(features, prototypes, 0.5))
            return functional.cross_batch_expression(z, functional.l2_normalize(embeddings), 0.05, halves)

        inputs = double(6, 3, 4), double(num_prototypes, 4), double(6, 2)
        assert torch.autograd.gradcheck(expressed, [tensor.requires_grad_() for tensor in inputs])

    def test_a_half_expresses_itself_exactly_without_a_ridge(self):
        z, y = functional.l2_normalize(simplex(6, 10)), double(6, 4)
        itself = functional.express(z, functional.ridge_fit(z, y, 1e-12))
        torch.testing.assert_close(itself, y, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_keeps_the_dtype_of_the_embeddings(self, dtype):
        assert functional.cross_batch_expression(simplex(6, 3), double(6, 2).to(dtype), 0.05).dtype == dtype

    @pytest.mark.parametrize("num_samples", [8, 64, 512])
    @pytest.mark.parametrize("ridge", [1e-6, 1e-4])
    def test_duplicated_float32_histograms_are_fitted_to_a_thousandth(self, num_samples, ridge):
        z = functional.l2_normalize(simplex(4, 64)).float().repeat(num_samples // 4, 1)
        y = functional.l2_normalize(double(num_samples, 8)).float()
        got = functional.cross_batch_expression(z, y, ridge).double()
        first_half = torch.arange(num_samples) < num_samples // 2
        expected = self.by_sklearn(z.double(), y.double(), first_half, ridge)
        assert (got - expected).norm() / expected.norm() < 1e-3


class TestIntercept:
    """Against sklearn's ``Ridge(fit_intercept=True)``, whose α is ours times the histograms' variance."""

    sizes = pytest.mark.parametrize(("num_samples", "num_prototypes"), [(20, 3), (20, 40)])
    halves = pytest.mark.parametrize(
        "in_first", [None, torch.arange(20) % 3 == 0, torch.arange(20) < 2], ids=["middle", "mixed", "two"]
    )

    def fit(self, z, y, ridge):
        alpha = ridge * ((z - z.mean(0)) ** 2).sum(1).mean()
        return Ridge(alpha=alpha.item(), fit_intercept=True, solver="svd").fit(z.numpy(), y.numpy())

    def expression(self, z, y, ridge, in_first):
        in_first = torch.arange(len(z)) < len(z) // 2 if in_first is None else in_first
        expressed = torch.empty_like(y)
        for half in (in_first, ~in_first):
            fit = self.fit(z[~half], y[~half], ridge)
            expressed[half] = torch.from_numpy(fit.predict(z[half].numpy())) - y[~half].mean(0)
        return expressed

    @sizes
    @pytest.mark.parametrize("ridge", [1e-3, 0.05, 10.0])
    def test_fit_equals_sklearn(self, num_samples, num_prototypes, ridge):
        z, y = simplex(num_samples, num_prototypes), 5 + double(num_samples, 4)
        expected = torch.from_numpy(self.fit(z, y, ridge).coef_.T)
        fitted = functional.ridge_fit(z, y, ridge, intercept=True)
        torch.testing.assert_close(fitted, expected, rtol=1e-8, atol=1e-9)

    def test_fit_with_a_prior_is_a_minimum(self):
        z, y, prior = simplex(9, 5), 5 + double(9, 3), double(5, 3)
        fitted = functional.ridge_fit(z, y, 0.05, prior, intercept=True)
        z, y = z - z.mean(0), y - y.mean(0)
        alpha = 0.05 * z.square().sum(1).mean()
        stationarity = z.T @ (z @ fitted - y) + alpha * (fitted - prior)
        torch.testing.assert_close(stationarity, torch.zeros_like(stationarity), atol=1e-10, rtol=0)

    def test_fit_to_histograms_that_are_alike_is_the_prior(self):
        """Alike to a twenty-thousandth, which an absolute ridge of 1e-6 would take for a signal."""
        z, prior = 1 + 5e-5 * double(100, 5), double(5, 3)
        fitted = functional.ridge_fit(z, double(100, 3), 1e-6, prior, intercept=True)
        assert torch.equal(fitted, prior)
        without_prior = functional.ridge_fit(z, double(100, 3), 1e-6, intercept=True)
        assert torch.equal(without_prior, torch.zeros_like(prior))

    @sizes
    def test_fit_is_batched(self, num_samples, num_prototypes):
        z, y = simplex(2, 3, num_samples, num_prototypes), 5 + double(2, 3, num_samples, 4)
        fitted = functional.ridge_fit(z, y, 0.05, intercept=True)
        for index in np.ndindex(2, 3):
            alone = functional.ridge_fit(z[index], y[index], 0.05, intercept=True)
            torch.testing.assert_close(fitted[index], alone)

    @sizes
    @halves
    @pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
    def test_expression_equals_sklearn_fits_of_the_two_halves(
        self, num_samples, num_prototypes, in_first, scale
    ):
        z, y = scale * simplex(num_samples, num_prototypes), 5 + double(num_samples, 4)
        got = functional.cross_batch_expression(z, y, 0.05, functional.Halves(in_first), intercept=True)
        expected = self.expression(z, y, 0.05, in_first)
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)

    @sizes
    @halves
    def test_float32_embeddings_far_from_zero_are_fitted_by_their_deviations(
        self, num_samples, num_prototypes, in_first
    ):
        """Multiplied as they are, they would lose four of float32's seven digits."""
        z, y = simplex(num_samples, num_prototypes), (1e4 + double(num_samples, 4)).float()
        got = functional.cross_batch_expression(z, y, 0.05, functional.Halves(in_first), intercept=True)
        expected = self.expression(z, y.double(), 0.05, in_first)
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("num_prototypes", [2, 8])
    @pytest.mark.parametrize("in_first", [None, torch.tensor([True, False, False, True, False, True])])
    def test_expression_passes_gradcheck(self, num_prototypes, in_first):
        halves = functional.Halves(in_first)
        z, y = simplex(6, num_prototypes).requires_grad_(), double(6, 2, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda z, y: functional.cross_batch_expression(z, y, 0.05, halves, intercept=True), (z, y)
        )

    @pytest.mark.parametrize("num_prototypes", [2, 8])
    def test_fit_passes_gradcheck(self, num_prototypes):
        z, y = simplex(5, num_prototypes).requires_grad_(), double(5, 2, requires_grad=True)
        prior = double(num_prototypes, 2, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda z, y, prior: functional.ridge_fit(z, y, 0.05, prior, intercept=True), (z, y, prior)
        )

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32_under_autocast(self, dtype):
        z, y = simplex(20, 5).to(dtype), (5 + double(20, 4)).to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = functional.cross_batch_expression(z, y, 0.05, intercept=True)
        expected = self.expression(z.double(), y.double(), 0.05, None)
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected.to(dtype), rtol=1e-2, atol=1e-3)

    @pytest.mark.parametrize("num_prototypes", [2, 8])
    @pytest.mark.parametrize("noise", [0, 1e-7])
    @pytest.mark.parametrize("in_first", [None, torch.arange(6) < 3, torch.arange(6) < 1])
    def test_a_half_without_variance_expresses_by_zeros_and_gets_finite_gradients(
        self, num_prototypes, noise, in_first
    ):
        z, y = simplex(6, num_prototypes).float(), torch.randn(6, 3, requires_grad=True)
        z[:3] = z[0] * (1 + noise * torch.randn(3, 1))
        z.requires_grad_()
        expressed = functional.cross_batch_expression(z, y, 0.05, functional.Halves(in_first), intercept=True)
        second = slice(1, None) if in_first is not None and in_first.sum() == 1 else slice(3, None)
        assert torch.equal(expressed[second], torch.zeros_like(expressed[second]))
        for gradient in torch.autograd.grad(expressed.square().sum(), (z, y)):
            assert gradient.abs().max() < 1e4

    def test_silenced_histograms_give_zeros_and_finite_gradients(self):
        z, y = torch.zeros(6, 4, requires_grad=True), torch.randn(6, 3, requires_grad=True)
        expressed = functional.cross_batch_expression(z, y, 0.05, intercept=True)
        assert torch.equal(expressed, torch.zeros(6, 3))
        for gradient in torch.autograd.grad(expressed.sum(), (z, y)):
            assert torch.equal(gradient, torch.zeros_like(gradient))

    def test_a_batch_of_one_class_gives_zeros(self):
        halves = functional.Halves(torch.ones(6, dtype=torch.bool))
        expressed = functional.cross_batch_expression(simplex(6, 4), double(6, 3), 0.05, halves, True)
        assert torch.equal(expressed, torch.zeros_like(expressed))


class TestTransferR2:
    @TestIntercept.halves
    def test_equals_the_definition(self, in_first):
        z, y = simplex(20, 3), 5 + double(20, 4)
        halves = functional.Halves(in_first)
        expressed = functional.cross_batch_expression(z, y, 0.05, halves, intercept=True)
        for got, rows, ours in zip(
            functional.transfer_r2(expressed, y, halves),
            halves.split(y),
            halves.split(expressed),
            strict=True,
        ):
            deviation = rows - rows.mean(0)
            expected = 1 - (deviation - ours).square().sum() / deviation.square().sum()
            torch.testing.assert_close(got, expected)

    @TestIntercept.halves
    def test_is_one_for_an_exact_fit_and_zero_for_a_useless_one(self, in_first):
        halves, y = functional.Halves(in_first), 5 + double(20, 4)
        exact = torch.empty_like(y)
        members = torch.arange(20) < 10 if in_first is None else in_first
        for half in (members, ~members):
            exact[half] = y[half] - y[half].mean(0)
        torch.testing.assert_close(functional.transfer_r2(exact, y, halves), torch.ones(2).double())
        useless = functional.transfer_r2(torch.zeros_like(y), y, halves)
        torch.testing.assert_close(useless, torch.zeros(2).double())

    def test_of_a_linear_relation_approaches_one(self):
        z = simplex(40, 3)
        y = 7 + z @ double(3, 4)
        expressed = functional.cross_batch_expression(z, y, 1e-6, intercept=True)
        # The halves' means differ, and ȳ is not added: what is left is that difference.
        middle = y[:20].mean(0) - y[20:].mean(0)
        expected = 1 - 20 * middle.square().sum() / torch.stack(
            [(half - half.mean(0)).square().sum() for half in (y[:20], y[20:])]
        )
        torch.testing.assert_close(functional.transfer_r2(expressed, y), expected, rtol=1e-4, atol=1e-4)

    def test_is_zero_for_embeddings_that_are_all_alike(self):
        y = torch.ones(6, 3, requires_grad=True)
        r2 = functional.transfer_r2(torch.randn(6, 3), y)
        assert torch.equal(r2, torch.zeros(2))
        (gradient,) = torch.autograd.grad(r2.sum(), y)
        assert torch.equal(gradient, torch.zeros(6, 3))
