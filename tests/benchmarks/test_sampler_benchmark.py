"""DisjointClassPairSampler beside pytorch-metric-learning's MPerClassSampler, each group one comparison.

pytest tests/benchmarks/test_sampler_benchmark.py --benchmark-only --benchmark-columns=median,iqr,rounds

The numbers in brackets are the ratios to the fastest of the group.
"""

import tracemalloc

import numpy as np
import pytest
from pytorch_metric_learning.samplers import MPerClassSampler

from pml_xbml.samplers import DisjointClassPairSampler

SAMPLERS = [DisjointClassPairSampler, MPerClassSampler]
M, BATCH_SIZE, NUM_BATCHES = 4, 128, 1000
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


@pytest.mark.benchmark(group="set-up, 1,000,000 samples of 100,000 classes")
@pytest.mark.parametrize("sampler_class", SAMPLERS)
def test_set_up(benchmark, sampler_class, million_labels):
    benchmark.pedantic(build, args=(sampler_class, million_labels), rounds=7, warmup_rounds=1)


@pytest.mark.benchmark(group="1,000 batches of 128, 1,000,000 samples of 100,000 classes")
@pytest.mark.parametrize("sampler_class", SAMPLERS)
def test_batches(benchmark, sampler_class, million_labels):
    sampler = build(sampler_class, million_labels)
    samples = benchmark.pedantic(count, args=(sampler,), rounds=3)
    assert samples == NUM_BATCHES * BATCH_SIZE


@pytest.mark.benchmark(group="set-up and a first batch, memory traced (see extra_info)")
def test_memory(benchmark, million_labels):
    def traced():
        tracemalloc.start()
        sampler = build(DisjointClassPairSampler, million_labels)
        next(iter(sampler))
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return kept, peak

    kept, peak = benchmark.pedantic(traced, rounds=1)
    benchmark.extra_info["kept / label array"] = kept / million_labels.nbytes
    benchmark.extra_info["peak / label array"] = peak / million_labels.nbytes
    assert peak <= 3 * million_labels.nbytes


@pytest.mark.benchmark(group="set-up as samples and classes grow")
@pytest.mark.parametrize("growth", [1, 2, 4, 8])
def test_set_up_as_data_grows(benchmark, growth):
    benchmark.pedantic(build, args=(DisjointClassPairSampler, labels_of(125_000 * growth)), rounds=5)


@pytest.mark.benchmark(group="1,000 batches as samples and classes grow")
@pytest.mark.parametrize("growth", [1, 2, 4, 8])
def test_batches_as_data_grows(benchmark, growth):
    sampler = build(DisjointClassPairSampler, labels_of(125_000 * growth))
    benchmark.pedantic(count, args=(sampler,), rounds=5)
