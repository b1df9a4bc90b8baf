import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge

from tests.studies import fine_tuning
from tests.studies.fine_tuning import Arm


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


def test_a_study_goes_on_where_it_was(photographs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fine_tuning, "BATCH_SIZE", 16)
    monkeypatch.setattr(fine_tuning, "NUM_COPIES", 2)
    command = ["--data", f"noise={photographs}", "--iterations", "2", "--out", str(tmp_path / "out")]
    fine_tuning.main([*command, "--only", "0", "--seeds", "1"])
    results = tmp_path / "out" / "results.jsonl"
    first = results.read_text()
    fine_tuning.main([*command, "--only", "0", "2", "9", "--seeds", "1"])
    assert results.read_text().startswith(first)
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["term"] for row in rows] == ["plain", "expressed", "control"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("| noise | contrastive | 0.0001 | plain |")


def test_the_mean_of_the_fitted_half_makes_the_expression_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    histograms = torch.rand(8, 3, generator=generator, dtype=torch.float64)
    embeddings = torch.nn.functional.normalize(torch.randn(8, 5, generator=generator, dtype=torch.float64))
    expressed = fine_tuning.express(histograms, embeddings, Arm("expressed", 0.1, ridge=0.2, adds_mean=True))
    fitted = histograms[4:]
    alpha = 0.2 * (fitted - fitted.mean(0)).square().sum(1).mean()
    model = Ridge(alpha=float(alpha)).fit(fitted, embeddings[4:])
    torch.testing.assert_close(expressed[:4], torch.from_numpy(model.predict(histograms[:4])))
