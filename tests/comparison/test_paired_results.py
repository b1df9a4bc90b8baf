import pytest

from pml_xbml.comparison.paired_results import pair_results


def test_pairs_are_of_one_loss_weight_and_seed(make_result):
    given = [
        make_result(1, 0.4),
        make_result(0, 0.3),
        make_result(0, 0.5, weight=0.1),
        make_result(1, 0.7, weight=0.1),
        make_result(1, 0.8, weight=0.3),
        make_result(2, 0.9, weight=0.3),  # without a plain partner
        make_result(0, 0.1, weight=0.1, loss="triplet"),  # neither
        make_result(0, 0.2, iterations=0),
    ]
    low, high = pair_results(given)
    assert (low.loss, low.cross_batch_weight, high.cross_batch_weight) == ("contrastive", 0.1, 0.3)
    assert [(a.run.seed, b.run.seed) for a, b in zip(low.plain, low.xml, strict=True)] == [(0, 0), (1, 1)]
    assert [result.run.seed for result in high.xml] == [1]
    assert low.t_test("r_precision", "test").difference == pytest.approx(25)
    assert low.t_test("r_precision", "validation").difference == 0
    assert low.control == high.control == ()


def test_the_control_has_the_seeds_of_the_others(make_result):
    given = [make_result(seed, 0.5) for seed in range(3)]
    given += [make_result(seed, 0.6, weight=0.1) for seed in range(3)]
    given += [make_result(seed, 0.55, weight=0.1, control=True) for seed in range(2)]
    [paired] = pair_results(given)
    for arm in ("plain", "control", "xml"):
        assert [result.run.seed for result in paired.of(arm)] == [0, 1]
        assert {result.run.arm for result in paired.of(arm)} == {arm}
    assert paired.t_test("r_precision", "test", "control").difference == pytest.approx(5)
