import ast

import pytest

from tests.studies.mutation import is_in_annotation, statement_lines

CODE = """
@decorated
def function(
    first: int | None,
    second=1,
) -> int | str:
    while first:
        second = (
            second
            + 1
        )
    try:
        count: int = 3 | 4
    except ValueError:
        raise
"""


@pytest.mark.parametrize(
    ("line", "lines"),
    [(2, [2]), (4, [3, 4, 5, 6]), (7, [7]), (10, [8, 9, 10, 11]), (12, [12]), (14, [14]), (15, [15])],
)
def test_a_mutant_is_tried_where_its_statement_runs(line, lines):
    assert list(statement_lines(ast.parse(CODE), line)) == lines


@pytest.mark.parametrize(
    ("line", "code", "expected"), [(4, "|", True), (6, "|", True), (13, "|", False), (10, "+", False)]
)
def test_annotations_are_left_as_they_are(line, code, expected):
    place = line, CODE.splitlines()[line - 1].index(code)
    assert is_in_annotation(ast.parse(CODE), place) == expected
