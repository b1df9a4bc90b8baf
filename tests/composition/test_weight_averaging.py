import copy

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn


def parameters_of(trunk):
    return {name: parameter.detach().clone() for name, parameter in trunk.named_parameters()}


def test_a_copy_after_a_step_is_independent_and_trains(training):
    training.step()
    assert training.trunk.histograms is not None
    copied = copy.deepcopy(training.trunk)
    assert copied.histograms is None

    before = parameters_of(copied)
    training.step()
    for name, parameter in parameters_of(copied).items():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)
    assert not torch.equal(training.trunk.prototypes, copied.prototypes)

    copied(training.images)
    copied.histograms.square().sum().backward()
    assert copied.prototypes.grad.abs().max() > 0


def test_a_copy_of_trunk_and_loss_together_refers_to_the_copied_trunk(training):
    training.step()
    trunk, loss = copy.deepcopy((training.trunk, training.loss))
    assert loss.pooling is trunk


@pytest.mark.parametrize("weights", ["swa", "ema"])
def test_averaged_weights_are_the_average_of_the_steps(training, weights):
    training.step()
    ema = get_ema_multi_avg_fn(0.75) if weights == "ema" else None
    averaged = AveragedModel(training.trunk, multi_avg_fn=ema)
    expected = None
    for step in range(1, 4):
        training.step()
        averaged.update_parameters(training.trunk)
        current = parameters_of(training.trunk)
        share = 1 / step if weights == "swa" else 0.25 if expected else 1
        expected = {
            name: value if expected is None else (1 - share) * expected[name] + share * value
            for name, value in current.items()
        }
    for name, parameter in averaged.module.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], msg=name)
    assert not torch.equal(averaged.module.prototypes, training.trunk.prototypes)


def test_update_bn_of_averaged_weights_measures_the_averaged_network(training):
    training.step()
    averaged = AveragedModel(training.trunk)
    averaged.update_parameters(training.trunk)
    training.step()
    averaged.update_parameters(training.trunk)
    update_bn(training.images.split(8), averaged)

    convolution, normalization = averaged.module.trunk[:2]
    maps = convolution(training.images)
    torch.testing.assert_close(normalization.running_mean, maps.mean((0, 2, 3)).detach())
    assert averaged.eval()(training.images).shape == (16, 8)


def test_the_average_of_trained_weights_goes_on_training(training):
    training.step()
    averaged = AveragedModel(training.trunk)
    averaged.update_parameters(training.trunk)
    training.trunk.load_state_dict(averaged.module.state_dict())
    before = training.trunk.prototypes.detach().clone()
    training.step()
    assert not torch.equal(training.trunk.prototypes, before)
