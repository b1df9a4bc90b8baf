import math
import warnings

import numpy as np
import pytest
from scipy import stats

from pml_xbml.comparison.statistics import MIN_SEEDS, RESOLUTION, holm, paired_t_test

# Darwin's cross- and self-fertilised maize, in eighths of an inch: Fisher's own example of the paired t-test.
CROSSED = [188, 96, 168, 176, 153, 172, 177, 163, 146, 173, 186, 168, 177, 184, 96]
SELFED = [139, 163, 160, 160, 147, 149, 149, 122, 132, 144, 130, 144, 102, 124, 144]


def of(differences):
    return paired_t_test([0.0] * len(differences), list(differences))


def test_fishers_example():
    """Fisher, The Design of Experiments, section 17: t = 2.148 with 14 degrees of freedom, p = 0.0497."""
    tested = paired_t_test(SELFED, CROSSED)
    assert tested.difference == pytest.approx(314 / 15)
    assert tested.p_value == pytest.approx(0.0497, abs=5e-5)
    half_width = stats.t.ppf(0.975, 14) * (314 / 15) / 2.148
    assert tested.high - tested.difference == pytest.approx(half_width, rel=1e-3)
    assert tested.difference - tested.low == pytest.approx(half_width, rel=1e-3)
    assert (tested.num_better, tested.num_seeds) == (13, 15)


def test_it_is_the_paired_test_of_scipy():
    generator = np.random.default_rng(2)
    plain, xml = generator.normal(50, 3, size=(2, 7))
    tested = paired_t_test(plain, xml)
    assert (tested.baseline, tested.candidate) == pytest.approx((plain.mean(), xml.mean()))
    assert tested.p_value == pytest.approx(stats.ttest_rel(xml, plain).pvalue)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_interval_excludes_zero_exactly_where_p_is_below_5_percent(seeds):
    for differences in np.random.default_rng(seeds).normal(1, 1, size=(200, seeds)):
        tested = of(differences)
        assert (tested.low > 0 or tested.high < 0) == (tested.p_value < 0.05)


@pytest.mark.parametrize("tiny", [1e-12, RESOLUTION * 0.99])
def test_differences_below_the_resolution_are_none(tiny):
    tested = of([tiny] * 5)
    assert (tested.difference, tested.low, tested.high, tested.p_value) == (0, 0, 0, 1)
    assert (tested.num_better, tested.verdict()) == (0, "unclear")
    assert of([-tiny] * 5).verdict() == "unclear"


def test_equal_differences_have_an_interval_without_width():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tested = of([0.25] * 5)
    assert (tested.low, tested.high, tested.p_value) == pytest.approx((0.25, 0.25, 0))
    assert tested.verdict() == "helps"


def test_a_single_pair_has_no_interval_and_no_p():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tested = paired_t_test([10], [90])
    assert math.isnan(tested.low)
    assert math.isnan(tested.high)
    assert math.isnan(tested.p_value)
    assert tested.verdict() == "unclear"


@pytest.mark.parametrize(("plain", "xml"), [([], []), ([0.1], [0.1, 0.2])])
def test_unpaired_numbers_are_refused(plain, xml):
    with pytest.raises(ValueError, match=f"got {len(plain)} and {len(xml)} numbers"):
        paired_t_test(plain, xml)


def test_verdict():
    clear = [10, 11, 12, 10, 11]
    zeros = [0] * 5
    assert paired_t_test(zeros, clear).verdict() == "helps"
    assert paired_t_test(clear, zeros).verdict() == "hurts"
    assert of([10, -10, 10, -10, 5]).verdict() == "unclear"
    assert of(clear).verdict(p_value=0.06) == "unclear"
    assert of(clear).verdict(p_value=0.04) == "helps"


def test_no_verdict_below_five_seeds_however_clear():
    for seeds in range(1, MIN_SEEDS):
        assert of([50 + 0.1 * seed for seed in range(seeds)]).verdict() == "unclear"


@pytest.mark.parametrize("seeds", [5, 10])
def test_error_rate_of_the_verdict_under_no_effect(seeds):
    noise = np.random.default_rng(seeds).normal(size=(1000, seeds))
    wrong = np.mean([of(differences).verdict() != "unclear" for differences in noise])
    # Four standard deviations of a share of 5% in 1000 trials.
    assert wrong == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 1000))


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([0.2], [0.2]),
        # By hand: 4 · 0.005; 3 · 0.01; 2 · 0.03; 1 · 0.04, which may not lie below the one before it.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.6, 0.7], [1, 1]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([], []),
    ],
)
def test_holm(p_values, corrected):
    assert holm(p_values) == pytest.approx(corrected)


def test_holm_leaves_out_what_was_not_tested():
    first, second, third = holm([0.03, math.nan, 0.01])
    assert (first, third) == pytest.approx((0.03, 0.02))
    assert math.isnan(second)


def test_holm_is_the_step_down_procedure():
    """Reject the smallest p-values one after the other while p ≤ α / (tests that are left)."""
    generator = np.random.default_rng(4)
    for p_values in generator.uniform(0, 0.1, size=(200, 6)):
        rejected = set()
        for left, index in zip(range(6, 0, -1), np.argsort(p_values), strict=True):
            if p_values[index] > 0.05 / left:
                break
            rejected.add(index)
        assert {index for index, p in enumerate(holm(p_values)) if p <= 0.05} == rejected


def test_family_wise_error_rate_of_holm():
    generator = np.random.default_rng(8)
    wrong = np.mean([min(holm(p_values)) <= 0.05 for p_values in generator.uniform(size=(2000, 6))])
    assert wrong == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 2000))
