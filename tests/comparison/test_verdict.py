import re

import pytest

from pml_xbml.comparison.paired_results import pair_results
from pml_xbml.comparison.statistics import holm
from pml_xbml.comparison.verdict import format_recommendations, format_verdicts, judge, winning_run

BETTER = [0.01, 0.02, 0.01, 0.02, 0.01]
WORSE = [-difference for difference in BETTER]
NOISE = [0.01, -0.02, 0.03, -0.01, 0.01]


def verdict_on(results, untouched=None):
    return format_verdicts(judge(pair_results(results), untouched))


@pytest.mark.parametrize(
    ("differences", "words", "winner"),
    [
        (BETTER, r"contrastive: XML with weight 0.1 helps: MAP@R .* by \+1.40 points \(95% .* Turn", "xml"),
        (WORSE, "hurts: .* -1.40 points .*95% interval -2.08 to -0.72, 5 seeds.*Leave it off", "plain"),
        (NOISE, "cannot be told from noise: .*95% interval .* Leave it off", "plain"),
        ([0.01] * 4, "cannot be told from noise with 4 seed.*compare with at least 5 seeds", None),
        ([1e-14] * 5, r"cannot be told from noise: .* \+0.00 points", "plain"),
        # Each counts, their mean rounds to zero.
        ([-1e-4, 1e-4, -1e-4, 0, 0], r"cannot be told from noise: .* \+0.00 points", "plain"),
    ],
)
def test_verdict_on_one_loss(make_results, differences, words, winner):
    verdicts = judge(pair_results(make_results(differences)))
    assert re.search(words, format_verdicts(verdicts))
    run = winning_run(verdicts)
    assert (run and run.arm) == winner


def test_with_one_loss_the_interval_decides_and_no_p_is_given(make_results):
    assert "p =" not in verdict_on(make_results(BETTER))


def test_with_several_losses_the_corrected_p_decides_and_no_interval_is_given(make_results):
    losses = ["contrastive", "triplet", "multi_similarity", "proxy_anchor", "proxy_nca"]
    some = [0.004, 0.02, 0.012, 0.016, 0.002]  # alone p = 0.033
    given = [
        result for loss in losses for result in make_results(some if loss == "triplet" else NOISE, loss=loss)
    ]
    assert "triplet: XML with weight 0.1 helps" in verdict_on(make_results(some, loss="triplet"))
    verdicts = judge(pair_results(given))
    assert [verdict.p_value for verdict in verdicts] == holm(
        [verdict.against_plain.p_value for verdict in verdicts]
    )
    text = format_verdicts(verdicts)
    assert "helps" not in text
    assert "corrected for 5 losses" in text
    assert "95%" not in text
    [row] = [line for line in text.splitlines() if line.startswith("triplet  ")]
    p_value, corrected, verdict = row.split()[-3:]
    assert float(corrected) == pytest.approx(5 * float(p_value), abs=3e-3)
    assert verdict == "unclear"


def test_losses_have_a_sentence_each(make_results):
    given = make_results(BETTER) + make_results(BETTER, loss="triplet")
    *_, first, second = verdict_on(given).splitlines()
    assert first.startswith("contrastive: XML with weight 0.1 helps: ")
    assert second.startswith("triplet: XML with weight 0.1 helps: ")


def test_validation_and_not_test_chooses_the_weight_that_counts(make_result):
    given = [make_result(seed, 0.5) for seed in range(5)]
    given += [make_result(seed, 0.5 + 0.01 * (seed + 1), weight=0.1, validation=0.6) for seed in range(5)]
    given += [make_result(seed, 0.9 + 0.01 * seed, weight=0.3, validation=0.55) for seed in range(5)]
    verdicts = judge(pair_results(given))
    assert format_verdicts(verdicts).startswith("contrastive: XML with weight 0.1 helps: ")
    assert winning_run(verdicts).cross_batch_weight == 0.1


def test_of_several_losses_the_validation_classes_choose_the_winner(make_result, make_results):
    given = make_results(BETTER)
    given += [make_result(seed, 0.9, loss="triplet", validation=0.4) for seed in range(5)]
    given += [make_result(seed, 0.9, loss="triplet", weight=0.1, validation=0.9) for seed in range(5)]
    run = winning_run(judge(pair_results(given)))
    assert (run.loss, run.arm) == ("contrastive", "xml")


UNBEATEN = (
    "contrastive: neither plain training (MAP@R 50.00) nor XML (51.40) beats the untouched network (60.00) "
    "on classes never seen in training; use it as it is, "
)


def test_an_untouched_network_that_is_not_beaten_comes_first(make_result, make_results):
    untouched = make_result(0, 0.6, iterations=0)
    given = make_results(BETTER)
    verdicts = judge(pair_results(given), untouched)
    first, second = format_verdicts(verdicts).splitlines()
    assert first.startswith(UNBEATEN)
    assert second.startswith("contrastive: XML with weight 0.1 helps")
    assert second.endswith("It is still no better than the untouched network.")
    assert winning_run(verdicts, untouched).arm == "untouched"
    worse = make_result(0, 0.505, iterations=0)
    assert "untouched" not in verdict_on(given, worse)


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        (BETTER[:1], "cannot be told from noise with 1 seed"),
        (BETTER[:4], "cannot be told from noise with 4 seed"),
        (WORSE, "hurts: .*Leave it off"),
        (NOISE, "cannot be told from noise: .*Leave it off"),
    ],
)
def test_an_untouched_network_that_is_not_beaten_comes_first_whatever_else_is_said(
    make_result, make_results, differences, words
):
    first, second = verdict_on(make_results(differences), make_result(0, 0.6, iterations=0)).splitlines()
    assert re.match("contrastive: neither plain training .* beats the untouched network", first)
    assert re.search(words, second)


def test_an_untouched_network_that_is_not_beaten_comes_before_the_table_of_several_losses(
    make_result, make_results
):
    untouched = make_result(0, 0.6, iterations=0)
    beaten = make_results(BETTER)
    beating = [
        make_result(seed, 0.61, loss="triplet", weight=weight) for seed in range(5) for weight in (None, 0.1)
    ]
    text = verdict_on(beating + beaten, untouched)
    assert text.startswith(UNBEATEN)
    assert text.count("neither") == 1


def test_an_untouched_network_that_is_not_beaten_and_a_control(make_result, make_results):
    given = make_results(BETTER)
    given += [make_result(seed, 0.505, weight=0.1, control=True) for seed in range(5)]
    first, second = verdict_on(given, make_result(0, 0.6, iterations=0)).splitlines()
    assert first.startswith(UNBEATEN)
    assert re.search(
        r"Over the control it changes by \+0.90 points \(.*It is still no better than the unt", second
    )
    assert "Turn it on" not in second


def test_a_control_that_alone_beats_the_untouched_network_is_the_one_to_use(make_result, make_results):
    given = make_results(BETTER)
    given += [make_result(seed, 0.61, weight=0.1, control=True, validation=0.61) for seed in range(5)]
    untouched = make_result(0, 0.6, iterations=0, validation=0.6)
    verdicts = judge(pair_results(given), untouched)
    [first, _] = format_verdicts(verdicts).splitlines()
    assert first.startswith(
        UNBEATEN.replace("; use it as it is, ", ", but the control does (61.00); use the")
    )
    assert winning_run(verdicts, untouched).arm == "control"
    text = format_recommendations(pair_results(given), untouched)
    assert re.match(r"contrastive: neither .* the validation classes, but the control does \(61.00\)", text)


def test_the_untouched_network_is_compared_on_the_classes_that_are_reported(make_result, make_results):
    """Better on the validation classes, worse on the test classes, and the other way round."""
    given = make_results(BETTER, validation=0.5)
    good_validation = make_result(0, 0.3, iterations=0, validation=0.9)
    good_test = make_result(0, 0.9, iterations=0, validation=0.3)
    assert "untouched" not in verdict_on(given, good_validation)
    assert "untouched network (90.00)" in verdict_on(given, good_test)
    assert "untouched" not in format_recommendations(pair_results(given), good_test)
    text = format_recommendations(pair_results(given), good_validation)
    assert text.startswith(
        "contrastive: neither plain training (MAP@R 50.00) nor XML (50.00) beats the untouched network "
        "(90.00) on the validation classes; "
    )


def test_a_small_p_is_no_zero(make_result):
    given = []
    for loss in ("contrastive", "triplet"):
        given += [make_result(seed, 0.5, loss=loss) for seed in range(5)]
        given += [make_result(seed, 0.6 + 1e-4 * seed, weight=0.1, loss=loss) for seed in range(5)]
    text = verdict_on(given)
    assert "(p <0.001, corrected for 2 losses, 5 seeds)" in text
    [row] = [line for line in text.splitlines() if line.startswith("triplet  ")]
    assert row.split()[-3:] == ["<0.001", "<0.001", "helps"]
    assert "0.000" not in text


@pytest.mark.parametrize(
    ("control", "words", "winner"),
    [
        (0.5, r"Over the control it changes by \+1.40 points .* that of the cross-batch fit\. Turn", "xml"),
        (0.514, "Over the control .*cannot be told from noise: the gain may be that of the second", "xml"),
        (0.6, "Over the control it changes by -8.60 points .*: use the control", "control"),
    ],
)
def test_verdict_with_a_control(make_result, make_results, control, words, winner):
    given = make_results(BETTER)
    given += [make_result(seed, control, weight=0.1, control=True) for seed in range(5)]
    verdicts = judge(pair_results(given))
    assert re.search(words, format_verdicts(verdicts))
    assert winning_run(verdicts).arm == winner


def test_a_control_is_corrected_for_the_losses_that_have_one(make_result, make_results):
    given = make_results(BETTER) + make_results(BETTER, loss="triplet")
    given += [make_result(seed, 0.5, loss="triplet", weight=0.1, control=True) for seed in range(5)]
    first, second = judge(pair_results(given))
    assert (first.num_losses, first.num_controls) == (2, 1)
    assert second.control_p_value == second.against_control.p_value
    *_, sentence = format_verdicts([first, second]).splitlines()
    assert re.search(
        r"corrected for 2 losses.* Over the control it changes by \+1.40 points \(95% int", sentence
    )


def test_on_validation_classes_the_best_weight_is_recommended_and_nothing_is_decided(make_result):
    given = [make_result(seed, None, validation=0.5) for seed in range(5)]
    for weight, by in ((0.1, 0.02), (0.3, 0.04), (0.5, 0.03)):
        given += [make_result(seed, None, weight=weight, validation=0.5 + by) for seed in range(5)]
    sentence = format_recommendations(pair_results(given))
    assert sentence.startswith("contrastive: weight 0.3 has the best validation MAP@R of XML, +4.00 points")
    assert "without --validation-only" in sentence
    assert "helps" not in sentence
