"""What loops do around a step: memory formats, accumulation, checkpointing, frozen trunks."""

import pytest
import torch
from pytorch_metric_learning import losses, trainers
from torch.utils.checkpoint import checkpoint

from pml_xbml.losses import CrossBatchPrototypeLoss


def assert_same_gradients(gradients, expected, **tolerances):
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], msg=name, **tolerances)
    assert expected["0.trunk.3.prototypes"].abs().max() > 0


def test_channels_last_gives_the_same_gradients_and_keeps_the_format(training):
    # In float32 convolutions of the two formats round differently, by more than small gradients are worth.
    training.network.double()
    training.images = training.images.double()
    expected, expected_gradients = training.loss_and_gradients()
    training.network.to(memory_format=torch.channels_last)
    formats = []
    training.trunk.pooling.register_forward_pre_hook(
        lambda _, inputs: formats.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    loss, gradients = training.loss_and_gradients(
        images=training.images.to(memory_format=torch.channels_last)
    )
    assert formats == [True]
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients, expected_gradients, rtol=1e-9, atol=1e-12)


def test_accumulated_gradients_are_the_sum_over_batches(training):
    others = torch.randn_like(training.images)
    _, first = training.loss_and_gradients()
    _, second = training.loss_and_gradients(images=others)

    training.network.zero_grad()
    for images in (training.images, others):
        training.loss(training.network(images), training.labels).backward()
    for name, parameter in training.network.named_parameters():
        torch.testing.assert_close(parameter.grad, first[name] + second[name], msg=name)


def test_batches_embedded_before_either_is_backpropagated_are_refused(training):
    """Accumulation the other way round: the second forward replaces the histograms of the first."""
    first = training.network(training.images)
    second = training.network(torch.randn_like(training.images))
    with pytest.raises(ValueError, match="embeddings must come from the last forward of the trunk"):
        training.loss(first, training.labels) + training.loss(second, training.labels)


def test_non_reentrant_checkpointing_gives_the_same_gradients(training):
    training.trunk.trunk[1].momentum = 0  # or recomputation would move the running statistics once more
    expected, expected_gradients = training.loss_and_gradients()

    def embed(images):
        return training.embedder(checkpoint(training.trunk, images, use_reentrant=False))

    for _ in range(2):
        loss, gradients = training.loss_and_gradients(embed)
        torch.testing.assert_close(loss, expected, rtol=0, atol=0)
        assert_same_gradients(gradients, expected_gradients, rtol=0, atol=0)


def test_reentrant_checkpointing_is_refused(training):
    images = training.images.requires_grad_()
    embeddings = training.embedder(checkpoint(training.trunk, images, use_reentrant=True))
    with pytest.raises(ValueError, match=r"reentrant activation checkpointing.*use_reentrant=False"):
        training.loss(embeddings, training.labels)


def test_a_frozen_trunk_trains_the_embedder_alone_and_never_moves(make_training):
    training = make_training(eval_histograms=True)
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    dataset = torch.utils.data.TensorDataset(training.images, training.labels)
    cross_batch_losses = []
    trainer = trainers.MetricLossOnly(
        models={"trunk": training.trunk, "embedder": training.embedder},
        optimizers={"embedder_optimizer": torch.optim.SGD(training.embedder.parameters(), lr=0.1)},
        batch_size=16,
        loss_funcs={"metric_loss": training.loss},
        dataset=dataset,
        iterations_per_epoch=2,
        freeze_these=("trunk",),
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,
        end_of_iteration_hook=lambda _: cross_batch_losses.append(training.trunk.histograms),
    )
    trainer.train(num_epochs=1)
    assert all(histograms.shape == (16, 5) for histograms in cross_batch_losses)
    for name, value in training.network.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("0."), name


def test_a_frozen_trunk_gives_the_embedder_the_gradients_of_an_unfrozen_one(make_training):
    training = make_training(eval_histograms=True)
    training.trunk.eval()
    expected = training.loss_and_gradients()[1]["1.weight"]
    training.trunk.requires_grad_(False)
    assert training.loss_and_gradients()[1]["1.weight"].equal(expected)


def test_a_loss_takes_the_histograms_of_a_frozen_trunk_under_no_grad(make_training):
    training = make_training(eval_histograms=True)
    training.trunk.eval().requires_grad_(False)
    expected = training.loss_and_gradients()[1]["1.weight"]
    with torch.no_grad():
        pooled = training.trunk(training.images)
    loss = CrossBatchPrototypeLoss(losses.TripletMarginLoss(), cross_batch_weight=0.5)
    value = loss(training.embedder(pooled), training.labels, histograms=training.trunk.histograms)
    torch.testing.assert_close(torch.autograd.grad(value, training.embedder.weight)[0], expected)
