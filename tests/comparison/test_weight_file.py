import re

import pytest
import torch
from torch import nn

from pml_xbml.comparison.weight_file import load_weights


@pytest.fixture
def network():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1))


def refusal(network, path):
    """The message, of one line, that a file is refused with."""
    with pytest.raises(ValueError, match=r"^pretrained must be a file with ") as error:
        load_weights(network, str(path), "mine")
    assert repr(str(path)) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_state_dict_is_loaded(network, tmp_path):
    state = {key: torch.ones_like(value) for key, value in network.state_dict().items()}
    torch.save(state, tmp_path / "file")
    load_weights(network, str(tmp_path / "file"), "mine")
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_a_file_from_before_norms_counted_their_batches_is_loaded_as_ever(network, tmp_path):
    state = dict(network.state_dict())
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "file")
    load_weights(network, str(tmp_path / "file"), "mine")


def test_what_does_not_fit_is_named(network, tmp_path):
    state = network.state_dict()
    del state["0.weight"]
    state["head.weight"] = torch.zeros(1)
    state["2.weight"] = torch.zeros(5, 3, 1, 1)
    torch.save(state, tmp_path / "file")
    message = refusal(network, tmp_path / "file")
    assert re.search(
        "of mine, .*one without 0.weight, with the unknown head.weight, with other sizes of 2", message
    )
    torch.save({"a": torch.zeros(1)}, tmp_path / "file")
    message = refusal(network, tmp_path / "file")
    assert "without 0.bias, 0.weight, 1.bias and 6 more, with the unknown a;" in message


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ([1, 2], "a list"),
        (
            {"epoch": 3, "state_dict": {"0.weight": 1}},
            r"a checkpoint with state_dict; .*checkpoint\['state_dict'\]",
        ),
        (nn.Linear(2, 2), "holds other objects"),
    ],
)
def test_other_objects(network, saved, words, tmp_path):
    torch.save(saved, tmp_path / "file")
    assert re.search(words, refusal(network, tmp_path / "file"))


@pytest.mark.parametrize("keep", [0, 1000])
def test_a_truncated_file(network, keep, tmp_path):
    torch.save(network.state_dict(), tmp_path / "file")
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:keep])
    assert "truncated" in refusal(network, tmp_path / "file")


@pytest.mark.parametrize("text", ["hello", "pickle", "", "\x80"])
def test_a_text_file(network, text, tmp_path):
    (tmp_path / "file").write_text(text)
    assert "no file of torch.save" in refusal(network, tmp_path / "file")


def test_a_network_that_loads_in_a_way_of_its_own(tmp_path):
    class Stubborn(nn.Linear):
        def load_state_dict(self, *arguments):
            raise RuntimeError("not today")

    network = Stubborn(2, 2)
    torch.save(network.state_dict(), tmp_path / "file")
    assert "that does not load: not today" in refusal(network, tmp_path / "file")
