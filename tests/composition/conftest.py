import pytest
import torch
from pytorch_metric_learning import losses

from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.trunks import PrototypePoolingTrunk


class Training:
    """A small wrapped trunk, an embedder, a batch of sixteen images, and a step of a loop of one's own."""

    def __init__(self, with_batch_norm=True, **pooling_options):
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()]
        if not with_batch_norm:
            del layers[1]
        self.backbone = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        self.trunk = PrototypePoolingTrunk(self.backbone, num_prototypes=5, **pooling_options)
        self.embedder = torch.nn.Linear(8, 6)
        self.network = torch.nn.Sequential(self.trunk, self.embedder)
        self.loss = CrossBatchPrototypeLoss(
            losses.TripletMarginLoss(), pooling=self.trunk, cross_batch_weight=0.5
        )
        self.images, self.labels = torch.randn(16, 3, 9, 9), torch.arange(16) // 4

    def step(self):
        """A step of gradient descent."""
        optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1)
        optimizer.zero_grad()
        self.loss(self.network(self.images), self.labels).backward()
        optimizer.step()

    def loss_and_gradients(self, embed=None, images=None, labels=None):
        """The loss of a batch, embedded by another callable if there is one, and its gradients by name."""
        self.network.zero_grad()
        embeddings = (embed or self.network)(self.images if images is None else images)
        value = self.loss(embeddings, self.labels if labels is None else labels)
        value.backward()
        gradients = {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            for name, parameter in self.network.named_parameters()
        }
        return value.detach(), gradients


@pytest.fixture
def make_training():
    return Training


@pytest.fixture
def training():
    return Training()
