"""The house: folders import only from those above them in README's list, and no modules import each other in a ring.

Imports inside functions and under TYPE_CHECKING count like those at the top of a file.
"""

import ast
import functools
import re
import runpy
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src/prenorm"
FRONT = {"", "__main__"}  # the package itself, which names what is public, and what starts the command line


def modules() -> dict[str, Path]:
    """By name within the package, "" for the package itself."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(name: str, source: str, known: set[str], *, is_package: bool = False) -> Iterator[str]:
    """The prenorm modules that a module imports, anywhere in its source."""
    package = (name if is_package else name.rpartition(".")[0]).split(".") if name else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            if node.level:
                parts = [part for part in package if part]
                base = parts[: len(parts) - node.level + 1] + base
            elif base[0] == "prenorm":
                base = base[1:]
            else:
                continue
            for alias in node.names:
                for one in (".".join([*base, alias.name]), ".".join(base)):
                    if one in known:
                        yield one
                        break
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("prenorm").removeprefix(".")
                for alias in node.names
                if alias.name.split(".")[0] == "prenorm"
            )


@functools.cache
def graph() -> dict[str, set[str]]:
    """What each module imports."""
    paths = modules()
    return {
        name: set(imports(name, path.read_text(), set(paths), is_package=path.name == "__init__.py"))
        for name, path in paths.items()
    }


def order() -> list[str]:
    """The folders and files of README's list, from the first to the last."""
    listed = re.search(r"## Reading order.*?```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert listed
    names = (line.split("   ")[0] for line in listed[1].splitlines())
    return [one.removesuffix("/").removesuffix(".py") for name in names for one in name.split()]


def test_the_list_names_every_folder_and_file_of_the_package():
    assert sorted(order()) == sorted({name.split(".")[0] for name in modules()} - FRONT)


def test_each_folder_imports_from_those_above_it_alone():
    place = {name: i for i, name in enumerate(order())}
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if (here := name.split(".")[0]) not in FRONT
        and (there := other.split(".")[0]) != here
        and (there in FRONT or place[there] > place[here])
    ]
    # The command line says which version it is.
    assert wrong == ["cli.main imports "]


# The rooms of a folder that has several, from the first to the last: each imports from those before it alone.
ROOMS = {
    "checks": "faults targets verdict source formula subject search probes start locate judge check report",
    "challenge": "progress judge parts questions planters build justify harden workspace status submit",
}


@pytest.mark.parametrize("folder", ROOMS)
def test_each_room_imports_from_those_before_it_alone(folder):
    place = {name: i for i, name in enumerate(ROOMS[folder].split())}
    inside = {name.split(".")[1] for name in modules() if name.startswith(f"{folder}.")}
    assert inside - {"template"} == set(place)  # which is what a learner's folder begins with
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if name.startswith(f"{folder}.")
        and other.startswith(f"{folder}.")
        and place[other.split(".")[1]] > place.get(name.split(".")[1], len(place))
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_ring():
    edges = {name: others - {name, ""} for name, others in graph().items() if name}
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from .lm import TransformerLM", ["models.lm"]),
        ("from . import lm", ["models.lm"]),
        ("from ..ops import norm", ["ops.norm"]),
        ("from ..ops.norm import rms_norm", ["ops.norm"]),
        ("import prenorm.ops.norm", ["ops.norm"]),
        ("from prenorm.ops import norm", ["ops.norm"]),
        ("def late():\n    from ..ops.norm import rms_norm", ["ops.norm"]),
        ("if TYPE_CHECKING:\n    from .lm import TransformerLM", ["models.lm"]),
        ("from prenorm import TransformerLM", [""]),
        ("import torch\nfrom torch import nn", []),
    ],
)
def test_imports_of_every_form_are_read(text, found):
    known = {"", "models", "models.lm", "ops", "ops.norm"}
    assert list(imports("models.quantize", text, known)) == found


# Phrases that have to be read twice, and what says the same: "integers"; "a file that is not a config", "unless it is a
# config"; "depends on"; "every k-th block"; "not supported".
RIDDLES = (
    r"whole numbers?|(what|that|which) (is|are) no (?!longer|more)\w+|hangs? on (?!another)|how many-th|not served"
)


def test_no_page_and_no_module_speaks_in_riddles():
    elsewhere = {PACKAGE / folder for folder in ("checks", "challenge", "kernels")}
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    pages += [path for path in PACKAGE.rglob("*.py") if not elsewhere & {*path.parents}]
    found = {path: re.search(rf"\b({RIDDLES})", " ".join(path.read_text().split())) for path in pages}
    assert {str(path.relative_to(ROOT)): match[0] for path, match in found.items() if match} == {}


@pytest.mark.parametrize("name", ["block.svg", "house.svg"])
def test_the_drawings_are_those_of_the_script(name):
    pictures = runpy.run_path(str(ROOT / "docs/pictures/draw.py"))["PICTURES"]
    assert (ROOT / "docs/pictures" / name).read_text() == pictures[name](), "make pictures draws them anew"
