import torch

from pml_xbml.trunks import SmallTrunk


def test_averages_a_map_of_a_quarter_of_the_sides():
    trunk = SmallTrunk()
    maps = []
    trunk[-2].register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    output = trunk(torch.randn(2, 3, 32, 48))
    assert maps[0].shape == (2, 128, 8, 12)
    assert torch.equal(output, maps[0].mean((2, 3)))
