import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.utils import common_functions as c_f

from pml_xbml.samplers._labels_by_class import group_by_class, label_array

INTEGER_TYPES = [np.bool_, np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64]


def assert_grouped_as_pml_does(labels):
    indices, starts = group_by_class(labels)
    expected = c_f.get_labels_to_indices(labels)
    assert len(starts) == len(expected) + 1
    for position, label in enumerate(sorted(expected)):
        assert indices[starts[position] : starts[position + 1]].tolist() == expected[label].tolist()


@given(st.data(), st.sampled_from(INTEGER_TYPES), st.integers(1, 300))
def test_integers_are_grouped_by_class(data, dtype, num_samples):
    low, high = (0, 1) if dtype is np.bool_ else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    smallest = data.draw(st.integers(low, high))
    span = data.draw(st.sampled_from([0, 1, num_samples - 1, num_samples, high - low]))
    largest = min(high, smallest + span)
    values = data.draw(st.lists(st.integers(smallest, largest), min_size=num_samples, max_size=num_samples))
    assert_grouped_as_pml_does(np.array(values, dtype=dtype))


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1))
def test_strings_are_grouped_by_class(labels):
    assert_grouped_as_pml_does(label_array(labels))


@given(st.lists(st.floats(allow_nan=False), min_size=1))
def test_floats_are_grouped_by_class(labels):
    assert_grouped_as_pml_does(label_array(labels))


@pytest.mark.parametrize("num_samples", [128, 129, 32768, 32769])
def test_the_smallest_integer_type_holds_every_index(num_samples):
    indices, starts = group_by_class(np.zeros(num_samples, dtype=int))
    assert indices.tolist() == list(range(num_samples))
    assert starts.tolist() == [0, num_samples]


def test_tensors_with_a_gradient_and_without_a_numpy_type_are_taken():
    labels = torch.tensor([1.0, 0.5], dtype=torch.bfloat16, requires_grad=True)
    assert label_array(labels).tolist() == [1.0, 0.5]


@pytest.mark.parametrize("span", [2**31 - 1, 2**31, 2**32, 2**63 - 1])
def test_integers_far_apart_are_sorted(span):
    indices, starts = group_by_class(np.array([span, 5, 0, span - 1]))
    assert indices.tolist() == [2, 1, 3, 0]
    assert starts.tolist() == [0, 1, 2, 3, 4]
