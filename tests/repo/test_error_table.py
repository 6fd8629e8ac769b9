"""The table of errors in docs/serving.md is that of the code."""

import re

from tests.conftest import REPOSITORY

from mrcg import errors
from mrcg_serve.problem_details import problem_of


def test_the_table_has_every_error_that_is_not_a_500_with_its_code_and_status():
    text = (REPOSITORY / "docs" / "serving.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+Error)` \| `([\w<>]+)` \| (\d+)", text, re.M)
    table = {name: (code, int(status)) for name, code, status in rows}
    expected = {}
    for kind in errors.error_classes():
        error = errors.ImageError("<reason>", "text") if kind is errors.ImageError else kind("text")
        problem = problem_of(error)
        if problem.status != 500:
            expected[kind.__name__] = (problem.code, problem.status)
    assert table == expected
