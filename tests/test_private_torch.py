"""Private names of PyTorch are in one file, which says what happens when one is missing."""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import prenorm

SOURCES = Path(prenorm.__file__).parent
GATHERED = SOURCES / "private_torch.py"
ALONE = {
    "torch.jit._builtins",
    "torch.utils._device",
    "torch.utils._python_dispatch",
    "torch.utils._pytree",
}  # of checks/child/driver.py


def imported_anew() -> ModuleType:
    """The file once more, as a module of its own."""
    spec = importlib.util.spec_from_file_location("private_torch_again", GATHERED)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", re.findall(r'_needed\("torch\.(.*)"\)', GATHERED.read_text()))
def test_an_import_error_names_what_a_release_has_dropped(name, monkeypatch):
    *path, last = name.split(".")
    holder = torch
    for step in path:
        holder = getattr(holder, step)
    monkeypatch.delattr(holder, last)
    with pytest.raises(ImportError, match=rf"prenorm needs torch\.{re.escape(name)}, which torch .* install torch 2\."):
        imported_anew()


def test_a_module_without_its_dictionaries_is_named_too(monkeypatch):
    class Module:
        _parameters = _buffers = _modules = _forward_hooks = None

    monkeypatch.setattr(torch.nn, "Module", Module)
    with pytest.raises(ImportError, match=r"prenorm needs torch\.nn\.Module\(\)\._forward_pre_hooks"):
        imported_anew()


def test_what_can_be_done_without_is_done_without(monkeypatch):
    module = imported_anew()
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not module.has_onednn_linear()
    monkeypatch.setitem(sys.modules, "torch.fx.experimental.symbolic_shapes", None)
    assert not module.has_static_size(3)


def private_names(path: Path) -> Iterator[str]:
    """What a file imports from torch or reads from its modules by a name with an underscore before it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            names = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        yield from (name for name in names if re.fullmatch(r"torch(\.\w+)*\._(?!_)\w+", name))


def test_no_other_file_has_private_names_of_torch():
    found = {name for path in SOURCES.rglob("*.py") if path != GATHERED for name in private_names(path)}
    assert found == ALONE
    assert set(private_names(GATHERED)) == {"torch.ops.mkldnn._linear_pointwise"}  # the others are text there
