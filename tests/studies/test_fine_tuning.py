import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_metric_learning import losses
from sklearn.linear_model import Ridge

from pml_xbml.comparison.statistics import holm, paired_t_test
from pml_xbml.trunks import PrototypePooling
from tests.studies import fine_tuning, fine_tuning_data, fine_tuning_train
from tests.studies.fine_tuning_train import Arm, Job, Setting, build_loss

STUDY = Path(fine_tuning.__file__).parent
RESULTS = STUDY / "fine_tuning_results.jsonl"
SEEDS = range(fine_tuning.FIRST_SEED, fine_tuning.FIRST_SEED + 10)


@pytest.fixture
def photographs(tmp_path):
    """32 classes of four images, so that half of the classes give batches of twelve classes."""
    generator = np.random.default_rng(0)
    for label in range(32):
        folder = tmp_path / "photographs" / f"{label:02d}"
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photographs"


@pytest.mark.slow
def test_a_study_goes_on_where_it_was(photographs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fine_tuning_train, "PHOTOGRAPHS", Setting(16, 1, (1e-3, 1e-4)))
    monkeypatch.setattr(fine_tuning_data, "NUM_COPIES", 2)
    command = ["--data", f"noise={photographs}", "--loss", "contrastive", "triplet", "--out", str(tmp_path)]
    command += ["--jobs", "0", "--iterations", "2"]
    fine_tuning.main([*command, "--tune", "--seeds", "1"])
    results = tmp_path / "results.jsonl"
    tuned = results.read_text()
    fine_tuning.main([*command, "--seeds", "1", "--arms", "plain", "xml"])
    fine_tuning.main([*command, "--seeds", "1", "--plot", str(tmp_path / "plot.png")])
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert results.read_text().startswith(tuned)
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    rates = fine_tuning.chosen_rates(results)
    of_plain = [row for row in rows if row["seed"] == 0]
    assert len(of_plain) == 4
    for row in of_plain:
        best = max(r["mean_average_precision_at_r"] for r in of_plain if r["loss"] == row["loss"])
        chosen = row["learning_rate"] == rates["noise", row["loss"]]
        assert not chosen or row["mean_average_precision_at_r"] == best
    arms = [(row["loss"], row["arm"]["term"]) for row in rows if row["seed"] == 100]
    assert arms == [
        ("contrastive", "plain"), ("contrastive", "xml"), ("triplet", "plain"), ("triplet", "xml"),
        ("triplet", "control"),
    ]  # fmt: skip
    assert "| noise | triplet | " in capsys.readouterr().out


def committed_runs(at_chosen_rates=True):
    """Those at the rates that plain training validates best at, or those at other rates."""
    rates = fine_tuning.chosen_rates(RESULTS)
    return [
        (job, history)
        for job, history in fine_tuning.read(RESULTS)
        if job.iterations == Job.iterations
        and job.seed in SEEDS
        and (job.learning_rate == rates.get((job.data, job.loss))) == at_chosen_rates
    ]


def differences_of(is_test, at_chosen_rates=True):
    """Of the committed runs: tests of XML against plain training and the control, by data and loss."""
    found = {}
    groups = fine_tuning.accuracies_of(committed_runs(at_chosen_rates), is_test)
    for (data, loss, rate), arms in groups.items():
        if not at_chosen_rates and any(set(arm) != set(SEEDS) for arm in arms.values()):
            continue
        xml = arms[fine_tuning.XML]
        others = [arms[arm] for arm in (fine_tuning.PLAIN, fine_tuning.CONTROL) if arm in arms]
        assert (data, loss) not in found, rate
        assert all(set(other) == set(xml) == set(SEEDS) for other in others)
        assert len(others) == (1 if loss == "contrastive" else 2)
        found[data, loss] = [
            paired_t_test([other[seed] for seed in SEEDS], [xml[seed] for seed in SEEDS]) for other in others
        ]
    return found


LOSS_NAMES = {
    "contrastive": "contrastive",
    "triplet": "triplet",
    "multi_similarity": "multi-similarity",
    "proxy_anchor": "proxy-anchor",
    "proxy_nca": "proxy-NCA",
    "normalized_softmax": "normalized softmax",
}


def interval_of(test, mark=""):
    text = f"{mark}{test.difference:+.2f}{mark} ({test.low:+.2f} to {test.high:+.2f})"
    return re.sub(r"-(?=\d)", "−", text)


def test_the_tables_of_the_pages_are_those_of_the_committed_runs():
    test, validation = differences_of(is_test=True), differences_of(is_test=False)
    pages = [(STUDY.parents[1] / "README.md").read_text("utf-8"), (STUDY / "README.md").read_text("utf-8")]
    names = ("flowers", "grocery", "glyphs")
    with_control = [loss for loss in LOSS_NAMES if loss != "contrastive"]

    def mark_of(data, loss, against):
        losses_compared = with_control if against == 1 else list(LOSS_NAMES)
        p_values = holm([test[data, name][against].p_value for name in losses_compared])
        return "**" if p_values[losses_compared.index(loss)] < 0.05 else ""

    for loss, name in LOSS_NAMES.items():
        cells = []
        for data in names:
            against_plain = test[data, loss][0]
            cells.append(f"{against_plain.baseline:.2f} {interval_of(against_plain, mark_of(data, loss, 0))}")
        assert f"| {name} | {' | '.join(cells)} |" in pages[0]
        if loss != "contrastive":
            cells = [interval_of(test[data, loss][1]) for data in names]
            assert f"| {loss} | {' | '.join(cells)} |" in pages[1]
            marked = [interval_of(test[data, loss][1], mark_of(data, loss, 1)) for data in names]
            cells = [cell.partition(" ")[0] for cell in marked]
            assert f"| {name} | {' | '.join(cells)} |" in pages[0]
        for number, against in enumerate(("plain", "control")[: len(validation["flowers", loss])]):
            cells = [interval_of(validation[data, loss][number]) for data in names]
            assert f"| {loss} | {against} | {' | '.join(cells)} |" in pages[1]


def test_the_precision_on_the_page_is_that_of_the_committed_runs():
    page = (STUDY / "README.md").read_text("utf-8")
    precision = {
        (job.data, job.loss, job.arm, job.seed): history["test"][1] for job, history in committed_runs()
    }
    for loss in LOSS_NAMES:
        cells = []
        for data in ("flowers", "grocery", "glyphs"):
            plain, xml = (
                [precision[data, loss, arm, seed] for seed in SEEDS]
                for arm in (fine_tuning.PLAIN, fine_tuning.XML)
            )
            test = paired_t_test(plain, xml)
            cells.append(f"{test.baseline:.2f} {interval_of(test)}")
        assert f"| {loss} | {' | '.join(cells)} |" in page


def test_the_untouched_network_is_better_than_any_trained_one():
    untouched, trained = {}, {}
    for job, history in fine_tuning.read(RESULTS):
        if job.loss == "none":
            untouched[job.data] = history["test"]
        else:
            trained.setdefault(job.data, []).append(history["test"])
    assert untouched["flowers"][0] > max(accuracy for accuracy, _ in trained["flowers"])
    for data, (_, precision) in untouched.items():
        assert precision > max(other for _, other in trained[data])
    for number, page in enumerate((STUDY.parents[1] / "README.md", STUDY / "README.md")):
        cells = [f"{untouched[data][number]:.2f}" for data in ("flowers", "grocery")]
        assert f"| untouched network | {' | '.join(cells)} | |" in page.read_text("utf-8")


def test_the_page_tells_the_rates_and_what_other_rates_gave():
    page = (STUDY / "README.md").read_text("utf-8")
    rates = fine_tuning.chosen_rates(RESULTS)
    others = differences_of(is_test=True, at_chosen_rates=False)
    names = ("flowers", "grocery", "glyphs")
    for loss in LOSS_NAMES:
        cells = [f"{rates[data, loss]:g}" for data in names]
        assert f"| {loss} | {' | '.join(cells)} |" in page
        cells = [
            f"{others[data, loss][0].baseline:.2f} {interval_of(others[data, loss][0])}"
            if (data, loss) in others
            else "the same"
            for data in names
        ]
        assert f"| {loss} | {' | '.join(cells)} |" in page


def test_the_page_tells_what_the_larger_grid_gave_plain_training():
    page = (STUDY / "README.md").read_text("utf-8")
    better = [differences_of(is_test) for is_test in (False, True)]
    first = [differences_of(is_test, at_chosen_rates=False) for is_test in (False, True)]
    for loss in set(LOSS_NAMES) - {"contrastive"}:
        gains = [
            at_better["grocery", loss][0].baseline - at_first["grocery", loss][0].baseline
            for at_better, at_first in zip(better, first, strict=True)
        ]
        cells = [f"{gain:+.2f}".replace("-", "−") for gain in gains]
        assert f"| {loss} | {' | '.join(cells)} |" in page


def test_the_page_tells_what_longer_training_gives_on_glyphs():
    page = (STUDY / "README.md").read_text("utf-8")
    seeds = SEEDS[:4]
    longer = [(job, history) for job, history in fine_tuning.read(RESULTS) if job.iterations == 500]
    for (data, loss, rate), arms in fine_tuning.accuracies_of(longer, is_test=False).items():
        assert (data, rate) == ("glyphs", fine_tuning.chosen_rates(RESULTS)["glyphs", loss])
        plain, xml = ([arms[arm][seed] for seed in seeds] for arm in (fine_tuning.PLAIN, fine_tuning.XML))
        test = paired_t_test(plain, xml)
        assert f"| {loss} | {test.baseline:.2f} | {interval_of(test)} |" in page


def test_plain_training_was_tuned_with_three_seeds_at_each_rate():
    tuned = {
        (job.data, job.loss, job.learning_rate, job.seed)
        for job, _ in fine_tuning.read(RESULTS)
        if job.arm == fine_tuning.PLAIN
    }
    for data in ("flowers", "grocery", "glyphs"):
        for loss in LOSS_NAMES:
            for rate in fine_tuning_train.setting_of(data).learning_rates:
                assert {(data, loss, rate, seed) for seed in range(3)} <= tuned


def test_the_best_validation_chooses_the_network_that_is_tested(monkeypatch):
    monkeypatch.setattr(fine_tuning_train, "FROM_SCRATCH", Setting(16, 1, ()))
    glyphs = fine_tuning.load_glyphs()
    few = {split: getattr(glyphs, split)[:32] for split in ("val", "test")}
    few |= {f"{split}_labels": getattr(glyphs, f"{split}_labels")[:32] for split in ("val", "test")}
    tested = []

    def evaluate(network, data, split):
        if split == "val":
            evaluate.validations += 1
            tested.append(network.embedder.weight.clone())
            value = {1: 10.0, 2: 30.0, 3: 20.0, 4: 30.0}[evaluate.validations]
        else:
            value = float(torch.equal(network.embedder.weight, tested[3]))
        return {fine_tuning.MAP_AT_R: value, fine_tuning_train.PRECISION_AT_1: value}

    evaluate.validations = 0
    monkeypatch.setattr(fine_tuning_train, "evaluate", evaluate)
    job = Job("glyphs", "contrastive", Arm("xml"), 0, 1e-3, iterations=4)
    history = fine_tuning.train(dataclasses.replace(glyphs, **few), job, None)
    assert history["test"] == [1.0, 1.0]


def test_a_variant_at_its_defaults_is_the_loss_of_the_package():
    pooling = PrototypePooling(6, 5)
    labels = torch.arange(16) // 4
    values = []
    for arm in (Arm("xml"), Arm("expressed"), Arm("expressed", adds_mean=True), Arm("control")):
        torch.manual_seed(0)
        embeddings = pooling(torch.randn(16, 6, 3, 3))
        values.append(build_loss(arm, losses.TripletMarginLoss(), pooling)(embeddings, labels, None).item())
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    assert len({round(value, 5) for value in values[1:]}) == 3


def test_the_mean_of_the_fitted_half_makes_the_expression_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    histograms = torch.rand(8, 3, generator=generator, dtype=torch.float64)
    embeddings = torch.nn.functional.normalize(torch.randn(8, 5, generator=generator, dtype=torch.float64))
    arm = Arm("expressed", 0.1, ridge=0.2, adds_mean=True)
    expressed = fine_tuning_train.express(histograms, embeddings, arm)
    fitted = histograms[4:]
    alpha = 0.2 * (fitted - fitted.mean(0)).square().sum(1).mean()
    model = Ridge(alpha=float(alpha)).fit(fitted, embeddings[4:])
    torch.testing.assert_close(expressed[:4], torch.from_numpy(model.predict(histograms[:4])))
