"""The losses that a comparison knows by name: one row a loss, with everything that is set for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pytorch_metric_learning import losses, miners


@dataclass(frozen=True)
class LossSettings:
    """How one loss of the comparison is made.

    Attributes:
        build_loss: the loss's class with its arguments, without those of its proxies.
        build_miner: the tuple miner's class with its arguments, if the loss is used with one.
        learning_rate: of the loss's own parameters (proxies, class weights); None if it has none.
        cross_batch_weight: λ of XML around it.
        cross_batch_options: more arguments of ``CrossBatchPrototypeLoss`` around it; an ``expressed_loss`` by
            its name in this table. They and λ were chosen on validation classes, for networks trained from
            random weights: tests/studies/README.md has the ablation.
    """

    build_loss: partial[losses.BaseMetricLossFunction]
    build_miner: partial[miners.BaseMiner] | None = None
    learning_rate: float | None = None
    cross_batch_weight: float = 0.1
    cross_batch_options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, num_classes: int, embedding_size: int) -> losses.BaseMetricLossFunction:
        """Make the loss.

        Args:
            num_classes: number of training classes, each of which gets proxies if the loss has any.
            embedding_size: size of the proxies.

        Returns:
            The loss.
        """
        if self.learning_rate is None:
            return self.build_loss()
        return self.build_loss(num_classes=num_classes, embedding_size=embedding_size)

    def for_pretrained_weights(self) -> "LossSettings":
        """The settings for fine-tuning, where centered histograms lost up to 40% of MAP@R."""
        options = {k: v for k, v in self.cross_batch_options.items() if k != "center_histograms"}
        return replace(self, cross_batch_weight=0.1, cross_batch_options=options)


#: What validation classes chose beside λ: for losses of pairs and triplets, and for those with proxies.
CENTERED = {"center_histograms": True}
CENTERED_AND_CONTRASTIVE = {"center_histograms": True, "expressed_loss": "contrastive"}

#: Proxies are drawn at random, so they learn at a rate of their own, as in Proxy Anchor's published code.
PROXY_LEARNING_RATE = 1e-2

LOSSES: dict[str, LossSettings] = {
    "contrastive": LossSettings(
        partial(losses.ContrastiveLoss, pos_margin=0, neg_margin=1),
        cross_batch_weight=0.3,
        cross_batch_options=CENTERED,
    ),
    "triplet": LossSettings(
        partial(losses.TripletMarginLoss, margin=0.2),
        cross_batch_options=CENTERED,
    ),
    "multi_similarity": LossSettings(
        partial(losses.MultiSimilarityLoss, alpha=2, beta=50, base=0.5),
        build_miner=partial(miners.MultiSimilarityMiner, epsilon=0.1),
        cross_batch_options=CENTERED,
    ),
    "proxy_anchor": LossSettings(
        partial(losses.ProxyAnchorLoss, margin=0.1, alpha=32),
        learning_rate=PROXY_LEARNING_RATE,
        cross_batch_options=CENTERED_AND_CONTRASTIVE,
    ),
    "proxy_nca": LossSettings(
        # The temperature of 1/9 is ProxyNCA++'s (Teh, DeVries, Taylor, ECCV 2020).
        partial(losses.ProxyNCALoss, softmax_scale=9),
        learning_rate=PROXY_LEARNING_RATE,
        cross_batch_options=CENTERED_AND_CONTRASTIVE,
    ),
    "normalized_softmax": LossSettings(
        partial(losses.NormalizedSoftmaxLoss, temperature=0.05),
        learning_rate=PROXY_LEARNING_RATE,
        cross_batch_options=CENTERED_AND_CONTRASTIVE,
    ),
}
