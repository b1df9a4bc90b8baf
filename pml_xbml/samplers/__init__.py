from .disjoint_class_pair_sampler import DisjointClassPairSampler

__all__ = ["DisjointClassPairSampler"]
