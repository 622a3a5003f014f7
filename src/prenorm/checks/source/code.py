"""What to import for "FILE.py:CLASS" or "package.module:CLASS", found without running it, and without torch."""

import importlib.util
import re
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import ConfigError
from .imports import Imports, follow, names_another
from .notebook import Lines, definitions, written


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """What to import: module from root, or the file as module, and the name in it.

    readable: what the learner's code may read. Of a notebook, texts: by file what is run in place of its own text, the
    notebook's and those of files that its cells write; lines: where their lines stand; left_out: names that are made by
    what does not run, with their cells. beside: names that it imports from elsewhere in the learner's project, with
    where they lie. distributions: what the project calls itself, with its version. files: those of its own that it
    uses.
    """

    root: str
    module: str
    file: str | None
    name: str
    readable: tuple[str, ...] = ()
    texts: dict[str, str] = field(default_factory=dict)
    lines: dict[str, Lines] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    distributions: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def locate(subject: str, *, within: Path | None = None, lines: Iterable[str | None] = ()) -> Code:
    """What to import for "FILE.py:CLASS" or "package.module:CLASS", found without running it.

    within: the folder, or the file, that what it imports must not leave, such as one submission of many. lines: those
    that build and call it, if a person gives them: of a notebook, what they name runs too.
    """
    where, colon, name = subject.rpartition(":")
    wanted = {name.partition(".")[0], *(word for line in lines for word in re.findall(r"\w+", line or ""))}
    if not colon or not where or not name:
        raise ConfigError(f"the block must be given as FILE.py:CLASS or package.module:CLASS, not {subject!r}.")
    path = Path(where)
    if path.is_file() and path.suffix.lower() not in (".py", ".ipynb"):
        raise ConfigError(f"the file must end in .py or .ipynb, but {where} does not; rename it.")
    if where.lower().endswith((".py", ".ipynb")) or "/" in where:
        if not path.is_file():
            raise ConfigError(f"there is no file {where}.")
        return _in_file(path.resolve(), name, within, wanted)
    root = Path.cwd()
    if Path(where).is_dir() and not re.fullmatch(r"\w+(\.\w+)*", where):
        raise ConfigError(f"{where} is a folder; --batch {where} checks everything in it.")
    try:
        spec = importlib.util.find_spec(where.partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent
        root = folder.parent if spec.submodule_search_locations else folder
        inside = Path(root, *where.split("."))
        if "." in where and not inside.is_dir() and not list(inside.parent.glob(f"{inside.name}.*")):
            raise ConfigError(f"there is no module {where}: the package is there, but not {inside}.py.")
    elif not (root / where.replace(".", "/")).exists() and not (root / (where.replace(".", "/") + ".py")).exists():
        raise ConfigError(f"there is no module {where}; write a file as FILE.py:CLASS.")
    file = Path(root, *where.split(".")).with_suffix(".py")
    if spec is None and file.is_file():
        return _in_file(file.resolve(), name, within, wanted)
    return Code(root=str(root), module=where, file=None, name=name, files=(str(file),) if file.is_file() else ())


def _in_file(path: Path, name: str, within: Path | None, wanted: Collection[str]) -> Code:
    """A file of a package is imported as part of it, so that its relative imports work."""
    imports, within = Imports.of(path), None if within is None else within.resolve()
    is_notebook = path.suffix.lower() == ".ipynb"
    stem = path.name if is_notebook else path.stem  # nobody imports a notebook: model.py may be beside it
    root, module, levels = path.parent, re.sub(r"\W", "_", stem), imports.levels
    inner = path
    while root.parent != root and (
        (root / "__init__.py").is_file() or levels > 0 or (inner != path and names_another(inner, path))
    ):
        folder = re.sub(r"\W", "_", root.name)
        inner, root, module, levels = root, root.parent, f"{folder}.{module}", levels - 1
    found = follow(path, root, within)
    top = path if root == path.parent else root / path.relative_to(root).parts[0]
    if root != path.parent and top.name == module.partition(".")[0] and within != path:
        found.beside.setdefault(top.name, str(top))
    # A folder that is a package only by its relative imports may have unrelated neighbours.
    alone = (imports.levels > 0 and top != path) or (within is not None and within not in (root, *root.parents))
    try:
        cells = {str(path): definitions(path, wanted), **written(path)} if is_notebook else {}
    except ValueError as error:
        raise ConfigError(f"a notebook is JSON with a list of cells (nbformat 3 or 4); {path}: {error}.") from None
    imported = [one for text in cells.values() for one in Imports.of_text(text.text).names]
    names = {part for _, module, name in imported for part in (*module.split("."), name)}
    used = [file for file in cells if Path(file).stem in names]
    return Code(
        root=str(root),
        module=module,
        file=str(path),
        name=name,
        readable=(str(path if within == path else top if alone else root), *found.beside.values()),
        texts={file: one.text for file, one in cells.items()},
        lines={file: one.lines for file, one in cells.items()},
        left_out=cells[str(path)].left_out if cells else {},
        beside={top: place for top, place in found.beside.items() if top not in sys.stdlib_module_names},
        distributions=found.distributions,
        files=tuple(dict.fromkeys([str(path), *used, *found.files])),
    )
