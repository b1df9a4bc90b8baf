import pytest


class Broken:
    def __init__(self):
        raise ValueError("what is wrong inside")


def test_an_error_inside_of_a_class_is_not_taken_for_a_missing_class(getter):
    getter.register("dataset", Broken)
    with pytest.raises(ValueError, match="what is wrong inside"):
        getter.get("dataset", yaml_dict={"Broken": None})


def test_the_plugins_classes_come_first(getter):
    for kind, name in (
        ("loss", "CrossBatchPrototypeLoss"),
        ("model", "PrototypePoolingTrunk"),
        ("sampler", "DisjointClassPairSampler"),
        ("dataset", "Cars196"),
        ("dataset", "StanfordOnlineProducts"),
        ("dataset", "CUB"),
        ("factory", "ModelFactory"),
        ("hook_container", "HookContainer"),
    ):
        found, _ = getter.get(kind, yaml_dict={name: {}}, return_uninitialized=True)
        assert found.__module__.startswith("pml_xbml."), found
