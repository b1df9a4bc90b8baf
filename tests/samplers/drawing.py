"""Samplers to test, and what they draw."""

import itertools
from collections import defaultdict

import numpy as np
from hypothesis import strategies as st

from pml_xbml.samplers import DisjointClassPairSampler

LABELS = np.repeat(np.arange(20), 7)


def sampler_of(labels=LABELS, m=2, batch_size=12, length_before_new_iter=96, seed=0, **kwargs):
    return DisjointClassPairSampler(labels, m, batch_size, length_before_new_iter, seed, **kwargs)


def epochs_of(sampler, count):
    return list(itertools.chain.from_iterable(list(sampler) for _ in range(count)))


def batches_of(indices, batch_size):
    assert len(indices) % batch_size == 0
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


def assert_all_before_any_again(drawn, population):
    """Walks through what was drawn, item by item: none again until all of the population were."""
    seen = set()
    for item in drawn:
        assert item in population
        assert item not in seen
        seen.add(item)
        if len(seen) == len(population):
            seen.clear()


@st.composite
def configurations(draw, max_replicas=1):
    """Labels in any order, with classes of unequal sizes, and arguments that fit them."""
    m = draw(st.integers(1, 5))
    classes_per_half = draw(st.integers(1, 5))
    num_classes = draw(st.integers(2 * classes_per_half, 2 * classes_per_half + 25))
    sizes = draw(st.lists(st.integers(1, 14), min_size=num_classes, max_size=num_classes))
    order = np.random.default_rng(draw(st.integers(0, 2**32))).permutation(sum(sizes))
    labels = np.repeat(np.arange(num_classes) * 7 - 20, sizes)[order].tolist()
    batch_size = 2 * classes_per_half * m
    return {
        "labels": labels,
        "m": m,
        "batch_size": batch_size,
        "length_before_new_iter": draw(st.integers(batch_size, 12 * batch_size)),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "num_replicas": draw(st.integers(1, max_replicas)),
    }


def indices_of_classes(labels):
    classes = defaultdict(set)
    for index, label in enumerate(labels):
        classes[label].add(index)
    return classes
