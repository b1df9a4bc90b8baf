import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from pml_xbml import functional
from pml_xbml.comparison.loss_table import LOSSES
from pml_xbml.comparison.run_config import RunConfig
from pml_xbml.trunks import PrototypePoolingTrunk


class AblationLoss(torch.nn.Module):
    """The formulations of the cross-batch term that were tried beside the one that was kept.

    For batches cut in the middle and losses on normalized embeddings alone. With every option at its first
    choice it gives what ``CrossBatchPrototypeLoss`` gave in version 0.1, the method as the paper's public
    text has it: Ŷ_1 = Z_1 A_2 without an intercept, and ℓ itself on Ŷ.

    Args:
        loss: ℓ.
        trunk: whose histograms to use.
        weight: λ.
        num_classes: of the training data, for ``targets="proxies"``.
        embedding_size: D, likewise.
        ridge: ε.
        total: (1 − λ)ℓ(Y) + λℓ(Ŷ), or ℓ(Y) + λℓ(Ŷ).
        histograms: L2-normalized, as they are, or centered on the batch's mean and then normalized.
        prior: zero, or the mean of the last batch's two fits.
        compared: Ŷ with Ŷ, or Ŷ as queries with Y as references.
        fit_gradient: whether the gradient flows through the fitted half.
        targets: what the fit approximates: the embeddings, or a learned proxy of each sample's class.
        expressed_by: the loss of Ŷ: ℓ too, or a contrastive loss, which compares Ŷ with Ŷ alone.
        shares_tuples: whether ℓ(Ŷ) is of the tuples that were mined among Y, or of all there are.
        proxies: whether ℓ(Ŷ) trains ℓ's own parameters, if it has any, as ℓ(Y) does.
        apart: ℓ(Ŷ) on each half apart instead of on their union.
        schedule: of λ: constant, rising linearly over the first half of the training, or such that the two
            terms' gradients on the embeddings stand in the ratio λ.
        iterations: of the whole training, for the schedule.
    """

    def __init__(
        self,
        loss: torch.nn.Module,
        trunk: PrototypePoolingTrunk,
        weight: float,
        num_classes: int,
        embedding_size: int,
        iterations: int,
        ridge: float = 0.05,
        total: Literal["convex", "additive"] = "convex",
        histograms: Literal["normalized", "plain", "centered"] = "normalized",
        prior: Literal["zero", "running"] = "zero",
        compared: Literal["expressed", "embeddings"] = "expressed",
        fit_gradient: bool = True,
        targets: Literal["embeddings", "proxies"] = "embeddings",
        expressed_by: Literal["same", "contrastive"] = "same",
        shares_tuples: bool = True,
        proxies: Literal["trained", "kept"] = "trained",
        apart: bool = False,
        schedule: Literal["constant", "warm_up", "balanced"] = "constant",
    ) -> None:
        super().__init__()
        self.loss = loss
        self.expressed_loss = loss if expressed_by == "same" else LOSSES["contrastive"].build(0, 0)
        # In lists, so that what they hold is not trained, saved or moved with the loss.
        self._pooling = [trunk.pooling]
        self.weight, self.ridge, self.iterations = weight, ridge, iterations
        self.total, self.histograms, self.prior, self.compared = total, histograms, prior, compared
        self.fit_gradient, self.targets, self.apart, self.schedule = fit_gradient, targets, apart, schedule
        self.proxies, self.shares_tuples = proxies, shares_tuples
        self._class_proxies: list[Tensor] = []
        if targets == "proxies":
            generator = torch.Generator().manual_seed(0)
            class_proxies = torch.nn.Parameter(torch.randn(num_classes, embedding_size, generator=generator))
            # The trunk's optimizer learns them: a contrastive loss has no parameters and no optimizer.
            trunk.register_parameter("class_proxies", class_proxies)
            self._class_proxies.append(class_proxies)
        self._last_fit: Tensor | None = None
        self._step = 0

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any = None) -> Tensor:
        """The loss of a batch: embeddings (B, D), labels (B,), and a miner's tuples or None."""
        self._step += 1
        metric_loss: Tensor = self.loss(embeddings, labels, indices_tuple)
        with self._keeping_proxies() if self.proxies == "kept" else contextlib.nullcontext():
            cross_batch_loss = self._cross_batch_loss(embeddings, labels, indices_tuple)
        weight = self.weight
        if self.schedule == "warm_up":
            weight *= min(1, 2 * self._step / self.iterations)
        elif self.schedule == "balanced":
            norms = [
                torch.autograd.grad(term, embeddings, retain_graph=True)[0].norm()
                for term in (metric_loss, cross_batch_loss)
            ]
            return metric_loss + weight * (norms[0] / norms[1].clamp(min=1e-8)) * cross_batch_loss
        return (1 if self.total == "additive" else 1 - weight) * metric_loss + weight * cross_batch_loss

    @contextlib.contextmanager
    def _keeping_proxies(self) -> Iterator[None]:
        self.loss.requires_grad_(False)
        try:
            yield
        finally:
            self.loss.requires_grad_(True)

    def _cross_batch_loss(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any) -> Tensor:
        histograms = self._pooling[0].histograms_of(embeddings).double()
        if self.histograms == "centered":
            histograms = histograms - histograms.mean(0)
        if self.histograms != "plain":
            histograms = functional.l2_normalize(histograms)
        halves = histograms.unflatten(0, (2, -1))
        targets = self._class_proxies[0][labels] if self._class_proxies else embeddings
        targets = functional.l2_normalize(targets.double())
        prior = self._last_fit if self.prior == "running" else None
        fitted = functional.ridge_fit(halves, targets.unflatten(0, (2, -1)), self.ridge, prior)
        self._last_fit = fitted.detach().mean(0).expand_as(fitted)
        if not self.fit_gradient:
            fitted = fitted.detach()
        expressed = functional.express(halves, fitted.flip(0)).to(embeddings.dtype)
        if self.apart:
            half_labels = labels.unflatten(0, (2, -1))
            losses = [self.expressed_loss(*half) for half in zip(expressed, half_labels, strict=True)]
            return (losses[0] + losses[1]) / 2
        expressed = expressed.flatten(0, 1)
        references = (embeddings, labels) if self.compared == "embeddings" else ()
        if not self.shares_tuples or self.expressed_loss is not self.loss:
            indices_tuple = None
        cross_batch_loss: Tensor = self.expressed_loss(expressed, labels, indices_tuple, *references)
        return cross_batch_loss


def ablation_loss(run: RunConfig, loss: torch.nn.Module, trunk: PrototypePoolingTrunk) -> AblationLoss:
    """The loss of a run of the ablation, for :func:`~pml_xbml.comparison.train.train`."""
    assert run.train_classes is not None
    assert run.cross_batch_weight is not None
    return AblationLoss(
        loss,
        trunk,
        run.cross_batch_weight,
        run.train_classes,
        run.embedding_size,
        run.iterations,
        **run.loss_options,
    )
