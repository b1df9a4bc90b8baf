import torch
from torch import Tensor


class ControlLoss(torch.nn.Module):
    """(1 − λ) ℓ(Y) + λ ℓ_2(Y): an XML loss whose second term sees the embeddings themselves.

    What it gains over ℓ is not the method's.

    Args:
        loss: ℓ.
        second_loss: ℓ_2, which gets no mined tuples, as in ``CrossBatchPrototypeLoss``.
        weight: λ.
    """

    def __init__(self, loss: torch.nn.Module, second_loss: torch.nn.Module, weight: float) -> None:
        super().__init__()
        self.loss = loss
        self.second_loss = second_loss
        self.weight = weight

    def forward(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: tuple[Tensor, ...] | None = None
    ) -> Tensor:
        """The loss, a scalar."""
        first: Tensor = self.loss(embeddings, labels, indices_tuple)
        second: Tensor = self.second_loss(embeddings, labels)
        return (1 - self.weight) * first + self.weight * second
