from collections import Counter
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pml_xbml._kernels.halves import CUT_IN_THE_MIDDLE, Halves, class_disjoint_halves


def halves_by_loop(labels, world_size):
    """The rule in plain Python: blocks that keep their halves, or classes that are dealt."""
    block_size, rest = divmod(len(labels), world_size)
    in_first = [position % block_size < block_size // 2 for position in range(len(labels))]
    first, second = (
        {label for label, member in zip(labels, in_first, strict=True) if member is side}
        for side in (True, False)
    )
    if not rest and block_size % 2 == 0 and not first & second:
        return in_first
    dealt = sorted(Counter(labels).items(), key=lambda item: (-item[1], item[0]))
    sizes = list(accumulate(size for _, size in dealt))
    cut = min(range(len(sizes)), key=lambda index: abs(2 * sizes[index] - len(labels)))
    chosen = {label for label, _ in dealt[: cut + 1]}
    return [label in chosen for label in labels]


class TestClassDisjointHalves:
    def test_keeps_the_halves_of_a_batch_that_has_them(self):
        assert class_disjoint_halves(torch.tensor([7, 7, 1, 9, 2, 2])).tolist() == [
            1,
            1,
            1,
            0,
            0,
            0,
        ]

    @given(st.lists(st.integers(-3, 6), min_size=2, max_size=40), st.randoms())
    def test_no_class_is_shared_and_order_does_not_matter(self, values, random):
        labels = torch.tensor(values)
        first_half = class_disjoint_halves(labels)
        sides = [set(labels[side].tolist()) for side in (first_half, ~first_half)]
        assert not sides[0] & sides[1]
        if len(set(values)) > 1:
            assert sides[0]
            assert sides[1]
        else:
            assert first_half.all()
        largest = max(values.count(value) for value in values)
        assert abs(int(first_half.sum()) - int((~first_half).sum())) <= largest

        def has_halves(order):
            middle = len(values) // 2
            return not set(labels[order[:middle]].tolist()) & set(labels[order[middle:]].tolist())

        shuffled = random.sample(range(len(values)), len(values))
        if not has_halves(list(range(len(values)))) and not has_halves(shuffled):
            assert torch.equal(class_disjoint_halves(labels[shuffled]), first_half[shuffled])

    @given(
        st.integers(0, 20).flatmap(
            lambda largest: st.lists(st.integers(0, largest), min_size=8, max_size=64)
        ),
        st.integers(1, 8),
    )
    def test_equal_the_rule_in_plain_python(self, labels, world_size):
        first_half = class_disjoint_halves(torch.tensor(labels), world_size)
        assert first_half.tolist() == halves_by_loop(labels, world_size)

    @given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2), st.randoms())
    def test_equal_the_rule_for_blocks_whose_halves_may_share_a_class(
        self, world_size, middle, num_shared, random
    ):
        """Labels 0 to 4 in the first halves, 5 to 9 in the second, but for those that are exchanged."""
        labels = []
        for _ in range(world_size):
            labels += random.choices(range(5), k=middle) + random.choices(range(5, 10), k=middle)
        for place in random.sample(range(len(labels)), min(num_shared, len(labels))):
            labels[place] = random.randrange(10)
        first_half = class_disjoint_halves(torch.tensor(labels), world_size)
        assert first_half.tolist() == halves_by_loop(labels, world_size)

    def test_equally_large_classes_are_dealt_in_the_order_of_their_labels(self):
        """A sort that is not stable mixes up more than 16 of them, on processors with AVX-512."""
        labels = torch.arange(40).repeat(2)
        assert torch.equal(class_disjoint_halves(labels), labels < 20)

    def test_sizes_balance_as_well_as_whole_classes_allow(self):
        labels = torch.tensor([0] * 8 + [1, 2, 3, 4, 5, 6, 7, 8])
        labels = labels[torch.randperm(16)]
        assert class_disjoint_halves(labels).sum() == 8

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float32, torch.bool])
    def test_takes_labels_of_any_dtype(self, dtype):
        first_half = class_disjoint_halves(torch.tensor([1, 0, 1, 0]).to(dtype))
        assert first_half.tolist() in ([1, 0, 1, 0], [0, 1, 0, 1])

    def test_huge_labels_are_told_apart(self):
        labels = torch.tensor([2**62, 2**62 + 1, 2**62, -(2**62)])
        first_half = class_disjoint_halves(labels)
        assert first_half[0] == first_half[2] != first_half[1]

    def test_blocks_of_several_processes_keep_their_halves(self):
        labels = torch.tensor([0, 1, 2, 3, 1, 4, 2, 5])
        assert class_disjoint_halves(labels, 2).tolist() == [1, 1, 0, 0, 1, 1, 0, 0]

    def test_blocks_that_share_a_class_across_their_halves_are_dealt_anew(self):
        labels = torch.tensor([0, 1, 2, 3, 2, 4, 5, 6])
        first_half = class_disjoint_halves(labels, 2)
        assert not set(labels[first_half].tolist()) & set(labels[~first_half].tolist())

    @pytest.mark.parametrize(
        ("labels", "world_size", "first_half"),
        [
            ([0, 1, 2, 0, 1, 2], 1, [1, 0, 0, 1, 0, 0]),
            ([0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 1, [1] * 6 + [0] * 7),
            ([2, 1, 0], 1, [0, 0, 1]),
            ([0, 1, 2, 3, 4], 2, [1, 1, 0, 0, 0]),
            ([1, 0], 2, [0, 1]),
        ],
        ids=[
            "the first of equally good cuts", "the first behind four classes", "odd",
            "blocks that leave a rest", "blocks of one sample",
        ],
    )  # fmt: skip
    def test_dealt_by_the_labels_alone(self, labels, world_size, first_half):
        dealt = class_disjoint_halves(torch.tensor(labels), world_size)
        assert dealt.tolist() == [bool(value) for value in first_half]

    @pytest.mark.parametrize("world_size", [0, -1, 4])
    def test_refuses_fewer_labels_than_blocks(self, world_size):
        with pytest.raises(ValueError, match=f"between 1 and the number of labels, 3, got {world_size}"):
            class_disjoint_halves(torch.tensor([0, 1, 2]), world_size)


class TestHalves:
    @pytest.mark.parametrize(
        ("in_first", "are_two"),
        [(None, True), ([True, False], True), ([True, True], False), ([False, False], False)],
    )
    def test_are_two_where_neither_is_empty(self, in_first, are_two):
        halves = Halves(None if in_first is None else torch.tensor(in_first))
        assert halves.are_two is are_two

    @pytest.mark.parametrize("num_rows", [2, 6, 10])
    def test_cut_in_the_middle_halve_the_rows(self, num_rows):
        rows = torch.randn(num_rows, 3)
        middle = num_rows // 2
        first, second = CUT_IN_THE_MIDDLE.split(rows)
        assert torch.equal(first, rows[:middle])
        assert torch.equal(second, rows[middle:])
        stacked, members = CUT_IN_THE_MIDDLE.stack(rows)
        assert members is None
        assert torch.equal(stacked, torch.stack([rows[:middle], rows[middle:]]))

    def test_by_a_mask_are_told_by_their_members(self):
        rows, in_first = torch.randn(6, 3), torch.tensor([True, False, False, True, False, False])
        stacked, members = Halves(in_first).stack(rows)
        for half, chosen, expected in zip(stacked, members, ([0, 3], [1, 2, 4, 5]), strict=True):
            assert torch.equal(half, rows)
            assert chosen.flatten().nonzero().flatten().tolist() == expected
        for half, expected in zip(Halves(in_first).split(rows), ([0, 3], [1, 2, 4, 5]), strict=True):
            assert torch.equal(half, rows[expected])

    def test_the_default_that_all_calls_share_cannot_be_changed(self):
        with pytest.raises(AttributeError, match="cannot assign to field 'in_first'"):
            CUT_IN_THE_MIDDLE.in_first = torch.tensor([True, False])

    def test_are_compared_as_objects_because_masks_have_no_single_truth(self):
        mask = torch.tensor([True, False])
        assert Halves(mask) != Halves(mask.clone())
