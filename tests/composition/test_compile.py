import pytest
import torch
from pytorch_metric_learning import losses

from pml_xbml import functional
from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.trunks import PrototypePooling


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def gradients(outputs, inputs):
    """Of a sum that no symmetry of the outputs cancels."""
    weighted = [
        (output * torch.linspace(-1, 2, output.numel()).view_as(output).to(output)).sum()
        for output in outputs
    ]
    return torch.autograd.grad(sum(weighted), inputs)


# Generating code takes most of the time of a compilation: each function has it done once.
@pytest.mark.parametrize(("output", "backend"), [("average", "inductor"), ("prototypes", "aot_eager")])
def test_the_pooling_compiles_whole(output, backend):
    pooling = PrototypePooling(num_features=6, num_prototypes=4, output=output)
    features = torch.randn(8, 6, 3, 3, requires_grad=True)
    expected = pooling(features), pooling.histograms
    expected_gradients = gradients(expected, (features, pooling.prototypes))

    compiled = torch.compile(pooling, backend=backend, fullgraph=True)
    outputs = compiled(features), compiled.histograms
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(gradients(outputs, (features, pooling.prototypes)), expected_gradients)


MIXED = torch.arange(12) % 3 == 0


@pytest.mark.parametrize(
    ("num_prototypes", "in_first", "backend"),
    [(4, None, "inductor"), (4, MIXED, "aot_eager"), (20, None, "aot_eager"), (20, MIXED, "aot_eager")],
    ids=["primal", "primal_mixed", "dual", "dual_mixed"],
)
def test_fit_and_expression_compile_whole(num_prototypes, in_first, backend):
    halves = functional.Halves(in_first)
    histograms = torch.rand(12, num_prototypes, requires_grad=True)
    embeddings = torch.randn(12, 5, requires_grad=True)
    expected = functional.cross_batch_expression(histograms, embeddings, 0.05, halves)
    expected_gradients = gradients([expected], (histograms, embeddings))

    compiled = torch.compile(functional.cross_batch_expression, backend=backend, fullgraph=True)
    expressed = compiled(histograms, embeddings, 0.05, halves)
    torch.testing.assert_close(expressed, expected)
    torch.testing.assert_close(gradients([expressed], (histograms, embeddings)), expected_gradients)


def test_a_compiled_trunk_serves_the_loss(training):
    expected, expected_gradients = training.loss_and_gradients()
    compiled = torch.compile(training.trunk, backend="aot_eager", fullgraph=True)
    training.loss = CrossBatchPrototypeLoss(
        losses.TripletMarginLoss(), pooling=compiled, cross_batch_weight=0.5
    )
    for _ in range(2):
        value, gradients = training.loss_and_gradients(lambda images: training.embedder(compiled(images)))
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradients, expected_gradients)


def test_a_compiled_trunk_in_evaluation_mode_holds_no_histograms(training):
    training.step()
    compiled = torch.compile(training.trunk.eval(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(training.images), training.trunk(training.images))
    assert compiled.histograms is None


# Contrastive losses of PML read values back within their computation, which breaks graphs.
def test_the_whole_step_runs_compiled_with_the_same_numbers(training):
    expected, expected_gradients = training.loss_and_gradients()

    def step(images, labels):
        return training.loss(training.network(images), labels)

    compiled = torch.compile(step, backend="aot_eager")
    for _ in range(2):
        training.network.zero_grad()
        value = compiled(training.images, training.labels)
        value.backward()
        torch.testing.assert_close(value.detach(), expected)
        for name, parameter in training.network.named_parameters():
            torch.testing.assert_close(parameter.grad, expected_gradients[name], msg=name)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_loss_refuses_embeddings_of_an_earlier_forward(training, backend):
    compiled = torch.compile(training.loss, backend=backend)
    kept = training.network(training.images)
    training.network(training.images.flip(0))
    with pytest.raises(ValueError, match="must come from the last forward"):
        compiled(kept, training.labels)


def test_a_compiled_step_refuses_embeddings_of_an_earlier_forward(training):
    def step(images, labels):
        return training.loss(kept, labels) + training.network(images).sum()

    kept = training.network(training.images)
    training.network(training.images.flip(0))
    with pytest.raises(ValueError, match="must come from the last forward"):
        torch.compile(step, backend="aot_eager")(training.images, training.labels)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_loss_gives_the_same_numbers(training, backend):
    expected, expected_gradients = training.loss_and_gradients()
    training.loss = torch.compile(training.loss, backend=backend)
    for _ in range(2):
        training.network.zero_grad()
        value, gradients = training.loss_and_gradients()
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradients, expected_gradients)
