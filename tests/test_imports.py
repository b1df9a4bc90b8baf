"""What imports what: the order of the folders, the one door to pytorch-metric-learning, no heavy imports."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_metric_learning

import pml_xbml
from pml_xbml import _pml

ROOT = Path(pml_xbml.__file__).parent

# A folder imports from lower rows, and of its own row what CONTRIBUTING's picture shows. Modules of one file
# count as folders.
ROWS = (
    {"cli"},
    {"benchmarker", "comparison", "examples"},
    {"monitoring", "checkpoint"},
    {"losses", "trunks", "samplers", "datasets"},
    {"functional"},
    {"_kernels"},
    {"_pml", "_checks", "_evaluation"},
)
RANK = {folder: rank for rank, row in enumerate(ROWS) for folder in row}
NEIGHBORS = {("monitoring", "checkpoint")}
KNOWN: set[tuple[str, str]] = set()
# registration stands beside the rows: it puts the core's classes into PML when it is called.
BESIDE = {"__init__", "registration"}


def source_files():
    return sorted(ROOT.rglob("*.py"))


def folder_of(path):
    """The folder below ``pml_xbml``, or the module directly in it."""
    return Path(path.relative_to(ROOT).parts[0]).stem


def imported_names(path):
    """Dotted names of all that a file imports, wherever in the file, as (module, name or None)."""
    package = ("pml_xbml", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *([node.module] if node.module else [])))
            yield from ((module, alias.name) for alias in node.names)


def imported_folders(path):
    """The folders of this package that a file imports from."""
    for module, name in imported_names(path):
        parts = [*module.split("."), *([name] if name else [])]
        if parts[0] == "pml_xbml" and len(parts) > 1:
            yield parts[1]


def edges():
    """(importing folder, imported folder), without imports within a folder."""
    return {
        (folder_of(path), imported)
        for path in source_files()
        for imported in imported_folders(path)
        if folder_of(path) not in BESIDE and folder_of(path) != imported
    }


class TestOrder:
    def test_every_folder_has_a_row(self):
        assert {folder_of(path) for path in source_files()} - BESIDE <= RANK.keys()

    def test_imports_run_one_way(self):
        wrong = {
            (importing, imported)
            for importing, imported in edges() - NEIGHBORS
            if imported not in RANK or RANK[imported] <= RANK[importing]
        }
        assert wrong == set()

    @pytest.mark.parametrize("folder", ["benchmarker", "examples"])
    def test_nothing_of_comparison(self, folder):
        assert (folder, "comparison") not in edges()

    def test_the_method_knows_torch_alone(self):
        allowed = {"torch", *sys.stdlib_module_names}
        for path in source_files():
            if folder_of(path) in {"functional", "_kernels"}:
                modules = {module.split(".")[0] for module, _ in imported_names(path)} - {"pml_xbml"}
                assert modules <= allowed, path

    def test_reads_relative_and_absolute_imports(self, tmp_path, monkeypatch):
        monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
        (tmp_path / "losses").mkdir()
        path = tmp_path / "losses" / "file.py"
        path.write_text(
            "from .. import functional\nfrom ..trunks import A\nfrom . import _statistics\n"
            "import pml_xbml.cli\ndef f():\n    from pml_xbml.samplers.x import B\nimport torch\n"
        )
        assert sorted(imported_folders(path)) == ["cli", "functional", "losses", "samplers", "trunks"]
        assert {edge[1] for edge in edges()} == {"cli", "functional", "samplers", "trunks"}


CORE = {"losses", "trunks", "samplers", "datasets", "functional", "_kernels", "_checks"}


def core_files():
    return [path for path in source_files() if folder_of(path) in CORE]


class TestDoorToPML:
    def test_the_core_imports_public_modules_alone(self):
        """A new import of PML has a line here, or in ``_pml``, where version 3 is thought of."""
        imported = {
            (folder_of(path), f"{module}.{name}")
            for path in core_files()
            for module, name in imported_names(path)
            if module.split(".")[0] == "pytorch_metric_learning"
        }
        assert imported == {
            ("losses", "pytorch_metric_learning.losses"),
            ("losses", "pytorch_metric_learning.reducers.DoNothingReducer"),
        }

    def test_classes_of_losses_that_the_core_names(self):
        named = {
            node.attr
            for path in core_files()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "pml_losses"
        }
        assert named == {
            *("BaseMetricLossFunction", "ContrastiveLoss", "CrossBatchMemory", "MultipleLosses"),
            *("ManifoldLoss", "SelfSupervisedLoss", "VICRegLoss"),
        }

    def test_every_name_of_the_door_is_used_and_found(self):
        used = {
            node.attr
            for path in core_files()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "_pml"
        }
        assert used == {"collects_stats_by_default", "logger", *_pml.MODULES}
        assert all(getattr(_pml, name) is not None for name in used)

    def test_every_name_of_the_door_says_where_version_3_has_it(self):
        lines = Path(_pml.__file__).read_text(encoding="utf-8").splitlines()
        for name in _pml.MODULES:
            line = next(number for number, text in enumerate(lines) if text.startswith(f'    "{name}": '))
            comment = []
            while lines[line - 1].startswith("    # "):
                line -= 1
                comment.append(lines[line])
            assert any(text.startswith("    # Version 3: ") for text in comment), name
            assert len(comment) >= 2, name
        for function in (_pml.collects_stats_by_default, _pml.logger):
            assert "Version 3: " in function.__doc__

    def test_another_name_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match=r"module 'pml_xbml\._pml' has no attribute 'typo'"):
            _ = _pml.typo

    def test_replaced_objects_are_the_ones_that_are_found(self, monkeypatch):
        monkeypatch.setattr(pytorch_metric_learning.utils.common_functions, "NUMPY_RANDOM", 5)
        assert _pml.NUMPY_RANDOM == 5
        monkeypatch.setattr(pytorch_metric_learning.utils.common_functions, "LOGGER", 6)
        assert _pml.logger() == 6


HEAVY = {"faiss", "tensorboard", "matplotlib", "record_keeper", "sklearn", "pandas", "torchvision", "timm"}
# In the order of import: what an earlier one must not pull in, a later one may.
FORBIDDEN = {
    "pml_xbml": HEAVY | {"scipy", "PIL", "pytorch_metric_learning", "torch"},
    "pml_xbml.functional": HEAVY | {"scipy", "PIL", "pytorch_metric_learning"},
    "pml_xbml.trunks": HEAVY | {"scipy", "PIL", "pytorch_metric_learning"},
    "pml_xbml.samplers": HEAVY | {"scipy", "PIL", "pytorch_metric_learning"},
    # PML's common functions import scipy.
    "pml_xbml.losses": HEAVY | {"PIL"},
    "pml_xbml.datasets": HEAVY,
}
# The pooling, its trunk and their warning, in a process that can import nothing of the row above.
WITHOUT_PML = f"""
import sys
for name in {sorted(FORBIDDEN["pml_xbml.trunks"])}:
    sys.modules[name] = None
import torch
from pml_xbml.trunks import PrototypePooling, PrototypePoolingTrunk, SmallTrunk
pooling = PrototypePooling(8, num_prototypes=4)
pooling(torch.randn(2, 8, 3, 3)).sum().backward()
network = torch.nn.Sequential(SmallTrunk(), torch.nn.Linear(128, 5))
trunk = PrototypePoolingTrunk(network, num_prototypes=4)
assert trunk(torch.rand(2, 3, 32, 32)).shape == (2, trunk.num_features)
assert trunk.histograms.shape == (2, 4)
"""
LOADED_MODULES = f"""
import importlib, json, sys
loaded = {{}}
for module in {list(FORBIDDEN)}:
    importlib.import_module(module)
    loaded[module] = sorted({{name.split(".")[0] for name in sys.modules}})
import pml_xbml
assert pml_xbml.losses.CrossBatchPrototypeLoss and set(pml_xbml.__all__) <= set(dir(pml_xbml))
print(json.dumps(loaded))
"""


class TestLightImports:
    @pytest.fixture(scope="class")
    def loaded(self):
        """The top-level packages that are loaded after each import, in a process of its own."""
        command = [sys.executable, "-c", LOADED_MODULES]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    @pytest.mark.parametrize("module", FORBIDDEN)
    def test_pulls_no_heavy_library(self, loaded, module):
        assert FORBIDDEN[module].intersection(loaded[module]) == set()

    def test_the_pooling_needs_torch_alone(self):
        command = [sys.executable, "-c", WITHOUT_PML]
        completed = subprocess.run(command, capture_output=True, text=True)
        assert completed.returncode == 0, completed.stderr
        assert "PrototypePoolingTrunk drops what follows the average" in completed.stderr

    def test_another_name_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match=r"module 'pml_xbml' has no attribute 'typo'"):
            _ = pml_xbml.typo
