import itertools

import pytest
import torch

STEPS = (
    "sampler_like",
    "sampler_like_mined",
    "unsorted",
    "unsorted_mined",
    "cross_batch_memory",
    "multiple",
    "only_cross_batch",
    "weight_zero",
    "one_class",
    "one_class_a_process",
    "one_class_on_process_0",
    "without_the_loss",
)
world_sizes = pytest.mark.parametrize("world_size", [2, 4])


@world_sizes
@pytest.mark.parametrize("find_unused_parameters", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_gradients_are_those_of_one_process_on_the_joined_batch(
    results, world_size, find_unused_parameters, step
):
    expected = results["alone"][world_size][step]
    for process in results[world_size]:
        gradients = process["together"][find_unused_parameters][step]
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("step", ["sampler_like", "unsorted", "only_cross_batch"])
def test_prototypes_learn(results, step):
    """What the comparison of gradients above would not notice if all of them were zero."""
    assert results["alone"][2][step]["trunk.trunk.2.prototypes"].abs().max() > 1e-6


@world_sizes
def test_efficient_wrappers_run_and_keep_the_processes_equal(results, world_size):
    first, *others = [process["efficiently"] for process in results[world_size]]
    assert all(value.isfinite() for value in first["losses"].values())
    assert first["losses"]["sampler_like"] > 0
    for other in others:
        torch.testing.assert_close(other["weights"], first["weights"], rtol=0, atol=0)


def steps_of(results, world_size):
    """The batches of all processes, step by step, with their classes: 9 samples each, one after another."""
    epochs = [itertools.chain(*process["sampled"]["epochs"]) for process in results[world_size]]
    for batches in zip(*epochs, strict=True):
        yield torch.tensor(batches), torch.tensor(batches) // 9


@world_sizes
def test_first_halves_share_no_class_with_second_halves_across_processes(results, world_size):
    for _, classes in steps_of(results, world_size):
        first, second = classes.chunk(2, dim=1)
        assert set(first.flatten().tolist()).isdisjoint(second.flatten().tolist())


@world_sizes
def test_processes_never_draw_the_same_sample_in_a_step(results, world_size):
    for samples, _ in steps_of(results, world_size):
        assert len(samples.unique()) == samples.numel() == world_size * 8


@world_sizes
@pytest.mark.parametrize("num_workers", [0, 1])
def test_resuming_in_an_epoch_goes_on_exactly_with_another_number_of_workers(
    results, world_size, num_workers
):
    for process in results[world_size]:
        sampled = process["sampled"]
        first_epoch, second_epoch = sampled["epochs"]
        assert sampled["before"] == first_epoch[:2]
        assert sampled["after"][num_workers] == [first_epoch[2:], second_epoch]
