"""Fit and prediction against autograd through the plain formula."""

import pytest
import torch

from pml_xbml._kernels.expression import Dual, Primal, ridge_prediction

FORMS = pytest.mark.parametrize("form", [Primal, Dual])


def double(*shape, requires_grad=False):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=requires_grad)


def plain(fitted, targets, others, ridge):
    identity = torch.eye(fitted.shape[2], dtype=torch.float64)
    system = fitted.mT @ fitted + ridge[:, None, None] * identity
    return others @ torch.linalg.solve(system, fitted.mT @ targets.double())


def problem(num_fitted=6, num_prototypes=4, num_others=5):
    inputs = (
        double(2, num_fitted, num_prototypes),
        double(2, num_fitted, 3),
        double(2, num_others, num_prototypes),
    )
    return [values.requires_grad_() for values in (*inputs, torch.tensor([0.1, 0.7]).double())]


@FORMS
@pytest.mark.parametrize(("num_fitted", "num_prototypes"), [(6, 4), (4, 6), (1, 3), (3, 1)])
def test_equals_the_plain_form_with_its_gradients(form, num_fitted, num_prototypes):
    inputs = problem(num_fitted, num_prototypes)
    upstream = double(2, 5, 3)
    predicted, expected = form.apply(*inputs), plain(*inputs)
    torch.testing.assert_close(predicted, expected)
    gradients = [torch.autograd.grad(values, inputs, upstream) for values in (predicted, expected)]
    torch.testing.assert_close(*gradients)


@FORMS
def test_passes_gradcheck(form):
    assert torch.autograd.gradcheck(form.apply, problem())


@pytest.mark.parametrize(("num_fitted", "form"), [(4, Dual), (5, Dual), (6, Primal)])
def test_solves_the_smaller_system(num_fitted, form):
    predicted = ridge_prediction(*problem(num_fitted, num_prototypes=5))
    assert type(predicted.grad_fn).__name__ == f"{form.__name__}Backward"


@FORMS
def test_multiplies_the_embeddings_in_their_precision(form):
    fitted, targets, others, ridge = problem()
    targets = targets.detach().float().requires_grad_()
    predicted = form.apply(fitted, targets, others, ridge)
    assert predicted.dtype == torch.float32
    gradients = torch.autograd.grad(predicted.sum(), (fitted, targets, others, ridge))
    assert [gradient.dtype for gradient in gradients] == [
        values.dtype for values in (fitted, targets, others, ridge)
    ]
    expected = torch.autograd.grad(
        plain(fitted, targets, others, ridge).sum(), (fitted, targets, others, ridge)
    )
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_prototypes", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_same_under_autocast(num_prototypes, dtype):
    fitted, targets, others, ridge = problem(num_prototypes=num_prototypes)
    inputs = fitted, targets.detach().to(dtype).requires_grad_(), others, ridge
    upstream = double(2, 5, 3).to(dtype)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            predicted = ridge_prediction(*inputs)
            results.append((predicted, *torch.autograd.grad(predicted, inputs, upstream)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@FORMS
def test_refuses_a_second_derivative(form):
    inputs = problem()
    (gradient,) = torch.autograd.grad(form.apply(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
