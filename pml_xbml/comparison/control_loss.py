import torch
from torch import Tensor

from ..losses import CrossBatchPrototypeLoss

#: The loss that ℓ_c is of: beside it, the second term would be the first one again.
ITS_OWN_CONTROL = "contrastive"


class ControlLoss(torch.nn.Module):
    """(1 − λ) ℓ(Y) + λ ℓ_c(Y): an XML loss whose second term sees the embeddings themselves, Y in place of Ŷ.

    What it gains over ℓ is not the method's. Where ℓ is ℓ_c it is plain training.

    Args:
        loss: ℓ.
        weight: λ.
    """

    def __init__(self, loss: torch.nn.Module, weight: float) -> None:
        super().__init__()
        self.loss = loss
        self.second_loss = CrossBatchPrototypeLoss(loss).expressed_loss
        self.weight = weight

    def forward(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: tuple[Tensor, ...] | None = None
    ) -> Tensor:
        """The loss, a scalar."""
        first: Tensor = self.loss(embeddings, labels, indices_tuple)
        second: Tensor = self.second_loss(embeddings, labels)
        return (1 - self.weight) * first + self.weight * second
