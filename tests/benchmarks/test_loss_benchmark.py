import pytest
import torch
from pytorch_metric_learning.losses import ContrastiveLoss

from pml_xbml import functional
from pml_xbml.losses import CrossBatchPrototypeLoss

EMBEDDING_SIZE, NUM_PROTOTYPES, RIDGE = 128, 64, 0.05


def random_batch(batch_size, device, num_prototypes=NUM_PROTOTYPES):
    embeddings = torch.nn.functional.normalize(torch.randn(batch_size, EMBEDDING_SIZE, device=device))
    histograms = torch.softmax(torch.randn(batch_size, num_prototypes, device=device), dim=1)
    return embeddings.requires_grad_(), histograms.requires_grad_()


def expressed(embeddings, histograms):
    """What the cross-batch term evaluates its loss on."""
    with torch.no_grad():
        expressed = functional.cross_batch_expression(histograms, embeddings, RIDGE, intercept=True)
        return expressed.requires_grad_()


# The work of a contrastive loss grows with the pairs within its margin. Of Ŷ many are, of random embeddings
# hardly any, so that a second evaluation on those is cheaper than what it stands for.
@pytest.mark.parametrize(
    ("make_others", "others_name"),
    [
        (expressed, "Ŷ"),
        (lambda embeddings, _: random_batch(len(embeddings), embeddings.device)[0], "random embeddings"),
    ],
    ids=["expressed", "random"],
)
@pytest.mark.parametrize("num_prototypes", [16, NUM_PROTOTYPES])
def test_loss(ratio, device, make_others, others_name, num_prototypes):
    embeddings, histograms = random_batch(128, device, num_prototypes)
    others = make_others(embeddings, histograms)
    labels = torch.arange(128, device=device) // 4
    loss, cross_batch_loss = ContrastiveLoss(), CrossBatchPrototypeLoss(ContrastiveLoss())

    def two_evaluations():
        value = 0.9 * loss(embeddings, labels) + 0.1 * loss(others, labels)
        torch.autograd.grad(value, (embeddings, others))

    def one_with_the_cross_batch_term():
        value = cross_batch_loss(embeddings, labels, histograms=histograms)
        torch.autograd.grad(value, (embeddings, histograms))

    ratio(
        f"CrossBatchPrototypeLoss(ContrastiveLoss()), B = 128, m = {num_prototypes}, forward + backward",
        one_with_the_cross_batch_term,
        f"two evaluations of ContrastiveLoss, on Y and on {others_name}",
        two_evaluations,
        at_most=1.6,
        rounds=300,
    )


def expression_by_explicit_inverses(histograms, embeddings):
    """Both halves by the dual form as it is printed: an N×N matrix, inverted, in float32."""
    first, second = zip(histograms.chunk(2), embeddings.chunk(2), strict=True)

    def fitted(histograms, embeddings):
        identity = torch.eye(len(histograms), device=histograms.device)
        return histograms.T @ torch.inverse(histograms @ histograms.T + RIDGE * identity) @ embeddings

    return torch.cat([first[0] @ fitted(*second), second[0] @ fitted(*first)])


def our_expression(histograms, embeddings):
    return functional.cross_batch_expression(histograms, embeddings, RIDGE)


def our_expression_with_an_intercept(histograms, embeddings):
    return functional.cross_batch_expression(histograms, embeddings, RIDGE, intercept=True)


def forward_and_backward(expression, batch_size, device):
    embeddings, histograms = random_batch(batch_size, device)
    gradient = torch.randn(batch_size, EMBEDDING_SIZE, device=device)

    def step():
        torch.autograd.grad(expression(histograms, embeddings), (histograms, embeddings), gradient)

    return step


@pytest.mark.parametrize(("batch_size", "at_least", "rounds"), [(128, 1, 300), (1024, 10, 40), (4096, 50, 5)])
def test_fit_and_expression(ratio, device, batch_size, at_least, rounds):
    ratio(
        f"fit and expression of both halves, B = {batch_size}, forward + backward",
        forward_and_backward(our_expression, batch_size, device),
        "explicit inverses (times faster)",
        forward_and_backward(expression_by_explicit_inverses, batch_size, device),
        at_least=at_least,
        rounds=rounds,
    )


def test_intercept(ratio, device):
    ratio(
        "fit and expression with an intercept, B = 128, forward + backward",
        forward_and_backward(our_expression_with_an_intercept, 128, device),
        "without",
        forward_and_backward(our_expression, 128, device),
        at_most=1.6,
        rounds=300,
    )


def test_compiled_fit_and_expression(ratio, device):
    compiled = torch.compile(our_expression, fullgraph=True)
    ratio(
        "compiled fit and expression, B = 128, forward + backward",
        forward_and_backward(compiled, 128, device),
        "not compiled",
        forward_and_backward(our_expression, 128, device),
        at_most=1.5,
        rounds=200,
    )
