import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from pml_xbml.samplers._shuffled_passes import derive_keys, draw_items, shuffled_items


def keys(seed, count):
    return derive_keys(np.array([seed], dtype=np.uint64), np.arange(count))


def whole_order(key, size):
    return shuffled_items(np.repeat(key, size), np.full(size, size), np.arange(size))


def test_keys_are_those_of_splitmix64():
    # First outputs of the reference implementation (prng.di.unimi.it/splitmix64.c) for seed 1234567.
    assert keys(1234567, 3).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_an_order_holds_every_item_once(size, seed):
    assert sorted(whole_order(keys(seed, 1), size)) == list(range(size))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_all_orders_are_equally_likely(size):
    repeats = 60 * math.factorial(size)
    items = shuffled_items(
        np.repeat(keys(3, repeats), size), np.full(repeats * size, size), np.tile(np.arange(size), repeats)
    )
    counts = Counter(map(tuple, items.reshape(repeats, size).tolist()))
    assert chisquare([counts[order] for order in itertools.permutations(range(size))]).pvalue > 1e-3


def test_all_pairs_of_neighbors_are_equally_likely_in_a_large_order():
    size, repeats = 101, 100_000
    items = shuffled_items(
        np.repeat(keys(4, repeats), 2), np.full(2 * repeats, size), np.tile([0, 1], repeats)
    ).reshape(repeats, 2)
    counts = np.zeros((size, size))
    np.add.at(counts, (items[:, 0], items[:, 1]), 1)
    assert (counts.diagonal() == 0).all()
    assert chisquare(counts[~np.eye(size, dtype=bool)]).pvalue > 1e-3


@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 2**32), st.integers(0, 10**9))
def test_every_item_is_drawn_before_any_is_drawn_again(size, draw_size, seed, first_pass):
    num_draws = 5 * size
    # From a draw that begins a pass: every `size` draws do.
    draws = first_pass * size + np.arange(num_draws)
    drawn = draw_items(np.repeat(keys(seed, 1), num_draws), np.full(num_draws, size), draws, draw_size)
    assert (np.sort(drawn.reshape(-1, size), axis=1) == np.arange(size)).all()
    for draw in drawn.tolist():
        assert len(set(draw)) == min(size, draw_size)


@given(
    st.integers(1, 12), st.lists(st.tuples(st.integers(1, 50), st.integers(0, 200)), min_size=1, max_size=8)
)
def test_populations_and_draws_do_not_depend_on_each_other(draw_size, populations):
    population_keys = keys(9, len(populations))
    sizes, draws = np.array(populations).T
    together = draw_items(population_keys, sizes, draws, draw_size)
    for row in range(len(populations)):
        alone = draw_items(population_keys[[row]], sizes[[row]], draws[[row]], draw_size)
        assert (together[row] == alone[0]).all()


@pytest.mark.parametrize(
    ("size", "draw_size", "passes_an_order"),
    [(23, 5, 1), (9, 5, 1), (8, 5, 5), (8, 6, 3), (8, 8, 1), (8, 12, 3)],
)
def test_orders_are_as_fresh_as_draws_without_repetition_allow(size, draw_size, passes_an_order):
    num_draws = 30 * size
    passes = draw_items(
        np.repeat(keys(1, 1), num_draws), np.full(num_draws, size), np.arange(num_draws), draw_size
    ).reshape(-1, size)
    orders = [order for order, _ in itertools.groupby(map(tuple, passes.tolist()))]
    assert len(passes) == passes_an_order * len(orders)


@pytest.mark.parametrize(("size", "draw_size"), [(7, 4), (9, 4), (23, 5), (6, 4), (3, 4)])
def test_all_items_are_equally_likely_at_every_place_of_a_draw(size, draw_size):
    repeats, num_draws = 3000, 6
    drawn = draw_items(
        np.repeat(keys(2, repeats), num_draws),
        np.full(repeats * num_draws, size),
        np.tile(np.arange(num_draws), repeats),
        draw_size,
    ).reshape(repeats, num_draws * draw_size)
    for place in range(num_draws * draw_size):
        assert chisquare(np.bincount(drawn[:, place], minlength=size)).pvalue > 1e-4
