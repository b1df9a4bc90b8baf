import pytest
import torch
from pytorch_metric_learning import losses as pml_losses
from sklearn.linear_model import Ridge

from pml_xbml.trunks import PrototypePoolingTrunk
from tests.studies import ablation
from tests.studies.ablation import BASE_WEIGHT
from tests.studies.ablation_loss import AblationLoss, ablation_loss

LABELS = torch.arange(16) // 4


@pytest.fixture
def trunk():
    return PrototypePoolingTrunk(torch.nn.Conv2d(3, 6, 1), num_prototypes=5)


def test_with_the_first_choices_it_is_the_method_of_the_paper(trunk):
    embeddings = trunk(torch.randn(16, 3, 4, 4))
    got = AblationLoss(pml_losses.ContrastiveLoss(), trunk, 0.1, 4, 6, 10)(embeddings, LABELS)
    y, z = (torch.nn.functional.normalize(rows).detach() for rows in (embeddings, trunk.histograms))
    fits = [Ridge(alpha=0.05, fit_intercept=False).fit(z[half], y[half]) for half in (slice(8, 16), slice(8))]
    expressed = [fit.predict(z[half]) for fit, half in zip(fits, (slice(8), slice(8, 16)), strict=True)]
    expressed = torch.cat([torch.as_tensor(rows).float() for rows in expressed])
    base = pml_losses.ContrastiveLoss()
    torch.testing.assert_close(got, 0.9 * base(embeddings, LABELS) + 0.1 * base(expressed, LABELS))


LOSS_VARIANTS = [
    variant
    for variant in ablation.VARIANTS
    # A contrastive loss has no proxies to keep.
    if variant.weight is not None and not (variant.run or variant.pooling or "proxies" in variant.loss)
]


@pytest.mark.parametrize("variant", LOSS_VARIANTS, ids=lambda variant: variant.folder)
def test_every_formulation_of_the_ablation_steps_in_a_direction_of_its_own(variant, trunk):
    (run,) = variant.runs(1)
    contrastive = pml_losses.ContrastiveLoss()
    torch.manual_seed(1)
    embedder = torch.nn.Linear(6, run.embedding_size)
    formulations = (
        ablation_loss(run, contrastive, trunk),
        AblationLoss(contrastive, trunk, BASE_WEIGHT, 4, run.embedding_size, run.iterations),
    )
    gradients = []
    for formulation in formulations:
        torch.manual_seed(0)
        for _ in range(2):  # the running prior starts with the second batch
            images = torch.randn(16, 3, 4, 4, requires_grad=True)
            value = formulation(embedder(trunk(images)), LABELS)
        gradients.append(torch.autograd.grad(value, images)[0])
    assert gradients[0].isfinite().all()
    is_default = variant.weight == BASE_WEIGHT and not variant.loss
    assert torch.allclose(*gradients, rtol=1e-4) == is_default


@pytest.mark.parametrize("proxies", ["trained", "kept"])
def test_proxies_are_trained_by_the_cross_batch_term_or_not(trunk, proxies):
    base = pml_losses.ProxyNCALoss(num_classes=4, embedding_size=6)
    loss = AblationLoss(base, trunk, 1.0, 4, 6, 10, proxies=proxies)
    images = torch.randn(16, 3, 4, 4, requires_grad=True)
    loss(trunk(images), LABELS).backward()
    assert base.proxies.requires_grad
    # At λ = 1 nothing but the cross-batch term has a gradient.
    assert base.proxies.grad.any() == (proxies == "trained")
    assert images.grad.any()
