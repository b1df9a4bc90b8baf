"""The losses that a comparison knows by name, each with its settings, in one table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pytorch_metric_learning import losses, miners


@dataclass(frozen=True)
class LossSettings:
    """How one loss of the comparison is made.

    Attributes:
        build: makes the loss from the number of training classes and the embedding size.
        build_miner: makes the tuple miner that the loss is used with, if any.
        learning_rate: of the loss's own parameters (proxies, class weights), if it has any.
        cross_batch_weight: λ of XML around it.
        cross_batch_options: more arguments of ``CrossBatchPrototypeLoss`` around it; an ``expressed_loss`` by
            its name in this table. They and λ were chosen on validation classes, for networks trained from
            random weights: CONTRIBUTING.md has the ablation.
    """

    build: Callable[[int, int], losses.BaseMetricLossFunction]
    build_miner: Callable[[], miners.BaseMiner] | None = None
    learning_rate: float | None = None
    cross_batch_weight: float = 0.1
    cross_batch_options: Mapping[str, Any] = field(default_factory=dict)

    def for_pretrained_weights(self) -> "LossSettings":
        """The settings for fine-tuning, where centred histograms lost up to 40% of MAP@R."""
        options = {k: v for k, v in self.cross_batch_options.items() if k != "center_histograms"}
        return replace(self, cross_batch_weight=0.1, cross_batch_options=options)


#: What validation classes chose beside λ: for losses of pairs and triplets, and for those with proxies.
CENTRED = {"center_histograms": True}
CENTRED_AND_CONTRASTIVE = {"center_histograms": True, "expressed_loss": "contrastive"}

#: Proxies are drawn at random, so they learn at a rate of their own, as in Proxy Anchor's published code.
PROXY_LEARNING_RATE = 1e-2

LOSSES: dict[str, LossSettings] = {
    "contrastive": LossSettings(
        lambda num_classes, size: losses.ContrastiveLoss(pos_margin=0, neg_margin=1),
        cross_batch_weight=0.3,
        cross_batch_options=CENTRED,
    ),
    "triplet": LossSettings(
        lambda num_classes, size: losses.TripletMarginLoss(margin=0.2), cross_batch_options=CENTRED
    ),
    "multi_similarity": LossSettings(
        lambda num_classes, size: losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5),
        build_miner=lambda: miners.MultiSimilarityMiner(epsilon=0.1),
        cross_batch_options=CENTRED,
    ),
    "proxy_anchor": LossSettings(
        lambda num_classes, size: losses.ProxyAnchorLoss(num_classes, size, margin=0.1, alpha=32),
        learning_rate=PROXY_LEARNING_RATE,
        cross_batch_options=CENTRED_AND_CONTRASTIVE,
    ),
    "proxy_nca": LossSettings(
        # The temperature of 1/9 is ProxyNCA++'s (Teh, DeVries, Taylor, ECCV 2020).
        lambda num_classes, size: losses.ProxyNCALoss(num_classes, size, softmax_scale=9),
        learning_rate=PROXY_LEARNING_RATE,
        cross_batch_options=CENTRED_AND_CONTRASTIVE,
    ),
    "normalized_softmax": LossSettings(
        lambda num_classes, size: losses.NormalizedSoftmaxLoss(num_classes, size, temperature=0.05),
        learning_rate=PROXY_LEARNING_RATE,
        cross_batch_options=CENTRED_AND_CONTRASTIVE,
    ),
}
