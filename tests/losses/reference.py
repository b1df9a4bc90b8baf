"""The loss by other means: scikit-learn's ridge regression, and a loss of all that it expresses."""

import torch
from pytorch_metric_learning import losses
from sklearn.linear_model import Ridge

LABELS = torch.arange(16) // 4


def batch(dtype=torch.float64, requires_grad=True):
    embeddings = torch.randn(16, 6, dtype=dtype, requires_grad=requires_grad)
    histograms = torch.softmax(torch.randn(16, 5, dtype=dtype), dim=1).requires_grad_(requires_grad)
    return embeddings, histograms


def expressed_by_sklearn(embeddings, histograms, first_half, ridge=0.05, normalize_embeddings=True):
    """Ŷ by two ridge regressions with an intercept, of the second half on the first and of that on it."""
    y, z = embeddings.detach().double(), histograms.detach().double()
    y = y / y.norm(dim=1, keepdim=True) if normalize_embeddings else y
    expressed = torch.empty_like(y)
    for side in (first_half, ~first_half):
        variance = z[~side].var(dim=0, correction=0).sum().item()
        model = Ridge(alpha=ridge * variance).fit(z[~side].numpy(), y[~side].numpy())
        expressed[side] = torch.from_numpy(model.predict(z[side].numpy())) - y[~side].mean(dim=0)
    return expressed


def cross_batch_term(embeddings, histograms, first_half, labels=LABELS, ridge=0.05, loss=None):
    normalizes = loss is None or loss.distance.normalize_embeddings
    expressed = expressed_by_sklearn(embeddings, histograms, first_half, ridge, normalizes)
    loss = losses.ContrastiveLoss(pos_margin=0, neg_margin=1) if loss is None else loss
    return loss(expressed, labels)


def proxies(loss_class, **kwargs):
    return lambda: loss_class(num_classes=4, embedding_size=6, **kwargs)


# Every loss of pytorch-metric-learning as a base; those without an entry are built without arguments.
SPECIAL_BASES = {
    "ArcFaceLoss": proxies(losses.ArcFaceLoss),
    "CosFaceLoss": proxies(losses.CosFaceLoss),
    "CrossBatchMemory": lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), 6, memory_size=48),
    "HistogramLoss": lambda: losses.HistogramLoss(n_bins=20),
    "LargeMarginSoftmaxLoss": proxies(losses.LargeMarginSoftmaxLoss),
    "MultipleLosses": lambda: losses.MultipleLosses([losses.ContrastiveLoss(), losses.TripletMarginLoss()]),
    "NormalizedSoftmaxLoss": proxies(losses.NormalizedSoftmaxLoss),
    "P2SGradLoss": lambda: losses.P2SGradLoss(descriptors_dim=6, num_classes=4),
    "ProxyAnchorLoss": proxies(losses.ProxyAnchorLoss),
    "ProxyNCALoss": proxies(losses.ProxyNCALoss),
    "RankedListLoss": lambda: losses.RankedListLoss(margin=0.4, Tn=10),
    "SoftTripleLoss": proxies(losses.SoftTripleLoss),
    "SphereFaceLoss": proxies(losses.SphereFaceLoss),
    "SubCenterArcFaceLoss": proxies(losses.SubCenterArcFaceLoss),
}
NO_LOSSES = {
    "BaseLossWrapper",
    "BaseMetricLossFunction",
    "EmbeddingRegularizerMixin",
    "WeightRegularizerMixin",
    "GenericPairLoss",
}
WITHOUT_LABELS = {
    "ManifoldLoss": lambda: losses.ManifoldLoss(l=6),
    "SelfSupervisedLoss": lambda: losses.SelfSupervisedLoss(losses.NTXentLoss()),
    "VICRegLoss": losses.VICRegLoss,
}
ALL_LOSSES = sorted(
    name
    for name, member in vars(losses).items()
    if isinstance(member, type) and name not in NO_LOSSES and name != "CrossBatchPrototypeLoss"
)


def make_base(name):
    return SPECIAL_BASES.get(name, getattr(losses, name))()
