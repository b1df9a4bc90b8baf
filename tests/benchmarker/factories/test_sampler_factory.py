import numpy as np
import pytest

LABELS = np.repeat(np.arange(8), 5)


@pytest.fixture
def create(getter):
    factory = getter.get("factory", class_name="SamplerFactory", params={"getter": getter})
    return lambda specs: factory.create(
        specs, kwargs={"labels": LABELS, "length_before_new_iter": 40, "batch_size": 8}
    )


def test_the_batch_size_of_the_trainer_goes_to_samplers_that_need_one(create):
    batch = list(create({"DisjointClassPairSampler": {"m": 2, "seed": 0}}))[:8]
    assert set(LABELS[batch[:4]]).isdisjoint(LABELS[batch[4:]])
    assert create({"MPerClassSampler": {"m": 3}}).batch_size is None


def test_a_sampler_may_be_as_long_as_the_data_set(create):
    sampler = create({"DisjointClassPairSampler": {"m": 2, "length_before_new_iter": "dataset_length"}})
    assert len(sampler) == 40
