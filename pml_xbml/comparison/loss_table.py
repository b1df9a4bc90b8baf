"""The losses that a comparison knows by name: one row a loss, with everything that is set for it."""

from dataclasses import dataclass
from functools import partial

from pytorch_metric_learning import losses, miners


@dataclass(frozen=True)
class LossSettings:
    """How one loss of the comparison is made.

    Attributes:
        build_loss: the loss's class with its arguments, without those of its proxies.
        build_miner: the tuple miner's class with its arguments, if the loss is used with one.
        learning_rate: of the loss's own parameters (proxies, class weights); None if it has none.
    """

    build_loss: partial[losses.BaseMetricLossFunction]
    build_miner: partial[miners.BaseMiner] | None = None
    learning_rate: float | None = None

    def build(self, num_classes: int, embedding_size: int) -> losses.BaseMetricLossFunction:
        """Makes the loss.

        Args:
            num_classes: number of training classes, each of which gets proxies if the loss has any.
            embedding_size: size of the proxies.

        Returns:
            The loss.
        """
        if self.learning_rate is None:
            return self.build_loss()
        return self.build_loss(num_classes=num_classes, embedding_size=embedding_size)


#: Proxies are drawn at random, so they learn at a rate of their own, as in Proxy Anchor's published code.
PROXY_LEARNING_RATE = 1e-2

LOSSES: dict[str, LossSettings] = {
    "contrastive": LossSettings(partial(losses.ContrastiveLoss, pos_margin=0, neg_margin=1)),
    "triplet": LossSettings(partial(losses.TripletMarginLoss, margin=0.2)),
    "multi_similarity": LossSettings(
        partial(losses.MultiSimilarityLoss, alpha=2, beta=50, base=0.5),
        build_miner=partial(miners.MultiSimilarityMiner, epsilon=0.1),
    ),
    "proxy_anchor": LossSettings(
        partial(losses.ProxyAnchorLoss, margin=0.1, alpha=32),
        learning_rate=PROXY_LEARNING_RATE,
    ),
    "proxy_nca": LossSettings(
        # The temperature of 1/9 is ProxyNCA++'s (Teh, DeVries, Taylor, ECCV 2020).
        partial(losses.ProxyNCALoss, softmax_scale=9),
        learning_rate=PROXY_LEARNING_RATE,
    ),
    "normalized_softmax": LossSettings(
        partial(losses.NormalizedSoftmaxLoss, temperature=0.05),
        learning_rate=PROXY_LEARNING_RATE,
    ),
}
