"""The paired t-test over seeds, and Holm's correction for several losses.

Two runs of one seed start from the same weights and see the same batches, so their difference is one
observation, and there are as many observations as seeds. Interval and p-value come from one test, Student's
paired t-test, and therefore agree: the 95% interval excludes zero exactly where p is below 0.05. A sign-flip
test cannot decide beside it, since with five seeds its p-value is never below 2 / 2^5 = 0.0625; nor can a
percentile bootstrap, which excludes zero in a quarter of all comparisons of three seeds without an effect.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

#: With fewer seeds the verdict is always "unclear".
MIN_SEEDS = 5
#: Probability of a verdict where there is no effect.
SIGNIFICANCE_LEVEL = 0.05
#: Smallest difference that counts, in percentage points: what is closer to zero is 0.00 in the tables. One
#: image of 20,000 changes precision@1 by as much.
RESOLUTION = 0.005

Verdict = Literal["helps", "hurts", "unclear"]


@dataclass(frozen=True)
class PairedDifference:
    """The paired comparison of one metric over the seeds, in percent.

    Attributes:
        baseline: mean of the runs that are compared with.
        candidate: mean of the runs that are compared.
        difference: mean of the paired differences, candidate minus baseline.
        low: lower end of the 95% paired t-interval; NaN for a single pair.
        high: its upper end.
        p_value: two-sided, of the paired t-test; NaN for a single pair.
        num_better: number of seeds whose candidate is better by at least ``RESOLUTION``.
        num_seeds: number of pairs.
    """

    baseline: float
    candidate: float
    difference: float
    low: float
    high: float
    p_value: float
    num_better: int
    num_seeds: int

    def verdict(self, p_value: float | None = None) -> Verdict:
        """Whether the candidate helps.

        Args:
            p_value: this one's own, if left out; one that :func:`holm` has corrected where several losses
                are compared.

        Returns:
            "helps" or "hurts" where p is below 0.05 and there are at least five seeds, otherwise "unclear".
        """
        p_value = self.p_value if p_value is None else p_value
        if self.num_seeds < MIN_SEEDS or not p_value < SIGNIFICANCE_LEVEL:
            return "unclear"
        return "helps" if self.difference > 0 else "hurts"


def paired_t_test(baseline: Sequence[float], candidate: Sequence[float]) -> PairedDifference:
    """Compares two kinds of runs by one metric, seed by seed.

    Args:
        baseline: the metric of the runs that are compared with, one number a seed, in percent.
        candidate: the metric of the other runs, of the same seeds in the same order, in percent.

    Returns:
        The paired comparison. Differences closer to zero than ``RESOLUTION`` count as zero.

    Raises:
        ValueError: if the two have different lengths, or no elements.

    Example:
        >>> test = paired_t_test([50.0, 51.0, 52.0], [51.0, 53.0, 55.0])
        >>> print(f"{test.difference:+.2f} [{test.low:+.2f}, {test.high:+.2f}] p = {test.p_value:.3f}")
        +2.00 [-0.48, +4.48] p = 0.074
    """
    if len(baseline) != len(candidate) or len(baseline) == 0:
        raise ValueError(
            "baseline and candidate must hold one number for each of the same seeds, "
            f"got {len(baseline)} and {len(candidate)} numbers"
        )
    differences = np.subtract(candidate, baseline, dtype=np.float64)
    differences[np.abs(differences) < RESOLUTION] = 0
    low, high, p_value = _t_test(differences)
    return PairedDifference(
        baseline=float(np.mean(baseline)),
        candidate=float(np.mean(candidate)),
        difference=float(differences.mean()),
        low=low,
        high=high,
        p_value=p_value,
        num_better=int((differences > 0).sum()),
        num_seeds=len(differences),
    )


def format_p(p_value: float) -> str:
    """A p-value with three digits; "<0.001" where these would all be zeros.

    Example:
        >>> format_p(0.0421), format_p(0.0004)
        ('0.042', '<0.001')
    """
    return f"{p_value:.3f}" if not p_value < 0.001 else "<0.001"


def format_points(difference: float) -> str:
    """A difference in percentage points, with its sign; what rounds to zero is +0.00.

    Example:
        >>> format_points(-1.404), format_points(-0.004)
        ('-1.40', '+0.00')
    """
    return f"{round(difference, 2) + 0.0:+.2f}"  # -0.0 + 0.0 is 0.0


def _t_test(differences: np.ndarray) -> tuple[float, float, float]:
    if len(differences) == 1:
        return float("nan"), float("nan"), float("nan")
    if not differences.any():
        return 0.0, 0.0, 1.0  # 0 / 0 in the test
    with warnings.catch_warnings():
        # scipy warns where all differences are equal; the interval is then that one number, as it should be.
        warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
        test = stats.ttest_1samp(differences, 0)
    interval = test.confidence_interval(1 - SIGNIFICANCE_LEVEL)
    return float(interval.low), float(interval.high), float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects the p-values of several tests, so that their verdicts are all right with probability 95%.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6,
    1979: of k tests the smallest p-value is multiplied by k, the next by k - 1, and so on; none becomes
    smaller than one before it, or larger than 1.

    Args:
        p_values: of the tests; NaN where there was none, which neither counts nor changes.

    Returns:
        The corrected p-values, in the same order.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    corrected = np.array(p_values, dtype=np.float64)
    order = np.argsort(corrected)[: np.count_nonzero(~np.isnan(corrected))]  # NaN sorts to the end
    scaled = corrected[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return [float(p_value) for p_value in corrected]
