import pytest
from pytorch_metric_learning import losses, samplers

import pml_xbml


@pytest.fixture
def unregistered(monkeypatch):
    for module, name in ((losses, "CrossBatchPrototypeLoss"), (samplers, "DisjointClassPairSampler")):
        monkeypatch.delattr(module, name, raising=False)


@pytest.mark.usefixtures("unregistered")
class TestRegister:
    def test_registries_that_read_the_modules_find_the_classes(self):
        assert not hasattr(losses, "CrossBatchPrototypeLoss")
        pml_xbml.register()
        pml_xbml.register()
        assert losses.CrossBatchPrototypeLoss is pml_xbml.losses.CrossBatchPrototypeLoss
        assert samplers.DisjointClassPairSampler is pml_xbml.samplers.DisjointClassPairSampler
        assert losses.CrossBatchPrototypeLoss().cross_batch_weight == 0.3

    def test_a_different_class_under_a_name_raises_and_nothing_changes(self, monkeypatch):
        monkeypatch.setattr(samplers, "DisjointClassPairSampler", object, raising=False)
        with pytest.raises(ValueError, match="DisjointClassPairSampler is already <class 'object'>"):
            pml_xbml.register()
        assert not hasattr(losses, "CrossBatchPrototypeLoss")
