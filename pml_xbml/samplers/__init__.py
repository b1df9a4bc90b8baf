from .disjoint_class_pair_batch_sampler import DisjointClassPairBatchSampler
from .disjoint_class_pair_sampler import DisjointClassPairSampler

__all__ = ["DisjointClassPairBatchSampler", "DisjointClassPairSampler"]
