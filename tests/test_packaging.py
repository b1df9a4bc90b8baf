import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_is_installed():
    declared = set(
        re.findall(r'^    "(pml_xbml[\w.]*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    )
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("pml_xbml/**/__init__.py")}
    assert declared == found | {"pml_xbml.benchmarker_configs"}
