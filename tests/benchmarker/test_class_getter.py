import pytest
import torch

from pml_xbml.benchmarker.class_getter import argument_names


class Broken:
    def __init__(self):
        raise ValueError("what is wrong inside")


def test_an_error_inside_of_a_class_is_not_taken_for_a_missing_class(getter):
    getter.register("dataset", Broken)
    with pytest.raises(ValueError, match="what is wrong inside"):
        getter.get("dataset", yaml_dict={"Broken": None})


def test_an_argument_that_a_network_refuses_is_named(getter):
    with pytest.raises(ValueError, match=r"resnet18 does not take .*unexpected keyword argument 'weigths'"):
        getter.get("model", yaml_dict={"resnet18": {"weigths": None}})


def test_names_of_arguments_are_read_up_to_the_class_that_takes_no_more():
    class Base:
        def __init__(self, base=1):
            pass

    class Derived(Base):
        def __init__(self, own, **kwargs):
            super().__init__(**kwargs)

    class Open(torch.nn.Module):
        def __init__(self, own, **kwargs):
            super().__init__()

    assert argument_names(Derived) >= {"own", "base"}
    assert "other" not in argument_names(Derived)
    assert argument_names(Open) is None
    assert argument_names(lambda **options: None) is None
    assert argument_names(lambda size: None) == {"size"}


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
