import pytest
import torch
from powerful_benchmarker.api_parsers import BaseAPIParser

from pml_xbml.benchmarker.api_parser import PluginAPIParserMixin
from pml_xbml.trunks import PrototypePoolingTrunk, SmallTrunk


class APIParser(PluginAPIParserMixin, BaseAPIParser):
    def __init__(self, trunk):
        self.models = {"trunk": trunk, "embedder": torch.nn.Linear(128, 2)}


@pytest.mark.parametrize(
    ("trunk", "expected"), [(SmallTrunk(), {}), (PrototypePoolingTrunk(SmallTrunk(), 2), {"device_ids": [1]})]
)
def test_histograms_keep_a_run_on_one_of_several_devices(trunk, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.nn, "DataParallel", lambda module, **options: (module, options))
    parser = APIParser(trunk)
    models = dict(parser.models)
    parser.set_dataparallel(models)
    assert models == {name: (module, expected) for name, module in parser.models.items()}
