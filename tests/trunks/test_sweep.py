import pytest

from tests.trunks.sweep import verdict


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_vit", "right"),
        ("test_convnext", "right"),
        ("mobilenetv3_small_050", "right"),
        ("selecsls42b", "right"),
        ("torchvision/mobilenet_v2", "right"),
        ("pretrainedmodels/squeezenet1_1", "refused"),
        ("pit_ti_distilled_224", "refused"),
        ("coat_lite_tiny", "refused"),
    ],
)
def test_networks_are_right_or_refused(name, expected):
    assert verdict(name)[0] == expected
