"""The learner's own files that a file imports, found from their sources without running them."""

import ast
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .notebook import all_python
from .parse import MAX_CHARACTERS, parse

MOST_FILES = 80
HIGHEST = 4  # levels above the file at which its project is searched
PROJECT = (".git", "pyproject.toml", "setup.py", "setup.cfg", "requirements.txt")
"""What marks the highest folder of a project."""


@dataclass(frozen=True, slots=True)
class Imports:
    """What one file imports: (dots, module, name) for each name. levels: the most dots."""

    names: tuple[tuple[int, str, str], ...]

    @staticmethod
    def of(path: Path) -> "Imports":
        """Those of a file; none where it cannot be parsed."""
        try:
            if path.stat().st_size > MAX_CHARACTERS * 4:
                return Imports(())
            text = all_python(path) if path.suffix.lower() == ".ipynb" else path.read_bytes().decode(errors="replace")
        except (OSError, ValueError):
            return Imports(())
        return Imports.of_text(text)

    @staticmethod
    def of_text(text: str) -> "Imports":
        """Those of a source; none where it cannot be parsed."""
        try:
            tree = parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return Imports(())
        found: list[tuple[int, str, str]] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found += [(0, one.name, "") for one in node.names]
            elif isinstance(node, ast.ImportFrom):
                found += [(node.level, node.module or "", one.name) for one in node.names]
        return Imports(tuple(dict.fromkeys(found)))

    @property
    def levels(self) -> int:
        """How many packages the file must lie in."""
        return max((level for level, _, _ in self.names), default=0)


@dataclass(slots=True)
class Project:
    """The own files that are used, the names that are not next to the file, and the project's name and version."""

    files: list[str] = field(default_factory=list)
    beside: dict[str, str] = field(default_factory=dict)
    distributions: dict[str, str] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)
    """Names of packages that are meant where a folder of the project has the same name."""


def names_another(folder: Path, file: Path) -> bool:
    """Whether files of a package mean another one by its name: they import several of its parts, and it has none."""

    def parts(path: Path) -> set[str]:
        imported = [module.split(".") for level, module, _ in Imports.of(path).names if level == 0]
        return {names[1] for names in imported if names[0] == folder.name and len(names) > 1}

    if not parts(file):
        return False
    imported = set().union(*map(parts, sorted(file.parent.glob("*.py"))[:MOST_FILES]))
    return len(imported) > 1 and not any(_holds(folder, [one]) for one in imported)


def follow(path: Path, root: Path, within: Path | None) -> Project:
    """What the file at path imports of its own project, directly or indirectly. root: the folder of its package."""
    folders = list(_folders(path.parent, within))
    project = Project()
    for folder in folders:
        project.distributions |= _named(folder)
    if root != path.parent:
        project.distributions.setdefault(_top(path, root).name, "0")
    waiting, seen = [path], {path}
    for file in waiting:  # grows while it is walked
        for level, module, name in Imports.of(file).names:
            for other in _files(file, level, module, name, [root, *folders], project, within):
                if other not in seen and len(seen) < MOST_FILES:
                    seen.add(other)
                    waiting.append(other)
    project.files = [str(one) for one in waiting[1:]]
    for name in project.elsewhere:
        project.beside.pop(name, None)
    for name in project.beside:
        project.distributions.setdefault(name, "0")
    return project


def _top(path: Path, root: Path) -> Path:
    return root / path.relative_to(root).parts[0]


def _folders(folder: Path, within: Path | None) -> Iterator[Path]:
    """The folder and those above it, as far as the project may reach."""
    for _ in range(HIGHEST + 1):
        if within is not None and within != folder and within not in folder.parents:
            return
        if within is None and folder in (Path.home(), Path(folder.anchor)):
            return
        yield folder
        if (folder / "src").is_dir():
            yield folder / "src"
        if within is None and any((folder / mark).exists() for mark in PROJECT):
            return
        folder = folder.parent


def _files(
    file: Path, level: int, module: str, name: str, folders: list[Path], project: Project, within: Path | None
) -> Iterator[Path]:
    """The files that one import may mean."""
    parts = module.split(".") if module else []
    if level:
        start = file.parent
        for _ in range(level - 1):
            start = start.parent
    else:
        place = _place(parts, name, file.parent, folders, project.elsewhere)
        if place is None or not _inside(place, within):
            return
        if place.parent != folders[0]:
            project.beside.setdefault(parts[0], str(place))
        start = place.parent
    for inner in (parts, [*parts, name]):
        target = start.joinpath(*inner)
        for candidate in (target.with_name(target.name + ".py") if inner else target, target / "__init__.py"):
            if candidate.is_file() and _inside(candidate.resolve(), within):
                yield candidate.resolve()


def _place(parts: list[str], name: str, beside: Path, folders: list[Path], elsewhere: set[str]) -> Path | None:
    """The learner's folder with Python files, or file, that "from PARTS import NAME" reads; None if it is not theirs.

    A file has no modules in it, so that `from a.b import c` does not mean a.py; neither does `import a`, where a.py has
    that line too. A folder further up, or in a package, that has no b in it may be called like another package: its
    name goes into elsewhere.
    """
    top, inner = parts[0], parts[1] if len(parts) > 1 else name
    if top in sys.stdlib_module_names or top == "prenorm" or top in elsewhere:
        return None
    near = (folders[0], beside)
    for folder in dict.fromkeys((*near, *folders)):
        package, file = folder / top, folder / f"{top}.py"
        try:
            is_meant = len(parts) == 1 and file.is_file() and not _imports_its_own_name(file)
            found = file if is_meant else package if _has_python(package, parts[1:]) else None
            if found == package and not _installed(top):
                found = _in_a_checkout(package, inner) or package
        except OSError:  # a folder that may not be read
            continue
        if found is None:
            continue
        is_inner = found == package and _is_package(folder)
        if is_inner and not inner and _is_imported_as_one(folder):
            elsewhere.add(top)
            continue
        if (folder in near and not is_inner) or (_holds(found, parts[1:], name) and not _installed(top)):
            return found
        if is_inner:
            elsewhere.add(top)
    return None


def _is_imported_as_one(package: Path) -> bool:
    """Whether files of a package import each other relatively: then the folders in it have no other names."""
    return any(Imports.of(one).levels for one in sorted(package.glob("*.py"))[:MOST_FILES])


def _imports_its_own_name(file: Path) -> bool:
    return any(level == 0 and module == file.stem for level, module, _ in Imports.of(file).names)


def _in_a_checkout(folder: Path, inner: str) -> Path | None:
    """The package of a repository's checkout that has its name, unless the folder itself has what is imported."""
    if _is_package(folder) or (inner and any((folder / one).exists() for one in (inner, f"{inner}.py"))):
        return None
    return next((one for one in (folder / folder.name, folder / "src" / folder.name) if _is_package(one)), None)


def _holds(package: Path, inner: list[str], name: str = "") -> bool:
    """Whether a package, or a file, has the module inner in it; without one, the name, as far as can be seen."""
    part = inner[0] if inner else name
    if not part or part == "*" or not package.is_dir():
        return True
    if any(package.glob(f"{part}.*")) or (package / part).is_dir():
        return True
    init = package / "__init__.py"
    return not inner and (not init.is_file() or _may_define(part, init.read_text(errors="replace")))


def _may_define(name: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b|import \*|__getattr__", text) is not None


def _is_package(folder: Path) -> bool:
    return (folder / "__init__.py").is_file()


def _inside(path: Path, within: Path | None) -> bool:
    return within is None or path == within or within in path.parents


def _has_python(folder: Path, inner: list[str]) -> bool:
    """Whether a folder has Python files, in it or one folder down, or the module inner, however deep it lies."""
    try:
        deep = bool(inner) and folder.is_dir() and _is_module(folder.joinpath(*inner))
        return deep or any(folder.glob("*.py")) or any(folder.glob("*/*.py"))
    except OSError:
        return False


def _is_module(path: Path) -> bool:
    return path.with_name(f"{path.name}.py").is_file() or (path.is_dir() and any(path.glob("*.py")))


def _installed(top: str) -> bool:
    try:
        spec = importlib.util.find_spec(top)
        return spec is not None and spec.origin is not None  # a plain folder is not a package
    except (ImportError, ValueError):
        return False


def _named(folder: Path) -> dict[str, str]:
    """The project's name and version in pyproject.toml."""
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(errors="replace")).get("project", {})
        name, version = project.get("name"), project.get("version", "0")
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    return {name: version} if isinstance(name, str) and isinstance(version, str) else {}
