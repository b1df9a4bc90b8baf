import logging

import numpy as np
import pytest
import torch
from pytorch_metric_learning import samplers
from pytorch_metric_learning.utils import common_functions as c_f
from torch.utils import data

from pml_xbml.samplers import DisjointClassPairSampler

SIZES = {"m": 2, "batch_size": 8, "length_before_new_iter": 32}


@pytest.mark.parametrize("is_saved_with_the_plugins", [True, False])
def test_a_checkpoint_is_of_a_sampler_of_the_same_kind(tiny_run, tmp_path, is_saved_with_the_plugins):
    runs = [tiny_run(tmp_path), tiny_run(tmp_path)]
    of_pml = samplers.MPerClassSampler(runs[0].dataset.labels, **SIZES)
    runs[is_saved_with_the_plugins].trainer.sampler = of_pml
    runs[0].hooks.resume(runs[0].trainer, runs[0].model_folder)
    name = type(runs[1].trainer.sampler).__name__
    with pytest.raises(ValueError, match=f"the trainer's sampler must be .* got a {name}; build the"):
        runs[1].hooks.resume(runs[1].trainer, runs[1].model_folder)


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_the_sampler_goes_on_whatever_the_interval(tiny_run, tmp_path, interval):
    """Three batches make an epoch of the trainer and four a pass of the sampler, and a worker reads ahead."""
    options = {"sampler_seed": 5, "num_workers": 1, "checkpoint_interval": interval}
    seen = []
    for _ in range(2):
        run = tiny_run(tmp_path, picture_interval=None, **options)
        run.trainer.data_and_label_getter = lambda batch: seen.append(batch[1].tolist()) or batch
        run.train(6 if not seen else 8)

    sampler = DisjointClassPairSampler(run.dataset.labels, seed=5, **SIZES)
    labels = [int(run.dataset.labels[index]) for _ in range(6) for index in sampler]
    assert seen == [labels[start : start + 8] for start in range(0, len(labels), 8)]


def test_a_sampler_that_shuffles_in_place_comes_back(tiny_run, tmp_path):
    runs = [tiny_run(tmp_path, picture_interval=None) for _ in range(2)]
    for run in runs:
        run.trainer.sampler = samplers.FixedSetOfTriplets(run.dataset.labels, 20)
    runs[0].train(1)
    assert runs[1].hooks.resume(runs[1].trainer, runs[1].model_folder) == 2
    triplets = [run.trainer.sampler.fixed_set_of_triplets for run in runs]
    assert isinstance(triplets[1], np.ndarray)
    np.testing.assert_array_equal(*triplets)


class EveryOther(data.Sampler):
    """Goes on where its last pass ended, and says so unless ``is_stateful`` is False."""

    def __init__(self, size):
        self.size, self.start = size, 0

    def __len__(self):
        return self.size // 2

    def __iter__(self):
        self.start += 1
        return iter(range(self.start % 2, self.size, 2))


class Stateful(EveryOther):
    def state_dict(self):
        return {"start": self.start}

    def load_state_dict(self, state):
        self.start = state["start"]


def generator():
    return torch.Generator().manual_seed(3)


SAMPLERS = {
    "none": lambda dataset: None,
    "RandomSampler": lambda dataset: data.RandomSampler(dataset, generator=generator()),
    "RandomSampler with replacement": lambda dataset: data.RandomSampler(
        dataset, replacement=True, num_samples=40, generator=generator()
    ),
    "RandomSampler without generator": data.RandomSampler,
    "SubsetRandomSampler": lambda dataset: data.SubsetRandomSampler(range(24), generator=generator()),
    "WeightedRandomSampler": lambda dataset: data.WeightedRandomSampler(
        torch.rand(36, generator=generator()).tolist(), 30, generator=generator()
    ),
    "BatchSampler": lambda dataset: data.BatchSampler(
        data.RandomSampler(dataset, generator=generator()), 8, drop_last=True
    ),
    "DistributedSampler": lambda dataset: data.DistributedSampler(dataset, 1, 0),
    "MPerClassSampler": lambda dataset: samplers.MPerClassSampler(dataset.labels, **SIZES),
    "FixedSetOfTriplets": lambda dataset: samplers.FixedSetOfTriplets(dataset.labels, 20),
    "Stateful": lambda dataset: Stateful(36),
}


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_a_resumed_run_reads_what_an_unbroken_one_reads(tiny_run, tmp_path, make, num_workers, caplog):
    seen = {}
    for name, pieces in (("unbroken", [5]), ("resumed", [2, 3, 5])):
        batches = seen[name] = []
        for num_epochs in pieces:
            run = tiny_run(tmp_path / name, picture_interval=None, save_models=False, num_workers=num_workers)
            run.trainer.sampler = make(run.dataset)
            run.trainer.data_and_label_getter = lambda batch, batches=batches: (
                batches.append(batch[0]) or batch
            )
            run.train(num_epochs)
    assert len(seen["unbroken"]) == len(seen["resumed"]) == 15
    assert all(torch.equal(one, other) for one, other in zip(*seen.values(), strict=True))
    assert not any("checkpoint" in record.message for record in caplog.records)


def numpy_generator():
    sampler = EveryOther(36)
    sampler.rng = np.random.default_rng(3)
    return sampler


def test_of_another_sampler_the_generators_are_kept_and_a_warning_says_so_once(tiny_run, tmp_path, caplog):
    caplog.set_level(logging.WARNING, c_f.LOGGER.name)
    runs = [tiny_run(tmp_path, picture_interval=None) for _ in range(2)]
    for run in runs:
        run.trainer.sampler = numpy_generator()
    runs[0].trainer.sampler.rng.random(5)
    expected = runs[0].trainer.sampler.rng.bit_generator.state
    runs[0].train(2)
    messages = [record.getMessage() for record in caplog.records]
    (message,) = [text for text in messages if "checkpoint" in text]
    assert message.startswith("Of EveryOther the checkpoint keeps the random generators and nothing else.")
    runs[1].hooks.resume(runs[1].trainer, runs[1].model_folder)
    assert runs[1].trainer.sampler.rng.bit_generator.state == expected


class EpochCountingSampler(data.RandomSampler):
    """Draws by an epoch that it counts, so that another pass is another order."""

    epoch = 0

    def __iter__(self):
        self.epoch += 1
        self.generator = torch.Generator().manual_seed(self.epoch)
        return super().__iter__()


class RenamedSampler(data.RandomSampler):
    """Draws as it always did."""


@pytest.mark.parametrize(("sampler_class", "warns"), [(EpochCountingSampler, True), (RenamedSampler, False)])
def test_a_subclass_of_a_known_sampler_is_known_if_it_draws_alike(
    tiny_run, tmp_path, caplog, sampler_class, warns
):
    caplog.set_level(logging.WARNING, c_f.LOGGER.name)
    run = tiny_run(tmp_path, picture_interval=None)
    run.trainer.sampler = sampler_class(range(36))
    run.train(1)
    messages = [record.getMessage() for record in caplog.records]
    assert any(text.startswith(f"Of {sampler_class.__name__} the") for text in messages) == warns


def test_a_loaders_own_generator_is_not_kept_and_a_warning_says_so(tiny_run, tmp_path, caplog):
    caplog.set_level(logging.WARNING, c_f.LOGGER.name)
    run = tiny_run(tmp_path, picture_interval=None)
    initialize_dataloader = run.trainer.initialize_dataloader

    def with_generator():
        initialize_dataloader()
        run.trainer.dataloader.generator = generator()

    run.trainer.initialize_dataloader = with_generator
    run.train(2)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("The trainer's loader has a random generator of its own")
