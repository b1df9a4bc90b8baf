import csv

import pytest

from pml_xbml.comparison import METRICS
from pml_xbml.comparison.paired_results import pair_results
from pml_xbml.comparison.tables import footnotes, format_table, write_csv


def test_table(make_results):
    [paired] = pair_results(make_results([0.01, 0.02, 0.06]))
    title, header, *rows, _, best = format_table(paired).splitlines()
    assert title == "contrastive, weight 0.1: mean of 3 seed(s) on classes never seen in training, in percent"
    assert header.split() == ["plain", "XML", "difference", "95%", "interval", "p", "seeds", "won"]
    for line, name in zip(rows, METRICS.values(), strict=True):
        # Mean 3 and standard deviation 2.6458 of three: 3 ± 4.3027 · 1.5275; t = 1.964 has p = 0.188.
        assert line.split() == [name, "50.00", "53.00", "+3.00", "[-3.57,", "+9.57]", "0.188", "3", "of", "3"]
    assert len({len(line) for line in [header, *rows]}) == 1
    assert best == (
        "Best on the validation classes, of at most 800 iterations: 100 (plain), 100 to 300 (XML)."
    )


def test_table_with_the_untouched_network_and_the_control(make_result, make_results):
    given = make_results([0.01, 0.02])
    given += [make_result(seed, 0.505, weight=0.1, control=True) for seed in range(2)]
    [paired] = pair_results(given)
    lines = format_table(paired, untouched=make_result(0, 0.4, iterations=0)).splitlines()
    assert lines[1].split()[:4] == ["untouched", "plain", "XML", "difference"]
    assert lines[4].split()[:5] == ["MAP@R", "40.00", "50.00", "51.50", "+1.50"]
    assert lines[6].split()[:3] == ["control", "XML", "difference"]
    assert lines[9].split()[:4] == ["MAP@R", "50.50", "51.50", "+1.00"]
    assert "100 (control)" in lines[-1]
    notes = footnotes(has_control=True, has_untouched=True)
    assert "\nuntouched: " in notes
    assert "\ncontrol: " in notes
    assert "untouched" not in footnotes(has_control=True, has_untouched=False)


def test_table_of_one_seed_claims_no_interval(make_results):
    [paired] = pair_results(make_results([0.01]))
    assert format_table(paired).splitlines()[4].split()[-5:] == ["–", "–", "1", "of", "1"]


def test_table_with_a_small_p(make_results):
    [paired] = pair_results(make_results([0.1, 0.1001, 0.1002, 0.1001]))
    assert format_table(paired).splitlines()[4].split()[-4:] == ["<0.001", "4", "of", "4"]


def test_table_of_the_validation_classes(make_result):
    given = [make_result(0, None, validation=0.5), make_result(0, None, weight=0.1, validation=0.54)]
    [paired] = pair_results(given)
    lines = format_table(paired, "validation").splitlines()
    assert lines[0].endswith("mean of 1 seed(s) on the validation classes, in percent")
    assert lines[4].split()[:4] == ["MAP@R", "50.00", "54.00", "+4.00"]


def test_test_classes_that_were_left_alone_are_not_reported(make_result):
    [paired] = pair_results([make_result(0, None), make_result(0, None, weight=0.1)])
    with pytest.raises(ValueError, match="contrastive_plain_seed-0 was not measured on the test classes"):
        format_table(paired)


def test_csv(make_result, tmp_path):
    given = [
        make_result(0, 0.25, iterations=0),
        make_result(0, 1 / 3),
        make_result(0, None, weight=0.1, validation=0.25, loss_options={"ridge": 0.5}),
        make_result(0, 0.5, weight=0.1, control=True),
    ]
    write_csv(given, tmp_path / "results.csv")
    with open(tmp_path / "results.csv", newline="") as file:
        untouched, plain, xml, control = csv.DictReader(file)
    assert [row["arm"] for row in (untouched, plain, xml, control)] == [
        "untouched",
        "plain",
        "xml",
        "control",
    ]
    assert (untouched["loss"], untouched["test_r_precision"]) == ("", "0.25")
    assert float(plain["test_r_precision"]) == 1 / 3
    assert (plain["loss"], plain["cross_batch_weight"], plain["ridge"]) == ("contrastive", "", "")
    assert (xml["cross_batch_weight"], xml["ridge"], xml["validation_precision_at_1"]) == (
        "0.1",
        "0.5",
        "0.25",
    )
    assert xml["test_r_precision"] == ""
