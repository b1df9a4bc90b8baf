"""Changes one place of the code at a time, and looks whether a test of its folder fails.

    pip install cosmic-ray
    python -m tests.studies.mutation FOLDER [--sample N] [--seed S] [--slow]

with FOLDER one of the package's (or functional.py) draws N places, and for each one of cosmic-ray's mutants,
but none in annotations, which nothing evaluates. All happens in a copy of the tree. A run of the folder's
tests on the code as it is tells which of them reach which line; a mutant meets these, the fastest first, or
all of them where its line runs at import. Tests that are marked as slow take part with ``--slow``.

``runs/mutation/FOLDER.jsonl`` gets a row for each mutant. Those that were killed are not run again unless
their file has changed; survivors are. Each has a process of its own, forked from one with torch, and a
limit of processor time, so that a busy machine kills none.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import difflib
import hashlib
import importlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).parents[2]
TESTS = {"functional.py": ["test_functional.py", "test_ill_conditioned_fits.py"], "_kernels": ["kernels"]}
# What every mutant's process would load anew otherwise.
LIBRARIES = ("timm", "pretrainedmodels", "pytorch_metric_learning.losses", "hypothesis", "sklearn.metrics")
SECONDS_OF_PROCESSOR, SECONDS_IN_ALL = 300, 3600


class Tests:
    """A plugin of pytest: runs the chosen tests, the fastest first, and keeps what each took and reached."""

    def __init__(self, chosen: dict[str, float] | None) -> None:
        self.chosen, self.failed = chosen, ""
        self.durations: collections.defaultdict[str, float] = collections.defaultdict(float)
        self.coverage = coverage.Coverage(data_file=None, source=["pml_xbml"], config_file=False)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if (chosen := self.chosen) is not None:
            items[:] = sorted((i for i in items if i.nodeid in chosen), key=lambda i: chosen[i.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self.chosen is None:
            self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.durations[report.nodeid] += report.duration
        self.failed = self.failed or (report.nodeid if report.failed else "")

    def run(self, paths: list[str], *options: str) -> tuple[int, str, dict[str, float], dict[str, dict]]:
        with contextlib.nullcontext() if self.chosen is not None else self.coverage.collect():
            status = pytest.main(
                ["-q", "-x", "--tb=line", "-p", "no:cacheprovider", *options, *paths], [self]
            )
        data = self.coverage.get_data()
        reached = {path: data.contexts_by_lineno(path) for path in data.measured_files()}
        return int(status), self.failed, dict(self.durations), reached


def run_in_a_child(chosen: dict[str, float] | None, paths: list[str], *options: str) -> tuple:
    """What :meth:`Tests.run` returns in a process of its own, of which nothing is left afterwards."""
    with tempfile.NamedTemporaryFile() as result, tempfile.TemporaryFile("w+") as log:
        if (child := os.fork()) == 0:
            try:
                os.setsid()
                resource.setrlimit(resource.RLIMIT_CPU, (SECONDS_OF_PROCESSOR, SECONDS_OF_PROCESSOR))
                signal.alarm(SECONDS_IN_ALL)
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                Path(result.name).write_bytes(pickle.dumps(Tests(chosen).run(paths, *options)))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if written := Path(result.name).read_bytes():
            return pickle.loads(written)
        log.seek(0)
        return 1, f"the process died: {log.read()[-200:]!r}", {}, {}


def statement_lines(tree: ast.AST, line: int) -> range:
    """The lines of the innermost statement that holds a line; of one with a body, those in front of it."""
    found = range(line, line + 1)
    for node in ast.walk(tree):  # outer nodes come first
        if isinstance(node, ast.stmt | ast.ExceptHandler) and node.lineno <= line <= node.end_lineno:
            end = node.body[0].lineno if hasattr(node, "body") else node.end_lineno + 1
            if line < max(end, node.lineno + 1):
                found = range(node.lineno, max(end, node.lineno + 1))
    return found


def is_in_annotation(tree: ast.AST, place: tuple[int, int]) -> bool:
    nodes = [getattr(node, name, None) for node in ast.walk(tree) for name in ("annotation", "returns")]
    return any(
        (node.lineno, node.col_offset) <= place < (node.end_lineno, node.end_col_offset)
        for node in nodes
        if isinstance(node, ast.expr)
    )


def mutants(files: list[Path], seed: int) -> Iterator[tuple[Path, int, str, str]]:
    """Mutants at all places, in random order: file, line, operator, and the file's text with it."""
    from cosmic_ray.commands.init import _all_work_items
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    trees, places = {path: ast.parse(path.read_text()) for path in files}, set()
    candidates = [item.mutations[0] for item in _all_work_items(files, {})]
    random.Random(seed).shuffle(candidates)
    for mutant in candidates:
        path, place = mutant.module_path, mutant.start_pos
        if (path, place) in places or is_in_annotation(trees[path], place):
            continue
        text = mutate_code(path.read_text(), get_operator(mutant.operator_name)(), mutant.occurrence)
        try:
            compile(text, path, "exec")
        except SyntaxError:
            continue
        places.add((path, place))
        yield path, place[0], mutant.operator_name.partition("/")[2], text


def main(folder: str, sample: int, seed: int, slow: bool) -> None:
    table = ROOT / "runs" / "mutation" / f"{Path(folder).stem}.jsonl"
    table.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(row) for row in table.read_text().splitlines()] if table.exists() else []
    done = {row["digest"] for row in rows if row["killed"]}
    for library in LIBRARIES:
        importlib.import_module(library)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch).resolve() / "copy"
        ignored = shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info")
        os.chdir(shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored))
        # Also for what the tests start; and `spawn` loads the main module by its name, which is not this one.
        sys.path[0] = os.environ["PYTHONPATH"] = str(copy)
        sys.modules["__main__"] = pytest
        for name in ("tests", "tests.studies"):
            sys.modules.pop(name, None)
        package = copy / "pml_xbml" / folder
        files = [package] if package.is_file() else sorted(package.glob("*.py"))
        paths = [f"tests/{name}" for name in TESTS.get(folder, [folder])] + [f"pml_xbml/{folder}"]
        status, failed, durations, reached = run_in_a_child(
            None, paths, *([] if slow else ["-m", "not slow"])
        )
        if status != 0:
            sys.exit(f"the tests must pass on the code as it is, got a failure: {failed}")
        # Byte code of a mutant would be taken for its successor's.
        sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
        survivors = []
        for number, (path, line, operator, text) in zip(
            range(1, sample + 1), mutants(files, seed), strict=False
        ):
            original, digest = path.read_text(), hashlib.sha256(text.encode()).hexdigest()
            if digest in done:
                continue
            lines = statement_lines(ast.parse(original), line)
            tests = {test for n in lines for test in reached.get(str(path), {}).get(n, [])}
            chosen = {test: s for test, s in durations.items() if test in tests or tests == {""}}
            path.write_text(text)
            test_files = sorted({test.partition("::")[0] for test in chosen})
            status, failed, *_ = run_in_a_child(chosen, test_files) if chosen else (0, "")
            path.write_text(original)
            place, verdict = f"{path.relative_to(copy)}:{line} {operator}", "killed" if status else "SURVIVED"
            with table.open("a") as file:
                row = {"place": place, "killed": status != 0, "tests": len(chosen), "by": failed}
                file.write(json.dumps({**row, "digest": digest}) + "\n")
            print(f"{number:3} {verdict} {place} {failed or ('at import' if status else '')}", flush=True)
            if status == 0:
                difference = difflib.unified_diff(original.split("\n"), text.split("\n"), lineterm="", n=0)
                survivors.append("\n".join([place, *list(difference)[3:]]))
        print(f"{folder}: {number - len(survivors)} of {number} killed", *survivors, sep="\n\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.studies.mutation")
    parser.add_argument("folder", help="of the package: losses, samplers, trunks, _kernels; or functional.py")
    parser.add_argument("--sample", type=int, default=80, help="how many mutants (default: 80)")
    parser.add_argument("--seed", type=int, default=0, help="what they are drawn by (default: 0)")
    parser.add_argument("--slow", action="store_true", help="run the tests that are marked as slow too")
    main(**vars(parser.parse_args()))
