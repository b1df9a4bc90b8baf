from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_metric_learning import losses as pml_losses
from torch import Tensor

from .. import _pml, functional
from .._checks import check_number
from ._base_losses import (
    ExpressedLoss,
    all_pairs,
    check_base_loss,
    check_tuples,
    makes_all_pairs,
    takes_references,
)
from ._pooling_reference import HoldsHistograms, PoolingReference
from ._statistics import ExpressionStatistics, expression_statistics
from ._validation import (
    check_options,
    checked_labels,
    finite_and_disjoint,
    matching_histograms,
    num_processes,
    raise_on_non_finite,
)

WITHOUT_HISTOGRAMS = (
    "CrossBatchPrototypeLoss has neither a pooling nor histograms, so each embedding stands for itself. Pass "
    "pooling=PrototypePoolingTrunk(...) to use histograms over prototypes."
)
IN_EVALUATION = (
    "The trunk ran in evaluation mode, where it has no histograms, and no gradient is wanted: "
    "CrossBatchPrototypeLoss gives the metric loss alone, without the cross-batch term. For both terms build "
    "the trunk with eval_histograms=True."
)
DEALT_CLASSES = (
    "The first and the second half of a batch of %d samples share a class, so CrossBatchPrototypeLoss deals "
    "the batch's classes to two halves, which can differ in size. If the batches are to come from a "
    "DisjointClassPairSampler, the DataLoader's batch_size must be the sampler's. Other samplers make such "
    "batches, and the loss can be used with them."
)


class CrossBatchPrototypeLoss(pml_losses.BaseMetricLossFunction):
    """Cross-batch metric learning (XML) around any loss of pytorch-metric-learning.

    The batch is split into two halves with no class in common. Prototypes in embedding space are fitted to
    each half by ridge regression, with an intercept, of its embeddings on its histograms. The samples of each
    half are expressed with the prototypes of the other, and a contrastive loss ℓ_c compares what comes out:

        A_k = argmin_A ‖(Y_k − ȳ_k) − (Z_k − z̄_k) A‖² + ε s_k² ‖A‖²,     s_k² = mean_rows ‖Z_k − z̄_k‖²
        Ŷ_1 = (Z_1 − z̄_2) A_2,     Ŷ_2 = (Z_2 − z̄_1) A_1
        L = (1 − λ) ℓ(Y, labels) + λ ℓ_c(Ŷ, labels)

    Two things depart from the paper's public text, which has neither an intercept nor another loss for Ŷ.
    They were chosen on validation classes (``tests/studies/README.md`` has the tables). With an intercept Ŷ
    holds deviations from the fitted half's mean, which all embeddings of a pretrained network share. And ℓ
    itself can be harmed by what it was not made for: proxies live among actual embeddings, for one. From
    scratch, with multi-similarity, normalized softmax or proxy-NCA loss, ℓ_c on Y gained more than on Ŷ.

    The halves are the batch's first and second half where those share no class, as
    :class:`~pml_xbml.samplers.DisjointClassPairSampler` makes them; otherwise see
    :func:`pml_xbml.functional.class_disjoint_halves`. With fewer than two classes the cross-batch term is a
    zero that keeps the graph. Y enters the fit as the distance of ℓ_c sees it: L2-normalized.

    Source: Y. Z. Gurbuz and A. A. Alatan, "Generalizable Embeddings with Cross-batch Metric Learning", ICIP
    2023, arXiv:2307.07620.

    Args:
        loss: ℓ, any loss of pytorch-metric-learning that takes class labels, ``CrossBatchMemory`` and
            ``MultipleLosses`` included. ``ContrastiveLoss()`` if left out.
        pooling: whose ``histograms`` to use, a :class:`~pml_xbml.trunks.PrototypePoolingTrunk` or
            :class:`~pml_xbml.trunks.PrototypePooling`, in ``DistributedDataParallel`` or not. It is a
            reference, not a submodule. Left out, and without ``histograms`` in the call, each embedding
            stands for itself (Z = Y), and a warning says so once.
        cross_batch_weight: λ in [0, 1]. At 0, value, dtype and gradient are those of ℓ to the bit.
        ridge: ε > 0, relative to the variance of the half's histograms.
        expressed_loss: ℓ_c, a loss that compares samples with samples, without parameters or buffers.
            ``ContrastiveLoss(pos_margin=0, neg_margin=1)`` if left out. It compares all expressed samples of
            the batch with one another, whatever a miner gives ℓ.
        **kwargs: ``embedding_regularizer``, ``embedding_reg_weight`` and ``collect_stats``, as every loss of
            pytorch-metric-learning takes them. The records of ``collect_stats`` are the two terms, as they
            enter the loss; the share of batches without two classes so far; and the
            :class:`~pml_xbml.losses._statistics.ExpressionStatistics`.

    Raises:
        ValueError, TypeError: on an argument out of range, and on a ``distance`` or ``reducer``, which belong
            to ``loss``.

    Example:
        >>> from pml_xbml.trunks import PrototypePooling
        >>> pooling = PrototypePooling(num_features=32, num_prototypes=8)
        >>> loss = CrossBatchPrototypeLoss(pml_losses.MultiSimilarityLoss(), pooling=pooling)
        >>> embeddings = pooling(torch.randn(16, 32, 7, 7))
        >>> labels = torch.arange(16) // 4
        >>> loss(embeddings, labels).backward()
    """

    # Kept from batch to batch outside of the state_dict; checkpoints carry it.
    _carried_state = ("num_batches", "num_single_class_batches")

    def __init__(
        self,
        loss: torch.nn.Module | None = None,
        pooling: HoldsHistograms | torch.nn.Module | None = None,
        cross_batch_weight: float = 0.3,
        ridge: float = 0.05,
        expressed_loss: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        check_options(kwargs, type(self))
        super().__init__(**kwargs)
        check_number("cross_batch_weight", cross_batch_weight)
        check_number("ridge", ridge)
        if not 0 <= cross_batch_weight <= 1:
            raise ValueError(f"cross_batch_weight must lie in [0, 1], got {cross_batch_weight}")
        if not 0 < ridge < math.inf:
            raise ValueError(f"ridge must be positive and finite, got {ridge}")
        loss = pml_losses.ContrastiveLoss() if loss is None else loss
        check_base_loss(loss)
        if expressed_loss is None:
            expressed_loss = pml_losses.ContrastiveLoss(pos_margin=0, neg_margin=1)
        self.loss = loss
        self._expressed_loss = ExpressedLoss(expressed_loss)
        self.cross_batch_weight = cross_batch_weight
        self.ridge = ridge
        self._pooling = None if pooling is None else PoolingReference(pooling)
        self._messages_given: set[str] = set()
        self.num_batches = 0
        self.num_single_class_batches = 0
        self.add_to_recordable_attributes(name="cross_batch_weight", is_stat=False)
        self.add_to_recordable_attributes(
            list_of_names=[
                *self._sub_loss_names(), "single_class_fraction", *ExpressionStatistics._fields,
            ],
            is_stat=True,
        )  # fmt: skip

    @property
    def pooling(self) -> HoldsHistograms | torch.nn.Module | None:
        """The pooling or trunk whose histograms are used, or None."""
        return None if self._pooling is None else self._pooling.target

    @property
    def expressed_loss(self) -> torch.nn.Module:
        """ℓ_c, the loss of expressed samples."""
        return self._expressed_loss.loss

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        histograms: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            embeddings: Y, (batch_size, embedding_size).
            labels: (batch_size,).
            indices_tuple: a miner's pairs or triplets, for ℓ.
            ref_emb: embeddings for ℓ to compare with; not with ``CrossBatchMemory`` or ``MultipleLosses``.
            ref_labels: their labels; may be left out with an ``indices_tuple``.
            histograms: Z, (batch_size, num_prototypes), of the same images in the same order, for a loop of
                one's own; those of ``pooling`` if left out. Histograms of the right length that stem from
                another forward cannot be told from the right ones.

        Returns:
            The loss, a scalar. ℓ(Y) alone if the pooling's last forward ran in evaluation mode and the
            embeddings require no gradient, as in a validation loop: there are no histograms then, and a
            warning says so once. With ``eval_histograms=True`` on the pooling it is the whole loss.

        Raises:
            ValueError, TypeError: on missing labels, tensors whose shapes, devices or dtypes do not go
                together, values that are not finite (in float16, and under float16 autocast, the loss comes
                out non-finite instead, so that a ``GradScaler`` skips the step), and where
                :meth:`~pml_xbml.trunks.PrototypePooling.histograms_of` raises.
        """
        self.reset_stats()
        loss_dict = self.compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels, histograms)
        self.add_embedding_regularization_to_loss_dict(loss_dict, embeddings)
        # Scalars already; PML's MultipleReducers would cast them to the dtype of the embeddings.
        total: Tensor = sum(term["losses"] for term in loss_dict.values())
        return total

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
        histograms: Tensor | None = None,
    ) -> dict[str, dict[str, Any]]:
        labels, references = self._checked(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        histograms, world_size = self._consume_histograms(embeddings, histograms)

        inputs = {"embeddings": embeddings, "histograms": histograms, "ref_emb": ref_emb}
        given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        if self.cross_batch_weight == 0:
            histograms = None
        is_finite, halves_are_disjoint = finite_and_disjoint(
            list(given.values()), None if histograms is None or world_size > 1 else labels
        )
        if not is_finite:
            return self._reduce(_poisoned(given), None)
        if histograms is None:
            return self._reduce(self.loss(embeddings, labels, indices_tuple, *references), None)
        halves = self._halves(labels, world_size, halves_are_disjoint)
        return self._reduce(*self._terms(embeddings, labels, indices_tuple, references, histograms, halves))

    def _checked(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """The labels, and what ℓ gets behind the tuples: ``ref_emb`` and ``ref_labels``, or nothing."""
        labels = checked_labels(embeddings, labels)
        check_tuples(self.loss, indices_tuple)
        if ref_emb is None:
            return labels, ()
        if not takes_references(self.loss):
            raise ValueError(
                f"ref_emb must be left out with {type(self.loss).__name__} as loss, got one of shape "
                f"{tuple(ref_emb.shape)}"
            )
        if ref_labels is None and indices_tuple is None:
            raise ValueError(
                f"ref_labels must be given for the ref_emb of shape {tuple(ref_emb.shape)}, got None: pass "
                "them, or an indices_tuple"
            )
        return labels, (ref_emb, ref_labels)

    def _consume_histograms(self, embeddings: Tensor, histograms: Tensor | None) -> tuple[Tensor | None, int]:
        """Z, row for row as the embeddings, and of how many processes' blocks both consist.

        Z is None in evaluation, where there are none and none are needed.
        """
        if histograms is None and self._pooling is not None:
            histograms = self._pooling.histograms_of(embeddings)
            if histograms is None:
                if self.cross_batch_weight > 0:
                    self._warn_once(IN_EVALUATION)
                return None, 1
        if histograms is not None:
            return matching_histograms(embeddings, histograms)
        if self.cross_batch_weight > 0:
            self._warn_once(WITHOUT_HISTOGRAMS)
        # Embeddings alone do not tell whether they were gathered. Halves that are made block by block are the
        # same on all processes, although each puts its own block first.
        world_size = num_processes()
        return embeddings, world_size if len(embeddings) % world_size == 0 else 1

    def _halves(self, labels: Tensor, world_size: int, are_disjoint: bool) -> functional.Halves | None:
        """The two halves, None if there is one class only."""
        halves = functional.CUT_IN_THE_MIDDLE
        if not are_disjoint:
            halves = functional.Halves(functional.class_disjoint_halves(labels, world_size))
        has_two_classes = halves.are_two
        if has_two_classes and not are_disjoint and world_size == 1:
            self._warn_once(DEALT_CLASSES, len(labels))
        if self.collect_stats:
            self.num_batches += 1
            self.num_single_class_batches += not has_two_classes
            self.single_class_fraction = self.num_single_class_batches / self.num_batches
        return halves if has_two_classes else None

    def _terms(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None,
        references: tuple[Tensor | None, ...],
        histograms: Tensor,
        halves: functional.Halves | None,
    ) -> tuple[Tensor, Tensor]:
        """ℓ(Y) and ℓ_c(Ŷ); the second is zero for a batch of one class."""
        pairs = all_pairs(self.expressed_loss, labels)
        if not references and indices_tuple is None and makes_all_pairs(self.loss):
            # The same pairs: made once for both.
            indices_tuple = pairs
        cross_batch_loss = (
            (embeddings * 0).sum()
            if halves is None
            else self._cross_batch_loss(embeddings, labels, histograms, halves, pairs)
        )
        return self.loss(embeddings, labels, indices_tuple, *references), cross_batch_loss

    def _cross_batch_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        histograms: Tensor,
        halves: functional.Halves,
        pairs: tuple[Tensor, ...] | None,
    ) -> Tensor:
        """ℓ_c(Ŷ)."""
        sources, targets = self._fitted(embeddings, histograms)
        if self.collect_stats:
            statistics = expression_statistics(sources, targets, self.ridge, halves)
            for name, value in statistics._asdict().items():
                setattr(self, name, value)
        expressed = functional.cross_batch_expression(sources, targets, self.ridge, halves, intercept=True)
        loss: Tensor = self.expressed_loss(expressed, labels, pairs)
        return loss

    def _fitted(self, embeddings: Tensor, histograms: Tensor) -> tuple[Tensor, Tensor]:
        """Z and Y as they enter the fit."""
        # float16 has too few digits to be normalized in; float32 is enough, for ℓ_c too.
        targets = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        if self._expressed_loss.normalizes_embeddings:
            targets = functional.l2_normalize(targets)
        return targets if histograms is embeddings else histograms, targets

    @torch.no_grad()
    def express(self, embeddings: Tensor, labels: Tensor, histograms: Tensor) -> tuple[Tensor, Tensor]:
        """Expresses a batch as the loss does, for looking at it.

        Args:
            embeddings: Y, (B, D).
            labels: (B,), of two classes or more.
            histograms: Z, (B, m).

        Returns:
            Ŷ, (B, D), in float64: deviations from the other half's mean; and which are the first half,
            (B,) bool.
        """
        in_first = functional.class_disjoint_halves(labels)
        sources, targets = self._fitted(embeddings.double(), histograms)
        halves = functional.Halves(in_first)
        expressed = functional.cross_batch_expression(sources, targets, self.ridge, halves, intercept=True)
        return expressed, in_first

    def _reduce(self, metric_loss: Tensor, cross_batch_loss: Tensor | None) -> dict[str, dict[str, Any]]:
        """(1 − λ) ℓ(Y) and λ ℓ(Ŷ); ℓ(Y) alone and untouched where there is no cross-batch term."""
        terms: tuple[Tensor | int, Tensor | int] = metric_loss, 0
        if cross_batch_loss is not None:
            weight = self.cross_batch_weight
            terms = metric_loss * (1 - weight), cross_batch_loss * weight
        if self.collect_stats:
            self.metric_loss, self.cross_batch_loss = (torch.as_tensor(term).detach() for term in terms)
        return {
            name: {"losses": term, "indices": None, "reduction_type": "already_reduced"}
            for name, term in zip(self._sub_loss_names(), terms, strict=True)
        }

    def _warn_once(self, message: str, *values: object) -> None:
        if message not in self._messages_given:
            self._messages_given.add(message)
            _pml.logger().warning(message, *values)

    def set_reducer(self, reducer: Any) -> None:
        # ℓ reduces; a reducer here would record a second, meaningless size of the losses.
        self.reducer = None

    def get_default_distance(self) -> None:
        # Likewise: the distance is ℓ's.
        return None

    def _sub_loss_names(self) -> list[str]:
        return ["metric_loss", "cross_batch_loss"]


def _poisoned(inputs: dict[str, Tensor]) -> Tensor:
    """A loss of float16 inputs that are not finite; other inputs raise.

    A GradScaler looks at the gradients, so all become NaN. No memory may see such a batch.
    """
    raise_on_non_finite(inputs)
    first, *others = (values.sum() * math.nan for values in inputs.values())
    return sum(others, start=first)
