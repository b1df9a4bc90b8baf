"""DisjointClassPairSampler beside pytorch-metric-learning's MPerClassSampler, and as data grows."""

import tracemalloc

import numpy as np
import pytest
from pytorch_metric_learning.samplers import MPerClassSampler

from pml_xbml.samplers import DisjointClassPairSampler

M, BATCH_SIZE, NUM_BATCHES = 4, 128, 100
SAMPLES_A_CLASS = 10


def labels_of(num_samples):
    return np.random.default_rng(0).permutation(np.arange(num_samples) // SAMPLES_A_CLASS)


def build(sampler_class, labels):
    return sampler_class(labels, M, BATCH_SIZE, length_before_new_iter=NUM_BATCHES * BATCH_SIZE)


def count(sampler):
    return sum(1 for _ in sampler)


@pytest.fixture(scope="module")
def million_labels():
    return labels_of(1_000_000)


def test_set_up(ratio, million_labels):
    ratio(
        "DisjointClassPairSampler, set-up with 1,000,000 samples of 100,000 classes",
        lambda: build(DisjointClassPairSampler, million_labels),
        "MPerClassSampler",
        lambda: build(MPerClassSampler, million_labels),
        at_least=5,
        rounds=2,
        warmup_rounds=0,
    )


def test_batches(ratio, million_labels):
    ours, theirs = (
        build(sampler, million_labels) for sampler in (DisjointClassPairSampler, MPerClassSampler)
    )
    assert count(ours) == NUM_BATCHES * BATCH_SIZE
    ratio(
        "DisjointClassPairSampler, 100 batches of 128 from 1,000,000 samples of 100,000 classes",
        lambda: count(ours),
        "MPerClassSampler",
        lambda: count(theirs),
        at_least=50,
        rounds=2,
        warmup_rounds=0,
    )


def test_memory(benchmark, report, million_labels):
    def traced():
        tracemalloc.start()
        sampler = build(DisjointClassPairSampler, million_labels)
        next(iter(sampler))
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return kept, peak

    kept, peak = benchmark.pedantic(traced, rounds=1)
    report(
        "DisjointClassPairSampler, memory kept",
        "the array of labels",
        kept / million_labels.nbytes,
        at_most=3,
    )
    report(
        "DisjointClassPairSampler, peak memory",
        "the array of labels",
        peak / million_labels.nbytes,
        at_most=3,
    )


def test_set_up_as_data_grows(ratio):
    few, many = labels_of(125_000), labels_of(1_000_000)
    ratio(
        "DisjointClassPairSampler, set-up with 1,000,000 samples",
        lambda: build(DisjointClassPairSampler, many),
        "with 125,000",
        lambda: build(DisjointClassPairSampler, few),
        # It sorts, n log n, which is 9.4; and a million samples do not fit the cache.
        at_most=15,
        rounds=5,
    )


def test_batches_as_data_grows(ratio):
    few, many = (build(DisjointClassPairSampler, labels_of(size)) for size in (125_000, 1_000_000))
    ratio(
        "DisjointClassPairSampler, 100 batches from 1,000,000 samples",
        lambda: count(many),
        "from 125,000",
        lambda: count(few),
        at_most=2,
        rounds=5,
    )
