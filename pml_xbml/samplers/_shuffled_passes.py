"""Endless shuffled passes over many populations at once, which can be read from any position.

Nothing is stored and nothing runs from the start: the item at a position is computed from a key and
the position, so that a sampler can stream, jump and resume without a state that grows with the data.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Keys = NDArray[np.uint64]

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
# With fewer, some orders of a handful of items come out measurably more often than others.
_ROUNDS = 8


def derive_keys(keys: Keys, numbers: NDArray[np.integer[Any]]) -> Keys:
    """Independent 64-bit keys for `numbers` under `keys`.

    SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014): the
    output number `numbers` of the generator that starts at `keys`.

    Args:
        keys: unsigned 64-bit integers, any shape.
        numbers: non-negative integers, a shape that broadcasts with that of `keys`.

    Returns:
        Unsigned 64-bit integers of the broadcast shape.
    """
    mixed: Keys = keys + _GOLDEN_GAMMA * (numbers.astype(np.uint64) + np.uint64(1))
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def shuffled_items(keys: Keys, sizes: Integers, places: Integers) -> Integers:
    """The items at `places` of pseudo-random orders of `range(size)`, one order a key.

    A generalized Feistel network on the smallest rectangle that holds the range, walked until it falls
    inside (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002): a permutation whose
    items are computed one by one, without the other `size - 1`.

    Args:
        keys: (K,) one key an order.
        sizes: (K,) lengths of the orders, at least 1.
        places: (K,), 0 <= places < sizes.

    Returns:
        (K,) items, 0 <= items < sizes.
    """
    # An odd number of rows and of columns would give the even permutations alone.
    rows = np.uint64(2) * np.ceil(np.sqrt(sizes) / 2).astype(np.uint64)
    columns = (sizes.astype(np.uint64) + rows - np.uint64(1)) // rows
    row, column = np.divmod(places.astype(np.uint64), columns)
    for half_round in range(0, 2 * _ROUNDS, 2):
        row = (row + derive_keys(keys, column * np.uint64(2 * _ROUNDS) + np.uint64(half_round))) % rows
        column = (
            column + derive_keys(keys, row * np.uint64(2 * _ROUNDS) + np.uint64(half_round + 1))
        ) % columns
    items: Integers = (row * columns + column).astype(np.int64)
    outside = np.flatnonzero(items >= sizes)
    if outside.size:
        items[outside] = shuffled_items(keys[outside], sizes[outside], items[outside])
    return items


def draw_items(keys: Keys, sizes: Integers, draws: Integers, draw_size: int) -> Integers:
    """The items of the draws number `draws`, each of `draw_size`, from endless shuffled passes.

    The population `range(size)` is gone through pass after pass, each pass in an order of its own, and draw
    number t takes the places `t * draw_size` to `(t + 1) * draw_size - 1` of that endless sequence. Every
    item is so drawn before any is drawn again. A draw of at most `size` items holds none twice, also where
    it ends one pass and begins the next.

    Where a draw takes at most about half of the population, every pass has a fresh order. Its first
    `draw_size` items are put in an order in which those that close the pass before come last, so that the
    draw across both passes does not meet them. Smaller populations leave too little choice for that. They
    keep one order, repeated, until a draw and a pass end together (after `draw_size / gcd(size, draw_size)`
    passes): any `size` neighbors of a repeated order are distinct.

    Args:
        keys: (K,) one key a population.
        sizes: (K,) sizes of the populations, at least 1.
        draws: (K,) numbers of the draws, at least 0.
        draw_size: items a draw, at least 1.

    Returns:
        (K, draw_size) items, 0 <= items < sizes.
    """
    places = draws[:, None] * draw_size + np.arange(draw_size)
    passes, offsets = np.divmod(places, sizes[:, None])
    fresh = sizes >= 2 * draw_size - 1
    passes_an_order = np.where(fresh, 1, draw_size // np.gcd(sizes, draw_size))
    items = _items_of_passes(keys, sizes, passes // passes_an_order[:, None], offsets)

    # The pass in which the draw ends is the one whose first items may have been put in another order.
    current = passes[:, -1]
    carried = current * sizes % draw_size  # how many items of the pass before share a draw with this pass
    touched = np.flatnonzero(fresh & (carried > 0) & (offsets[:, -1] < 2 * draw_size - 1))
    if touched.size:
        opening = _opening_items(keys[touched], sizes[touched], current[touched], carried[touched], draw_size)
        rows, columns = np.nonzero(
            (passes[touched] == current[touched, None]) & (offsets[touched] < draw_size)
        )
        items[touched[rows], columns] = opening[rows, offsets[touched[rows], columns]]
    return items


def _opening_items(
    keys: Keys, sizes: Integers, passes: Integers, carried: Integers, draw_size: int
) -> Integers:
    """The first `draw_size` items of `passes`, those among the last `carried` of the passes before last."""
    from_end = np.arange(1, draw_size)
    closing = _items_of_passes(keys, sizes, passes[:, None] - 1, sizes[:, None] - from_end)
    opening = _items_of_passes(
        keys, sizes, passes[:, None], np.broadcast_to(np.arange(draw_size), (len(keys), draw_size))
    )
    # A row's items are told from every other row's by an offset, so that one look-up serves all rows.
    row_offsets = np.arange(len(keys))[:, None] * sizes.max()
    shared = np.isin(opening + row_offsets, (closing + row_offsets)[from_end <= carried[:, None]])
    return np.take_along_axis(opening, np.argsort(shared, axis=1, kind="stable"), axis=1)


def _items_of_passes(keys: Keys, sizes: Integers, orders: Integers, offsets: Integers) -> Integers:
    """The items at `offsets` (K, n) of the orders number `orders` (K, n) or (K, 1) of K populations."""
    shape = offsets.shape
    order_keys = np.broadcast_to(derive_keys(keys[:, None], orders), shape)
    return shuffled_items(
        order_keys.ravel(), np.broadcast_to(sizes[:, None], shape).ravel(), offsets.ravel()
    ).reshape(shape)
