import csv
import re

import pytest

from pml_xbml.comparison import METRICS, Result, Run
from pml_xbml.comparison.report import conclude, format_table, pair_results, write_csv


def result(seed, test, weight=None, loss="contrastive", validation=0.5, **options):
    """A result whose metrics all have one value."""
    run = Run(
        loss=loss,
        variant="plain" if weight is None else "xml",
        cross_batch_weight=weight,
        seed=seed,
        **options,
    )
    return Result(
        run=run,
        best_epoch=1,
        validation=dict.fromkeys(METRICS, validation),
        test=None if test is None else dict.fromkeys(METRICS, test),
        history={metric: [validation] for metric in METRICS},
        cover_radius=None,
        seconds=1.0,
    )


def results(differences, weight=0.1, **options):
    plain = [result(seed, 0.5, **options) for seed in range(len(differences))]
    return plain + [result(seed, 0.5 + by, weight, **options) for seed, by in enumerate(differences)]


def test_pairs_are_of_one_loss_weight_and_seed():
    given = [
        result(1, 0.4),
        result(0, 0.3),
        result(0, 0.5, weight=0.1),
        result(1, 0.7, weight=0.1),
        result(1, 0.8, weight=0.3),
        result(2, 0.9, weight=0.3),  # without a plain partner
        result(0, 0.1, weight=0.1, loss="triplet"),  # neither
    ]
    low, high = pair_results(given)
    assert (low.loss, low.cross_batch_weight, high.cross_batch_weight) == ("contrastive", 0.1, 0.3)
    assert [(a.run.seed, b.run.seed) for a, b in zip(low.plain, low.xml, strict=True)] == [(0, 0), (1, 1)]
    assert [b.run.seed for b in high.xml] == [1]
    assert low.compare("r_precision").difference == pytest.approx(25)
    assert low.compare("r_precision", "validation").difference == 0


def test_table():
    [pairing] = pair_results(results([0.01, 0.02, 0.06]))
    lines = format_table(pairing).splitlines()
    assert (
        lines[0] == "contrastive, weight 0.1: mean of 3 seed(s) on classes never seen in training, in percent"
    )
    assert lines[1].split() == ["plain", "XML", "difference", "95%", "interval", "p", "seeds", "won"]
    for line, name in zip(lines[2:], METRICS.values(), strict=True):
        # Mean 3 and standard deviation 2.6458 of three: 3 ± 4.3027 · 1.5275.
        assert line.split() == [name, "50.00", "53.00", "+3.00", "[-3.57,", "+9.57]", "0.188", "3", "of", "3"]
    assert len({len(line) for line in lines[1:]}) == 1


def test_table_of_one_seed_claims_no_interval():
    [pairing] = pair_results(results([0.01]))
    assert format_table(pairing).splitlines()[-1].split()[-5:] == ["–", "–", "1", "of", "1"]


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        (
            [0.01, 0.02, 0.01, 0.02, 0.01],
            "contrastive: XML with weight 0.1 helps: MAP@R .* by \\+1.40 points",
        ),
        ([-0.01, -0.02, -0.01, -0.02, -0.01], "hurts: .* -1.40 points .* leave it off"),
        ([0.01, -0.02, 0.03, -0.01, 0.01], "cannot be told from noise with 5 seeds: "),
        ([0.01, 0.01, 0.01, 0.01], "cannot be told from noise with 4 seed.*compare with at least 5 seeds"),
    ],
)
def test_conclusion(differences, words):
    assert re.search(words, conclude(pair_results(results(differences))))


def test_validation_and_not_test_chooses_the_weight_that_speaks():
    given = [result(seed, 0.5) for seed in range(5)]
    given += [result(seed, 0.5 + 0.01 * (seed + 1), weight=0.1, validation=0.6) for seed in range(5)]
    given += [result(seed, 0.9 + 0.01 * seed, weight=0.3, validation=0.55) for seed in range(5)]
    assert conclude(pair_results(given)).startswith("contrastive: XML with weight 0.1 helps: ")


def test_conclusion_has_a_sentence_a_loss():
    given = results([0.01] * 5) + results([0.01] * 5, loss="triplet")
    assert [line.split(":")[0] for line in conclude(pair_results(given)).splitlines()] == [
        "contrastive",
        "triplet",
    ]


def test_on_validation_classes_the_best_weight_is_recommended_and_nothing_is_decided():
    given = [result(seed, None, validation=0.5) for seed in range(5)]
    for weight, by in ((0.1, 0.02), (0.3, 0.04), (0.5, 0.03)):
        given += [result(seed, None, weight=weight, validation=0.5 + by) for seed in range(5)]
    pairings = pair_results(given)
    first, *_, last = format_table(pairings[1], "validation").splitlines()
    assert first.endswith("mean of 5 seed(s) on the validation classes, in percent")
    assert last.split()[:4] == ["MAP@R", "50.00", "54.00", "+4.00"]
    sentence = conclude(pairings, "validation")
    assert sentence.startswith("contrastive: weight 0.3 has the best validation MAP@R of XML, +4.00 points")
    assert "without --validation-only" in sentence
    assert "helps" not in sentence


def test_test_classes_that_were_left_alone_are_not_reported():
    pairings = pair_results([result(0, None), result(0, None, weight=0.1)])
    with pytest.raises(ValueError, match="contrastive_plain_seed-0 was not measured on the test classes"):
        format_table(pairings[0])


def test_csv(tmp_path):
    given = [
        result(0, 1 / 3),
        result(0, None, weight=0.1, validation=0.25, loss_options={"ridge": 0.5}),
    ]
    write_csv(given, tmp_path / "results.csv")
    with open(tmp_path / "results.csv", newline="") as file:
        plain, xml = csv.DictReader(file)
    assert float(plain["test_r_precision"]) == 1 / 3
    assert (plain["variant"], plain["cross_batch_weight"], plain["ridge"]) == ("plain", "", "")
    assert (xml["cross_batch_weight"], xml["ridge"], xml["validation_precision_at_1"]) == (
        "0.1",
        "0.5",
        "0.25",
    )
    assert xml["test_r_precision"] == ""
