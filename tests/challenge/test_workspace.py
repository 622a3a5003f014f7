import ast
import inspect

import pytest

from prenorm import TransformerBlock
from prenorm.challenge.workspace import TEMPLATE, new_workspace, open_workspace
from prenorm.errors import ConfigError


def test_a_workspace_has_the_file_the_tests_and_the_instructions(workspace):
    found = {str(path.relative_to(workspace.folder)) for path in workspace.folder.rglob("*") if path.is_file()}
    assert found == {
        "README.md",
        "challenge.json",
        "pytest.ini",
        "cs336_basics/__init__.py",
        "cs336_basics/layers.py",
        "tests/test_model.py",
    }
    assert open_workspace(workspace.folder) == workspace


def test_the_block_to_write_has_the_first_eight_arguments_of_ours(workspace):
    tree = ast.parse(workspace.layers.read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TransformerBlock"]
    constructor, forward = [node for node in block.body if isinstance(node, ast.FunctionDef)]
    names = [one.arg for one in constructor.args.args]
    assert names == [
        name for name, one in inspect.signature(TransformerBlock.__init__).parameters.items() if one.kind != 3
    ]
    assert [ast.unparse(one) for one in constructor.args.defaults] == ["2048", "10000.0", "1e-06", "None", "None"]
    assert [one.arg for one in forward.args.args] == ["self", "x", "token_positions"]
    assert "test_transformer_block" in (TEMPLATE / "tests" / "test_model.py").read_text()


def test_an_empty_folder_becomes_a_workspace(tmp_path):
    assert new_workspace(tmp_path).layers.is_file()


def test_nothing_is_overwritten(workspace, tmp_path):
    workspace.layers.write_text("mine")
    with pytest.raises(ConfigError, match=r"needs an empty folder, but .*mine holds README.md, challenge.json, cs336_"):
        new_workspace(workspace.folder)
    assert workspace.layers.read_text() == "mine"
    with pytest.raises(ConfigError, match=r"is a file; another name would do"):
        new_workspace(workspace.layers)


def test_what_is_no_workspace_is_refused_with_the_command_that_makes_one(workspace, tmp_path):
    with pytest.raises(ConfigError, match=r"prenorm challenge new .*none makes a workspace there"):
        open_workspace(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"is no workspace: it has no challenge.json"):
        open_workspace(tmp_path)
    workspace.layers.unlink()
    with pytest.raises(ConfigError, match=r"layers.py is missing"):
        open_workspace(workspace.folder)
