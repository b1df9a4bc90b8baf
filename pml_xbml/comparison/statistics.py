"""What paired runs say about a difference, and what they cannot say.

A plain and an XML run of one seed start from the same weights and see the same batches, so their difference
is one observation. There are as many observations as seeds, which is few: a percentile bootstrap over them
excludes zero far too often (a quarter of the time with 3 seeds and no effect), so the interval is Student's,
and beside it stands the sign-flip test, which assumes nothing but that a difference without an effect is as
likely to fall on either side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

#: With fewer seeds the answer is always that nothing can be told.
SEEDS_FOR_A_VERDICT = 5
#: Up to this many pairs every one of the 2^n sign patterns is tried.
EXACT_UP_TO = 16

Verdict = Literal["helps", "hurts", "unclear"]


@dataclass(frozen=True)
class PairedDifference:
    """The paired comparison of one metric over the seeds.

    Attributes:
        plain: mean of the plain runs.
        xml: mean of the XML runs.
        difference: mean of the paired differences, XML minus plain.
        low: lower end of the 95% paired t-interval; NaN for a single pair.
        high: its upper end.
        p_value: two-sided sign-flip p; NaN for a single pair.
        won: number of seeds whose XML run is strictly better.
        seeds: number of pairs.
    """

    plain: float
    xml: float
    difference: float
    low: float
    high: float
    p_value: float
    won: int
    seeds: int

    @property
    def verdict(self) -> Verdict:
        """What the interval says, if the seeds suffice: on which side of zero it lies, if on one."""
        if self.seeds < SEEDS_FOR_A_VERDICT:
            return "unclear"
        if self.low > 0:
            return "helps"
        return "hurts" if self.high < 0 else "unclear"


def paired_t_interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's t-interval for the mean of paired differences.

    Args:
        differences: one number a pair.
        confidence: coverage, between 0 and 1.

    Returns:
        The lower and upper end; two NaNs for a single pair, which has no spread to judge by.

    Example:
        >>> low, high = paired_t_interval([1.0, 2.0, 3.0])
        >>> print(f"{low:.2f} {high:.2f}")
        -0.48 4.48
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return float("nan"), float("nan")
    half_width = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values)
    return float(values.mean() - half_width), float(values.mean() + half_width)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the sign-flip (paired permutation) test of a mean of zero.

    Exact for up to 16 pairs, where every pattern of signs is tried: the smallest value is then 2 / 2^n. For
    more pairs, 100,000 patterns are drawn with a fixed seed.

    Args:
        differences: one number a pair.

    Returns:
        The share of sign patterns whose mean is at least as far from zero as the one seen; NaN for one pair.

    Example:
        >>> sign_flip_p([1.0, 2.0, 3.0])
        0.25
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return float("nan")
    outcome = stats.permutation_test(
        (values,),
        lambda sample, axis: np.mean(sample, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**EXACT_UP_TO if len(values) <= EXACT_UP_TO else 100_000,
        batch=10_000,
        rng=np.random.default_rng(0),
    )
    return float(outcome.pvalue)


def compare_pairs(plain: Sequence[float], xml: Sequence[float]) -> PairedDifference:
    """Compare the runs of one metric, seed by seed.

    Args:
        plain: the metric of the plain runs, one number a seed.
        xml: the metric of the XML runs of the same seeds, in the same order.

    Returns:
        The paired comparison.

    Raises:
        ValueError: if the two have different lengths, or none at all.
    """
    if len(plain) != len(xml) or not plain:
        raise ValueError(
            "plain and xml must hold one number for each of the same seeds, "
            f"got {len(plain)} and {len(xml)} numbers"
        )
    differences = [after - before for before, after in zip(plain, xml, strict=True)]
    low, high = paired_t_interval(differences)
    return PairedDifference(
        plain=float(np.mean(plain)),
        xml=float(np.mean(xml)),
        difference=float(np.mean(differences)),
        low=low,
        high=high,
        p_value=sign_flip_p(differences),
        won=sum(difference > 0 for difference in differences),
        seeds=len(differences),
    )
