"""Lines of IPython and the shell in a cell."""

import time

import pytest

from prenorm.checks.source.magics import as_python

GIVEN = "get_ipython()"


@pytest.mark.parametrize(
    ("cell", "python"),
    [
        ("!pip install -q torch \\\n    einops\nx = 1", f"{GIVEN}\n\nx = 1"),
        ("%matplotlib inline\n?print\nprint??", f"{GIVEN}\n{GIVEN}\n{GIVEN}"),
        ("if a:\n    !ls\nelse:\n    %time y = f(1)", f"if a:\n    {GIVEN}\nelse:\n    y = f(1)"),
        ("files, n = !ls\nspent = %timeit -o f(1)", f"files, n = {GIVEN}\nspent = {GIVEN}"),
        ("pip install torch -q\ncd ..\nls - la", f"{GIVEN}\n{GIVEN}\nls - la"),
        ("%%bash\nls", "\n"),
        ("%%timeit\nx = 1", "\n"),
        ("\n%%time\nx = 1", "\n\nx = 1"),
        ("!echo '''\nx = 1\n!ls", f"{GIVEN}\nx = 1\n{GIVEN}"),
    ],
)
def test_they_become_calls_of_ipython_with_as_many_lines(cell: str, python: str) -> None:
    assert as_python(cell) == python


@pytest.mark.parametrize(
    "cell",
    [
        'note = ("%d tokens"\n    % 3)',
        "x = a \\\n    % b",
        "'''\n!no command\nBlock?\n'''",
        "f(\n    x,\n    %3\n)",
        "x %= 3",
        "x = 'a\\\n%b'",
    ],
)
def test_a_line_inside_a_statement_is_python(cell: str) -> None:
    assert as_python(cell) == cell


@pytest.mark.parametrize("cell", ["\\'" * 100_000, "'''\n" + "x" * 200_000, "\n".join(["!x", "("] * 10_000)])
def test_long_cells_take_no_time(cell: str) -> None:
    began = time.process_time()
    as_python(cell)
    assert time.process_time() - began < 5
