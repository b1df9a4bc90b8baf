import inspect

import pytest

from pml_xbml.comparison import RunConfig
from pml_xbml.comparison.run_config import check_same_run


def test_name_shows_what_sets_runs_apart():
    assert RunConfig(seed=3).name == "contrastive_plain_seed-3"
    run = RunConfig(
        loss="triplet",
        cross_batch_weight=0.3,
        loss_options={"ridge": 0.5},
        pooling_options={"num_prototypes": 8},
    )
    assert run.name == "triplet_xml_0.3_num_prototypes-8_ridge-0.5_seed-0"


def test_json_gives_the_run_back():
    run = RunConfig(cross_batch_weight=0.1, pooling_options={"similarity": "dot"}, train_classes=None)
    assert RunConfig.from_json(run.to_json()) == run


def test_every_field_is_documented():
    documentation = inspect.getdoc(RunConfig)
    assert all(
        f"{name}:" in documentation or f"{name}," in documentation
        for name in inspect.signature(RunConfig).parameters
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "hinge"}, "loss must be one of contrastive, .*, got 'hinge'"),
        ({"schedule": "linear"}, "schedule must be one of cosine, constant, got 'linear'"),
        ({"cross_batch_weight": 1.5}, "cross_batch_weight must lie between 0 and 1, got 1.5"),
        ({"control": True}, "control must come with a cross_batch_weight, .*, got None"),
        ({"iterations": 230}, "iterations must be a multiple of iterations_per_epoch, .*, got 230 and 50"),
        ({"iterations": -100}, "got -100 and 50"),
        ({"iterations_per_epoch": 0}, "got 400 and 0"),
        ({"copies": 0}, "copies must be at least 1, got 0"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_trained_with(fields, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "arm", "name"),
    [
        ({"iterations": 0, "cross_batch_weight": 0.1}, "untouched", "untouched_seed-0"),
        ({}, "plain", "contrastive_plain_seed-0"),
        ({"cross_batch_weight": 0.0}, "xml", "contrastive_xml_0_seed-0"),
        ({"cross_batch_weight": 0.3, "control": True}, "control", "contrastive_control_0.3_seed-0"),
    ],
)
def test_the_arm_follows_from_the_settings(fields, arm, name):
    run = RunConfig(**fields)
    assert (run.arm, run.name) == (arm, name)


@pytest.mark.parametrize(
    ("fields", "rate", "freezes_norms"),
    [
        ({}, 3e-3, False),
        ({"pretrained": "DEFAULT"}, 1e-4, True),
        ({"freeze": "auto"}, 1e-4, True),
        ({"pretrained": "DEFAULT", "learning_rate": 0.1, "freeze_norms": False}, 0.1, False),
        ({"learning_rate": 0.1, "freeze_norms": True}, 0.1, True),
    ],
)
def test_fine_tuning_has_defaults_of_its_own(fields, rate, freezes_norms):
    run = RunConfig(**fields)
    assert (run.trunk_learning_rate, run.freezes_norms) == (rate, freezes_norms)


def test_same_run(tmp_path):
    check_same_run(RunConfig(), tmp_path)
    (tmp_path / "run.json").write_text(RunConfig(loss_options={"ridge": 0.5}).to_json())
    check_same_run(RunConfig(loss_options={"ridge": 0.5}), tmp_path)
    with pytest.raises(
        ValueError, match=r"holds a run with seed=0 \(now 1\), loss_options={'ridge': 0.5} \(now {}\)"
    ):
        check_same_run(RunConfig(seed=1), tmp_path)
