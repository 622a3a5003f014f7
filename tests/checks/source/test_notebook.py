"""What runs of a notebook."""

import json
import sys
from typing import Any

import pytest

from prenorm.checks.source.code import locate
from prenorm.checks.source.notebook import definitions, written
from prenorm.checks.source.text import Text
from prenorm.checks.subject.learner import Learner
from prenorm.checks.subject.local import LocalSubject
from prenorm.checks.verdict import Place
from tests.checks.source.notebooks import notebook

BLOCK = "import json\nclass Block:\n    value = VALUE\n    def text(self):\n        return json.dumps(self.value)\n"


def ran(path, *cells, wanted=("Block",)):
    """The names after what is kept of the cells has run."""
    found = definitions(notebook(path / "work.ipynb", *cells), wanted)
    names: dict[str, Any] = {}
    exec(compile(found.text, "work", "exec"), names)
    return names


@pytest.mark.parametrize(
    ("makes", "value"),
    [
        ("base = float(3)\nVALUE = base / base", 1),
        ("if bool(1):\n    VALUE = 2\nelse:\n    VALUE = 3", 2),
        ("import contextlib\nwith contextlib.nullcontext():\n    VALUE = 4", 4),
        ("try:\n    VALUE = int('no')\nexcept ValueError:\n    VALUE = 5", 5),
        ("VALUE = []\nfor k in range(2):\n    VALUE.append(k)", [0, 1]),
        ("VALUE = {}\nVALUE['s'] = 1\nVALUE.update(t=2)", {"s": 1, "t": 2}),
        ("VALUE = 2\nVALUE *= 3", 6),
        ("VALUE = [1, 2]\ndel VALUE[0]", [2]),
        ("def fill():\n    global VALUE\n    VALUE = 7\nfill()", 7),
        ("def fill_(x):\n    x.append(8)\nVALUE = []\nfill_(VALUE)", [8]),
        ("sizes = [3]\ndef count():\n    return len(sizes)\nsizes.append(4)\nVALUE = count()", 2),
        ("noise = 5; VALUE = float(9); print(1 / 0)", 9),
    ],
)
def test_what_makes_or_changes_a_needed_name_runs_with_what_it_needs(makes, value, tmp_path):
    assert ran(tmp_path, makes, BLOCK)["Block"].value == value


def test_what_changes_the_class_runs(tmp_path):
    later = "def forward(self):\n    return depth\ndepth = int(3)"
    patch = "setattr(Block, 'forward', forward)"
    adds = "def add_to(owner):\n    return lambda f: setattr(owner, f.__name__, f)\n"
    adds += "@add_to(Block)\ndef back(self):\n    return size"
    block = ran(tmp_path, "class Block: ...", later, patch, adds, "size = int(4)", "Block.other = forward")["Block"]
    assert (block().forward(), block().back(), block().other()) == (3, 4, 3)


def test_a_class_under_a_condition_runs(tmp_path):
    assert ran(tmp_path, "OLD = False", "if not OLD:\n    class Block:\n        value = 1")["Block"].value == 1


@pytest.mark.parametrize(
    "rest",
    [
        "y = float(2)\nfirst = y * 2",
        "with open('no such file.txt') as f:\n    text = f.read()\nhalf = text[:2]",
        "tmp = float(3)\nb = tmp\ndel tmp",
        "model = Block()\nfor step in range(10**12):\n    model.step = step",
        "def generate():\n    return model\nmodel = train()",
        "class Data:\n    def __len__(self):\n        return len(words)\nwords = open('no such.txt').read().split()",
        "sizes = [1]\nsizes.append(input())\nclass Other:\n    all = sizes",
        "Block()\nprint(VALUE)\nVALUE\n1 / 0",
        "import json\njson.dump(train(), None)",
        "for VALUES in [1, 2]:\n    raise SystemExit",
    ],
)
def test_what_the_block_does_not_need_costs_nothing(rest, tmp_path):
    assert ran(tmp_path, "VALUE = 1", BLOCK, rest)["Block"].value == 1


def test_imports_definitions_and_plain_values_run_in_any_case(tmp_path):
    names = ran(
        tmp_path,
        "try:\n    import tomllib\nexcept ImportError:\n    tomllib = None\nif True:\n    import json",
        "WIDTH = 4\nclass Config:\n    width = WIDTH",
        "class Other:\n    def rate(self):\n        return RATE\nRATE = float(3)  # which another class needs",
        "class Block: ...",
    )
    assert {"tomllib", "json"} <= names.keys()
    assert (names["Config"].width, names["Other"]().rate()) == (4, 3)


def test_a_value_that_something_changes_which_does_not_run_is_not_there(tmp_path):
    """Rather than a wrong one."""
    other = "class Other:\n    def all(self):\n        return SIZES\n"
    found = definitions(
        notebook(tmp_path / "work.ipynb", "SIZES = []", "for k in range(3):\n    SIZES.append(k)", other), ["Block"]
    )
    names = ran(tmp_path, "SIZES = []", "for k in range(3):\n    SIZES.append(k)", other)
    assert found.left_out["SIZES"] == "cell 1"
    with pytest.raises(NameError):
        names["Other"]().all()


def test_lines_are_those_of_the_cells(tmp_path):
    found = definitions(
        notebook(
            tmp_path / "work.ipynb",
            "print(1,\n  2)\nimport json",
            "x = 1",
            "from __future__ import annotations\nclass Block:\n    def f(self) -> NoSuch: ...",
        ),
        ["Block"],
    )
    exec(compile(found.text, "work", "exec"), {})  # an import of __future__ is the first statement
    lines = found.text.split("\n")
    for line, place in (("import json", ("cell 1", 3)), ("x = 1", ("cell 2", 1)), ("class Block:", ("cell 3", 2))):
        assert found.lines[lines.index(line)] == place


@pytest.mark.parametrize(
    ("content", "said"), [("{", "Expecting"), ("[]", "no list of cells"), ('{"worksheets": 3}', "no list of cells")]
)
def test_what_is_no_notebook_says_why(content, said, tmp_path):
    (tmp_path / "work.ipynb").write_text(content)
    with pytest.raises(ValueError, match=said):
        definitions(tmp_path / "work.ipynb", ["Block"])


def test_a_notebook_of_version_3_is_read(tmp_path):
    cells = [{"cell_type": "heading", "source": "1"}, {"cell_type": "code", "input": ["class Block:\n", "    x = 1"]}]
    (tmp_path / "work.ipynb").write_text(json.dumps({"nbformat": 3, "worksheets": [{"cells": cells}, {"cells": []}]}))
    found = definitions(tmp_path / "work.ipynb", ["Block"])
    assert "class Block:\n    x = 1" in found.text
    assert found.lines[0] == ("cell 1", 1)


BASE = "from torch import nn\n\n\nclass Base(nn.Module): ...\n"


@pytest.fixture
def _as_before(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        del sys.modules[name]


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize(
    "cells",
    [
        (f"%%writefile base_of.py\n{BASE}", "from base_of import Base\nclass Block(Base): ..."),
        (f"%%writefile our_lm/base.py\n{BASE}", "import our_lm.base as lm\nclass Block(lm.Base): ..."),
        (f"%%writefile of_block.py\n{BASE}\nclass Block(Base): ...", "!python of_block.py"),
        (f"%%file a_base.py\n{BASE}", "%%file a_block.py\nfrom a_base import Base\nclass Block(Base): ...\n"),
        (f"%%writefile work.py\n{BASE}\nclass Block(Base): ...", "from work import Block"),
    ],
)
def test_files_that_cells_write_can_be_imported(cells, tmp_path):
    learner = Learner(LocalSubject())
    code = locate(f"{notebook(tmp_path / 'work.ipynb', *cells)}:Block")
    learner.load(code)
    assert learner.made["name"] == "Block"
    assert "class Base" in Text(code).source


def test_lines_of_files_that_cells_write_are_those_of_the_cells(tmp_path):
    file = notebook(tmp_path / "work.ipynb", f"\n%%file a_base.py\n{BASE}", "from a_base import Base")
    text = Text(locate(f"{file}:Base"))
    assert BASE in text.source
    place = text.innermost({"frames": [{"file": f"{tmp_path}/a_base.py", "line": 4}]})
    assert place == Place(file=f"{file} (cell 1)", line=6, code="class Base(nn.Module): ...")


def test_a_file_is_what_was_written_last_with_what_was_added(tmp_path):
    cells = (
        "%%writefile a.py\nx = 1",
        "%%writefile a.py\nx = 2\n",
        "x",
        "%%writefile -a a.py\ny = 3",
        "%%writefile ../b.py\n",
    )
    found = written(notebook(tmp_path / "work.ipynb", *cells))
    assert [*found] == [str(tmp_path / "a.py")]
    one = found[str(tmp_path / "a.py")]
    assert one.lines[one.text.split("\n").index("y = 3")] == ("cell 4", 2)
    assert "x = 1" not in one.text
