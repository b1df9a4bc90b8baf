import pytest
import torch
from torch.nn.functional import cosine_similarity


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_nearly_the_gradients_of_float32(make_training, dtype):
    training = make_training(with_batch_norm=False)
    # The fit is of deviations from means: images that differ in more than noise, as images do.
    training.images += 2 * torch.randn(16, 3, 1, 1)
    expected, expected_gradients = training.loss_and_gradients()

    def embed(images):
        with torch.autocast("cpu", dtype):
            embeddings = training.network(images)
        assert embeddings.dtype == dtype
        return embeddings

    training.network.zero_grad()
    embeddings = embed(training.images)
    with torch.autocast("cpu", dtype):
        loss = training.loss(embeddings, training.labels)
    loss.backward()

    assert training.trunk.histograms.dtype == torch.float32
    torch.testing.assert_close(loss.float(), expected, rtol=0.02, atol=0)
    for name, parameter in training.network.named_parameters():
        assert parameter.grad.dtype == torch.float32
        similarity = cosine_similarity(parameter.grad.flatten(), expected_gradients[name].flatten(), dim=0)
        assert similarity > 0.99, name


def test_grad_scaler_takes_the_same_step_as_without(make_training):
    plain, scaled = make_training(), make_training()
    plain.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(scaled.network.parameters(), lr=0.1)
    scaler.scale(scaled.loss(scaled.network(scaled.images), scaled.labels)).backward()
    scaler.step(optimizer)
    for name, parameter in scaled.network.state_dict().items():
        torch.testing.assert_close(parameter, plain.network.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_grad_scaler_skips_a_step_that_overflows_float16_and_goes_on(training):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(training.network.parameters(), lr=0.1)

    def step(images):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = training.loss(training.network(images), training.labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    weights = {name: parameter.clone() for name, parameter in training.network.named_parameters()}
    too_large = training.images.clone()
    too_large[0, 0, 0, 0] = torch.inf
    step(too_large)
    assert scaler.get_scale() == 2.0**9
    for name, parameter in training.network.named_parameters():
        torch.testing.assert_close(parameter, weights[name], rtol=0, atol=0)

    # The running statistics have seen the infinity, as they do without this package; training goes on.
    step(training.images)
    assert scaler.get_scale() == 2.0**9
    for name, parameter in training.network.named_parameters():
        assert not torch.equal(parameter, weights[name]), name
