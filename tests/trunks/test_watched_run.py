import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pml_xbml.trunks._watched_run import Call, are_close, watched_run

MAPS, TOKENS = (2, 3, 4, 4), (2, 9, 5)


@pytest.mark.parametrize(
    ("shape", "operation", "noted"),
    [
        # whether it is an average, and whether it is one of all positions
        (MAPS, lambda maps: maps.mean((2, 3)), [(True, True)]),
        (MAPS, lambda maps: maps.mean((-1, -2), keepdim=True), [(True, True)]),
        (MAPS, lambda maps: maps.mean((1, 2)), [(True, True)]),
        (MAPS, lambda maps: maps.amax((2, 3)), [(False, True)]),
        (MAPS, lambda maps: F.adaptive_avg_pool2d(maps, 1), [(True, True)]),
        (MAPS, lambda maps: F.adaptive_max_pool2d(maps, 1), [(False, True)]),
        (MAPS, lambda maps: F.avg_pool2d(maps, 4), [(True, True)]),
        (MAPS, lambda maps: F.avg_pool2d(maps, 3), [(True, False)]),
        (MAPS, lambda maps: F.avg_pool2d(maps, (4, 3)), [(True, False)]),
        (MAPS, lambda maps: F.max_pool2d(maps, 4), [(False, True)]),
        (MAPS, lambda maps: F.avg_pool2d(F.avg_pool2d(maps, 2), 2), [(True, True)]),
        (MAPS, lambda maps: F.avg_pool2d(maps, 2), []),
        (MAPS, lambda maps: F.adaptive_avg_pool2d(maps, 2), []),
        (MAPS, lambda maps: F.adaptive_max_pool2d(maps, (1, 2)), []),
        (MAPS, lambda maps: F.adaptive_avg_pool2d(maps, (2, 1)), []),
        (MAPS, lambda maps: maps.mean(1), []),
        (MAPS, lambda maps: maps.mean((1, 2, 3)), []),
        (MAPS, lambda maps: maps.mean(), []),
        (MAPS, lambda maps: maps.sum((2, 3)), []),
        ((2, 3, 1, 1), lambda maps: maps.mean((2, 3)), []),
        (TOKENS, lambda tokens: tokens.mean(1), [(True, True)]),
        (TOKENS, lambda tokens: tokens.mean(1, keepdim=True), [(True, True)]),
        (TOKENS, lambda tokens: tokens.mean(-1), [(True, True)]),
        (TOKENS, lambda tokens: tokens.max(1), [(False, True)]),
        (TOKENS, lambda tokens: tokens.mean(2, keepdim=True), []),
        (TOKENS, lambda tokens: tokens.mean((1, 2)), []),
        (TOKENS, lambda tokens: F.avg_pool2d(tokens, (9, 5)), []),
        ((4, 5), lambda vectors: vectors.mean(1), []),
    ],
)
def test_reductions_of_all_positions_are_noted(shape, operation, noted):
    features = torch.randn(shape)
    run = watched_run(nn.Identity(), lambda: operation(features))
    assert [(reduction.is_average, reduction.is_complete) for reduction in run.reductions] == noted
    for reduction in run.reductions:
        output = run.output[0] if isinstance(run.output, tuple) else run.output
        assert torch.equal(reduction.output, output.flatten(1))


def test_calls_and_reductions_are_in_the_order_of_running():
    network = nn.Sequential(nn.Sequential(nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    run = watched_run(network, lambda: network(torch.randn(MAPS)))
    assert [call.name for call in run.calls] == ["", "0", "0.0", "1", "2"]
    whole, outer, inner, pool, flatten = run.calls
    (reduction,) = run.reductions
    times = [
        *(whole.start, outer.start, inner.start, inner.end, outer.end),
        *(pool.start, reduction.time, pool.end, flatten.start, flatten.end, whole.end),
    ]
    assert times == sorted(set(times))
    assert [call.input_shape for call in run.calls] == [MAPS, MAPS, MAPS, MAPS, (2, 3, 1, 1)]
    assert whole.output_shape == (2, 3)
    # The whole network gives the average of what its ReLU gives, not of its images.
    assert [call.name for call in run.calls if call.averages] == ["1"]


def test_nothing_is_left_in_the_network_after_an_error():
    network = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(RuntimeError):
        watched_run(network, lambda: network(torch.randn(2, 3)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("argument", "give", "averages", "has_features"),
    [
        (torch.randn(MAPS), lambda maps: maps.mean((2, 3)), True, True),
        (torch.randn(MAPS), lambda maps: maps.mean((2, 3), keepdim=True), True, True),
        (torch.randn(TOKENS), lambda tokens: tokens.mean(1), True, True),
        (torch.randn(TOKENS), lambda tokens: tokens[:, 0], False, True),
        (torch.randn(2, 5, 5), lambda tokens: tokens.mean(1), True, True),
        (torch.randn(2, 5, 5), lambda tokens: tokens.mean(2), False, True),
        (torch.randn(MAPS), lambda maps: 2 * maps.mean((2, 3)), False, True),
        (torch.randn(MAPS), lambda maps: maps.mean((2, 3)).flip(1), False, True),
        (torch.randn(2, 3, 1, 1), lambda maps: maps.mean((2, 3)), False, True),
        (torch.randn(MAPS), lambda maps: maps[:, :, :2, 0], False, False),
        (torch.randn(MAPS), lambda maps: maps.mean((0, 2, 3)), False, False),
        (torch.randn(MAPS), lambda maps: [maps.mean((2, 3))], False, False),
        (torch.randn(4, 5), lambda vectors: vectors, False, False),
        (None, lambda _: torch.randn(2, 3), False, False),
    ],
)
def test_a_call_averages_if_it_gives_the_mean_over_all_positions(argument, give, averages, has_features):
    output = give(argument)
    call = Call("name", 0)
    call.note(argument, output)
    assert call.averages is averages
    assert (call.features is argument) is (has_features or argument is None)
    assert call.input_shape == (tuple(argument.shape) if torch.is_tensor(argument) else ())
    assert call.output_shape == (tuple(output.shape) if torch.is_tensor(output) else ())


@pytest.mark.parametrize(
    ("dtype", "error", "are_same"),
    [
        (torch.float32, 5e-4, True),
        (torch.float32, 5e-3, False),
        (torch.bfloat16, 1e-2, True),
        (torch.float16, 1e-2, True),
        (torch.bfloat16, 1e-1, False),
        (torch.float16, 1e-1, False),
    ],
)
def test_averages_may_differ_by_rounding(dtype, error, are_same):
    average = torch.tensor([[1.0, 100.0]], dtype=dtype)
    assert are_close(average * (1 + error), average) is are_same
    # Beside large numbers small ones lose their digits.
    assert are_close(average + torch.tensor([[100 * error, 0]]).to(dtype), average) is are_same
    assert not are_close(average.flatten(), average)
