import pytest
import torch

from pml_xbml._kernels import ops


def plain_unit_vectors(vectors):
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)


def double(*shape, requires_grad=False):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=requires_grad)


class TestUnitVectors:
    @pytest.mark.parametrize("is_strided", [False, True])
    def test_equal_the_plain_form_with_its_gradient(self, is_strided):
        vectors = (double(3, 4, 5).mT if is_strided else double(3, 5, 4)).requires_grad_()
        upstream = double(3, 5, 4)
        unit, expected = ops.UnitVectors.apply(vectors), plain_unit_vectors(vectors)
        torch.testing.assert_close(unit, expected)
        gradients = [torch.autograd.grad(values, vectors, upstream) for values in (unit, expected)]
        torch.testing.assert_close(*gradients)

    def test_pass_gradcheck(self):
        assert torch.autograd.gradcheck(ops.UnitVectors.apply, double(4, 3, requires_grad=True))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_are_float32_under_autocast(self, dtype):
        """A norm of 1,000 has a square that float16 cannot hold."""
        vectors = (1000 * torch.nn.functional.normalize(torch.randn(8, 40))).requires_grad_()
        upstream = torch.randn(8, 40)
        unit = ops.UnitVectors.apply(vectors)
        expected = unit, *torch.autograd.grad(unit, vectors, upstream)
        with torch.autocast("cpu", dtype=dtype):
            unit = ops.UnitVectors.apply(vectors)
            got = unit, *torch.autograd.grad(unit, vectors, upstream)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)

    def test_refuse_a_second_derivative(self):
        vectors = double(4, 3, requires_grad=True)
        loss = ops.UnitVectors.apply(vectors)[:, 0].square().sum()
        (gradient,) = torch.autograd.grad(loss, vectors, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()

    def test_without_direction_stay_zero_with_their_gradient(self):
        vectors = torch.tensor([[0.0, 0.0], [1e-13, 0.0], [1e-11, 0.0]], requires_grad=True)
        unit = ops.UnitVectors.apply(vectors)
        assert unit.tolist() == [[0, 0], [0, 0], [1, 0]]
        (gradient,) = torch.autograd.grad(unit.sum(), vectors)
        assert torch.equal(gradient[:2], torch.zeros(2, 2))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("norm", [1e-3, 1e3])
    def test_of_half_precision_are_computed_in_float32(self, dtype, norm):
        vectors = (norm * torch.randn(8, 400) / 20).to(dtype).requires_grad_()
        upstream = (1e-3 * torch.randn(8, 400)).to(dtype)
        unit, expected = ops.UnitVectors.apply(vectors), plain_unit_vectors(vectors.float())
        assert unit.dtype == dtype
        torch.testing.assert_close(unit, expected.to(dtype))
        (gradient,), (plain_gradient,) = (
            torch.autograd.grad(values, vectors, upstream.to(values.dtype)) for values in (unit, expected)
        )
        torch.testing.assert_close(gradient, plain_gradient)


class TestSystems:
    def system(self):
        rows = double(2, 7, 4)
        return rows.mT @ rows + 0.1 * torch.eye(4, dtype=torch.float64)

    def test_solve_equals_an_lu_decomposition(self):
        system, right = self.system(), double(2, 4, 3)
        solved = ops.solve(ops.inverse_factor(system), right)
        torch.testing.assert_close(solved, torch.linalg.solve(system, right))

    def test_solve_transposed_solves_from_the_right(self):
        system, left = self.system(), double(2, 3, 4)
        solved = ops.solve_transposed(ops.inverse_factor(system), left)
        torch.testing.assert_close(solved, torch.linalg.solve(system, left, left=False))

    def test_add_ridge_adds_one_ridge_a_system(self):
        gram, ridge = self.system(), torch.tensor([[0.5], [2.0]], dtype=torch.float64)
        expected = gram + ridge.unsqueeze(-1) * torch.eye(4, dtype=torch.float64)
        torch.testing.assert_close(ops.add_ridge(gram.clone(), ridge), expected)

    def test_add_ridge_adds_no_less_than_float64_resolves(self):
        added = ops.add_ridge(torch.full((3, 3), 1e6).double(), torch.full((1,), 1e-30).double())
        expected = 1e6 + 64 * torch.finfo(torch.float64).eps * 3e6
        torch.testing.assert_close(
            added.diagonal(), torch.full((3,), expected, dtype=torch.float64), rtol=0, atol=2e-10
        )
        assert torch.linalg.cholesky_ex(added).info == 0

    def test_add_ridge_looks_at_the_trace_of_each_system(self):
        gram = torch.stack([torch.full((3, 3), value).double() for value in (1e6, 1e-6)])
        added = ops.add_ridge(gram.clone(), torch.full((2, 1), 1e-30).double())
        alone = [ops.add_ridge(system.clone(), torch.full((1,), 1e-30).double()) for system in gram]
        assert torch.equal(added, torch.stack(alone))


class TestMeanAndVariance:
    @pytest.mark.parametrize("members", [None, [True, True, True], [True, False, True], [False, True, False]])
    def test_equal_those_of_numpy(self, members):
        rows = double(2, 3, 4)
        mask = None if members is None else torch.tensor(members).expand(2, 3).unsqueeze(-1)
        mean, variance = ops.mean_and_variance(rows, mask)
        chosen = rows if members is None else rows[:, members]
        torch.testing.assert_close(mean, chosen.mean(1, keepdim=True))
        expected = chosen.var(1, correction=0).sum(-1)[:, None, None]
        torch.testing.assert_close(variance, expected)

    def test_of_no_rows_are_zero(self):
        mean, variance = ops.mean_and_variance(double(3, 4), torch.zeros(3, 1, dtype=torch.bool))
        assert torch.equal(mean, torch.zeros_like(mean))
        assert variance == 0

    @pytest.mark.parametrize(("deviation", "counts"), [(2e-4, True), (5e-5, False)])
    def test_deviations_below_a_ten_thousandth_of_the_length_are_rounding_errors(self, deviation, counts):
        rows = torch.tensor([[1 + deviation], [1 - deviation]], dtype=torch.float64)
        _, variance = ops.mean_and_variance(rows)
        torch.testing.assert_close(variance.item(), deviation**2 if counts else 0.0, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32), (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32), (torch.float64, torch.float64),
    ],
)  # fmt: skip
def test_at_least_float32(dtype, expected):
    assert ops.at_least_float32(torch.ones(1, dtype=dtype)).dtype == expected
