import numpy as np
import pytest
import torch

from tests.samplers.drawing import (
    LABELS,
    sampler_of,
)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": None}, ValueError, "labels must be given.*got None"),
        ({"labels": []}, ValueError, "labels must be given.*got none"),
        ({"labels": torch.zeros(0, dtype=torch.long)}, ValueError, "labels must be given.*got none"),
        ({"labels": np.zeros((4, 2))}, ValueError, r"labels must be 1-D.*\(4, 2\)"),
        ({"labels": 3}, ValueError, r"labels must be 1-D.*got shape \(\) from int"),
        ({"labels": [[1], [1, 2]]}, ValueError, "labels must be 1-D.*several lengths"),
        ({"labels": [0.0, float("nan")] * 20}, ValueError, "labels must not be NaN, got nan for sample 1"),
        ({"labels": torch.full((9,), torch.nan)}, ValueError, "labels must not be NaN"),
        ({"labels": np.array([1, "a", None], dtype=object)}, TypeError, "labels must be of one kind"),
        ({"labels": [0, 1, 2, 3, 4] * 9}, ValueError, r"batch_size / m = 12 / 2 = 6 classes, got 5"),
        ({"m": 0}, ValueError, "m must be at least 1, got 0"),
        ({"m": 2.0}, TypeError, r"m must be an integer, got 2\.0 of type float"),
        ({"m": True}, TypeError, "m must be an integer, got True"),
        ({"m": 5}, ValueError, r"batch_size must be a multiple of 2 \* m = 10.*got 12"),
        ({"batch_size": 14}, ValueError, r"batch_size must be a multiple of 2 \* m = 4.*got 14"),
        ({"batch_size": None}, TypeError, "batch_size must be an integer, got None"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": "12"}, TypeError, "batch_size must be an integer, got '12'"),
        (
            {"length_before_new_iter": 11},
            ValueError,
            "length_before_new_iter must be at least batch_size = 12",
        ),
        (
            {"length_before_new_iter": 1},
            ValueError,
            "length_before_new_iter must be at least batch_size = 12, got 1",
        ),
        (
            {"length_before_new_iter": 1e5},
            TypeError,
            "length_before_new_iter must be an integer, got 100000.0",
        ),
        (
            {"length_before_new_iter": 2**62},
            ValueError,
            "samples of an epoch of all replicas must be below",
        ),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": 2**64}, ValueError, f"seed must be below {2**64}, got {2**64}"),
        ({"seed": 0.5}, TypeError, "seed must be an integer"),
        ({"num_replicas": 0}, ValueError, "num_replicas must be at least 1"),
        ({"num_replicas": 2}, ValueError, "rank must be 0 to 1"),
        ({"num_replicas": 2, "rank": 2}, ValueError, "rank must be below num_replicas = 2, got 2"),
        ({"rank": 1}, ValueError, "rank must be below num_replicas = 1, got 1"),
        ({"num_replicas": 2, "rank": -1}, ValueError, "rank must be at least 0, got -1"),
        (
            {"num_replicas": 2, "rank": 0, "seed": None},
            ValueError,
            "seed must be an integer, the same for all 2",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        sampler_of(**arguments)


@pytest.mark.parametrize(
    ("method", "argument", "error", "message"),
    [
        ("set_epoch", -1, ValueError, "epoch must be at least 0, got -1"),
        ("set_epoch", 1.0, TypeError, "epoch must be an integer, got 1.0"),
        ("set_epoch", 2**62, ValueError, "epoch must be below"),
        ("state_dict", 9, ValueError, "batches_consumed must be at most 8.*got 9"),
        ("state_dict", -1, ValueError, "batches_consumed must be at least 0, got -1"),
        ("state_dict", 1.5, TypeError, "batches_consumed must be an integer, got 1.5"),
        ("load_state_dict", None, ValueError, "state_dict must be what state_dict.. returned, got None"),
        ("load_state_dict", {"epoch": 1}, ValueError, "state_dict must be .*got {'epoch': 1}"),
    ],
)
def test_bad_positions_are_refused(method, argument, error, message):
    with pytest.raises(error, match=message):
        getattr(sampler_of(), method)(argument)


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        ({"labels": LABELS[::-1] * (LABELS != 3)}, "num_samples|num_classes|labels_checksum"),
        ({"labels": np.roll(LABELS, 1)}, "labels_checksum is"),
        ({"m": 3}, "m is 2 there, 3 here"),
        ({"batch_size": 8}, "batch_size is 12 there, 8 here"),
        ({"length_before_new_iter": 108}, "samples_per_epoch is 96 there, 108 here"),
        ({"num_replicas": 2, "rank": 0}, "num_replicas is 1 there, 2 here"),
        ({"seed": 1}, "seed is 0 there, 1 here"),
    ],
)
def test_a_state_of_another_configuration_is_refused_and_changes_nothing(arguments, difference):
    sampler = sampler_of()
    list(sampler)
    other = sampler_of(**arguments)
    with pytest.raises(ValueError, match=difference):
        other.load_state_dict(sampler.state_dict(2))
    assert list(other) == list(sampler_of(**arguments))


@pytest.mark.parametrize(("name", "value"), [("epoch", -1), ("epoch", "1"), ("batch", 9), ("seed", None)])
def test_a_damaged_state_is_refused(name, value):
    with pytest.raises((ValueError, TypeError), match=f"{name}.* must be"):
        sampler_of(seed=None).load_state_dict(sampler_of().state_dict(2) | {name: value})
