"""Imports a learner's file as its users do, where packages of theirs are not installed and no terminal is there.

What stands in for something is told in the notes. Whatever stands in for a missing package raises when it is used by a
block, so that no number ever comes from it.
"""

import builtins
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import linecache
import os
import re
import sys
import traceback
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import LEFT_OUT
from .finders import Beside, Distributions, Texts
from .missing_packages import (
    KNOWN,
    MissingPackages,
    NotInstalledError,
    is_namespace,
    missing_part,
    not_installed,
    stub_path,
    way_out,
)
from .newer_python import missing_name, stand_in
from .surroundings import no_arguments, no_results

STARRED = re.compile(r"^from\s+([\w.]+)\s+import\s+\*", re.M)
ONCE = "Only a single TORCH_LIBRARY"
"""What torch says where operators are defined again, as in an import that begins anew without a package."""
ROUNDS = 60  # of imports, each of which may find one more package missing
SPELLED = (
    *("torch", "numpy", "einops", "jaxtyping", "typing", "typing_extensions", "dataclasses", "functools", "itertools"),
    *("collections", "contextlib", "argparse", "logging", "warnings", "inspect", "random", "pathlib"),
)
"""What files of blocks import most: a name that is nearly one of them is that one, misspelt."""
NOTHING: Mapping[str, str] = types.MappingProxyType({})


class Importer:
    """Imports from root. beside: top-level names of the learner's that lie elsewhere, with their files or folders.

    distributions: name -> version of what the learner's own project calls itself. texts: by file what is run in place
    of its own text; the file need not be there.
    """

    def __init__(
        self,
        root: str,
        beside: Mapping[str, str],
        distributions: Mapping[str, str],
        texts: Mapping[str, str] = NOTHING,
    ) -> None:
        self.root, self.beside, self._texts = root, dict(beside), texts
        self.notes: dict[str, str] = {}
        self._stubs = MissingPackages()
        self._left_out = ""  # what of a missing package made a package's __init__.py raise
        self._package = ""  # what the file under judgement is in
        self._is_installed = root in sys.path
        if root and not self._is_installed:
            sys.path.insert(0, root)
        checkouts = {name: place for name, place in self.beside.items() if Path(root, name) in Path(place).parents}
        sys.meta_path.insert(0, Beside(checkouts))  # otherwise the folder around it would be found, as a package
        sys.meta_path += [Beside(self.beside), self._stubs, Distributions(distributions)]

    def module(self, name: str, file: str | None, left_out: Mapping[str, str] = NOTHING) -> types.ModuleType:
        """The module: from its file where there is one, as part of the packages that its name says.

        left_out: names that it does not make, because not all of it is run, with their places.
        """
        for place, text in self._texts.items():  # for the lines of errors
            linecache.cache[place] = (len(text), None, text.splitlines(keepends=True), place)
        if self._texts and file is not None:
            sys.meta_path.insert(0, Texts(os.path.dirname(file), self._texts))
        self._package = name.partition(".")[0]
        with no_arguments(file), no_results(self.notes, file), contextlib.ExitStack() as meanwhile:
            for _ in range(ROUNDS):
                try:
                    module = self._once(name, file, left_out)
                    break
                except (Exception, SystemExit) as error:
                    missing = _lacking(error)
                    if self._may_be_missing(missing):
                        self._stubs.names.add(missing)
                    elif not stand_in(error, self.notes) and not self._give_ipython(error, meanwhile):
                        if what := (self._left_out if type(error) is ImportError else "") or self._named_stub(error):
                            raise not_installed(what).with_traceback(error.__traceback__) from error
                        if told := self._of_another_release(error):
                            raise NotInstalledError(told).with_traceback(error.__traceback__) from error
                        raise
                    self._forget()
            else:
                raise NotInstalledError(
                    f"{ROUNDS} packages and more are not installed here: {', '.join(self._stubs.names)}"
                )
        for missing in sorted(self._stubs.names):
            self.notes[missing] = f"not installed here: {way_out(missing)}"
        self._stubs.seal()
        return module

    def modules(self) -> list[types.ModuleType]:
        """The learner's own modules that were loaded."""
        return [module for module in list(sys.modules.values()) if self._is_mine(module)]

    def neighbours(self, pattern: re.Pattern[str], file: str | None) -> None:
        """Import the files beside this one that define what fits the pattern; those that cannot be are left out."""
        if file is None or "." not in (name := next((n for n, m in sys.modules.items() if _file(m) == file), "")):
            package, folder = "", Path(file or self.root).parent
        else:
            package, folder = name.rpartition(".")[0] + ".", Path(file).parent
        for path in sorted(folder.glob("*.py"))[:60]:
            with contextlib.suppress(BaseException):
                if str(path) != file and path.stem.isidentifier() and pattern.search(path.read_text(errors="replace")):
                    _from_file(package + path.stem, str(path), None)

    def _once(self, name: str, file: str | None, left_out: Mapping[str, str]) -> types.ModuleType:
        if file is None:
            return importlib.import_module(name)
        before = sys.modules.get(name)
        self._packages(name.split(".")[:-1], Path(file).parent)
        loaded = sys.modules.get(name)
        text = self._texts.get(file)
        if loaded is not before and loaded is not None and _file(loaded) == file and text is None:
            return loaded
        return _from_file(name, file, text, left_out)

    def _packages(self, names: list[str], innermost: Path) -> None:
        """Import the packages that the file is in; in place of one that raises stands an empty one."""
        for depth, folder in enumerate([innermost, *innermost.parents][: len(names)][::-1], 1):
            package = ".".join(names[:depth])
            try:
                importlib.import_module(package)
            except (Exception, SystemExit) as error:
                if self._may_be_missing(_lacking(error)) or stand_in(error, self.notes):
                    raise
                self._left_out = self._left_out or self._named_stub(error)
                self._forget()
                _stand_in(package, folder)
                if (folder / "__init__.py").is_file():  # the file's own error will be raised again
                    told = f"left out, because it raises {type(error).__name__}: {error}"
                    self.notes[f"{package}/__init__.py"] = told

    def _may_be_missing(self, name: str) -> bool:
        """Whether something may stand in for what cannot be imported: no file of the learner's, no misspelling."""
        top = name.partition(".")[0]
        if not name or top == self._package or name in self._stubs.names or self._is_own(top):
            return False
        if name in sys.modules and not self._is_mine(sys.modules[name]):  # it is there, and lacks a part
            return False
        return name in KNOWN or not any(_is_misspelt(name, meant) for meant in SPELLED)

    def _give_ipython(self, error: BaseException, meanwhile: contextlib.ExitStack) -> bool:
        """Whether get_ipython was missing, as it is outside a notebook: meanwhile one is there that does nothing."""
        if not isinstance(error, NameError) or error.name != "get_ipython":
            return False
        setattr(builtins, error.name, self._stubs.stub(f"IPython.{error.name}"))
        meanwhile.callback(delattr, builtins, error.name)
        self.notes[error.name] = "there is no notebook here: it does nothing"
        return True

    def _named_stub(self, error: BaseException) -> str:
        """What of a missing package the learner's statement that raised has in it; empty if nothing, or no reason."""
        if isinstance(error, NameError) and error.name:
            return self._starred(error)
        if ONCE in str(error):  # with the package, nothing would have been imported again
            return next(iter(sorted(self._stubs.names)), "")
        if type(error) is ImportError:
            return self._left_undefined(error)
        if isinstance(error, ImportError | NameError | SyntaxError):
            return ""
        trace = error.__traceback__
        steps = zip(traceback.walk_tb(trace), traceback.extract_tb(trace), strict=True)
        own = [(frame, step) for (frame, _), step in steps if self._is_within(step.filename)]
        if not own:
            return ""
        frame, step = own[-1]
        lines = linecache.getlines(step.filename)[(step.lineno or 1) - 1 : step.end_lineno]
        names = {**frame.f_globals, **frame.f_locals}
        return next((path for name in re.findall(r"\w+", "".join(lines)) if (path := stub_path(names.get(name)))), "")

    def _starred(self, error: NameError) -> str:
        """What an undefined name may be of a missing package from which a file takes everything; empty if none does."""
        files = {step.filename for step in traceback.extract_tb(error.__traceback__) if self._is_within(step.filename)}
        for file in sorted(files | {_file(module) or "" for module in self.modules()}):
            for package in STARRED.findall("".join(linecache.getlines(file))):
                if package.partition(".")[0] in self._stubs.names:
                    return f"{package}.{error.name}"
        return ""

    def _left_undefined(self, error: ImportError) -> str:
        """What of a missing package decides whether the learner's module has a name; empty if it just lacks the name.

        Either everything is taken from that package, or the name stands there, and it is asked whether the package is.
        """
        found = re.match(r"cannot import name '(\w+)' from (partially initialized)?", str(error))
        if found is None or not error.path or not self._is_within(error.path):
            return ""
        name, text = found[1], "".join(linecache.getlines(error.path))
        starred = (one for one in STARRED.findall(text) if one.partition(".")[0] in self._stubs.names)
        if package := next(starred, ""):
            return f"{package}.{name}"
        if found[2] or not re.search(rf"\b{name}\b", text):
            return ""
        files = {file for module in self.modules() if (file := _file(module)) is not None} | {error.path}
        texts = "".join(line for file in files for line in linecache.getlines(file))
        missing = (one for one in sorted(self._stubs.asked - self._stubs.names) if not self._is_own(one))
        return next((one for one in missing if re.search(rf"\b{re.escape(one)}\b", texts)), "")

    def _of_another_release(self, error: BaseException) -> str:
        """Why a name that an installed package lacks is no fault: other releases have it; empty if it is misspelt."""
        place, name = missing_name(error)
        if isinstance(error, ModuleNotFoundError):
            place, _, name = (error.name or "").rpartition(".")
        module, top = sys.modules.get(place), place.partition(".")[0]
        if not isinstance(error, ImportError) or module is None or self._is_mine(module) or top == self._package:
            return ""
        if top in {"torch", "numpy", *sys.stdlib_module_names} or any(_is_misspelt(name, one) for one in dir(module)):
            return ""
        here = f"{top} {getattr(sys.modules[top], '__version__', '')}".strip()
        return f"{place} has no {name} in the release that is installed here ({here}): install the one that it is from"

    def _is_own(self, name: str) -> bool:
        """Whether the learner's own file is missing, and not a package."""
        return any(Path(self.root, name + suffix).exists() for suffix in ("", ".py")) or name in self.beside

    def _is_mine(self, module: Any) -> bool:
        file = _file(module)
        return file is not None and self._is_within(file)

    def _is_within(self, file: str) -> bool:
        # Where a package is installed, torch and numpy are its neighbours, and cannot be imported twice.
        own = os.path.join(self.root, self._package) if self._is_installed else self.root
        mine = [own, f"{own}.py", *self.beside.values()]
        return any(file == one or file.startswith(one.rstrip(os.sep) + os.sep) for one in mine if one)

    def _forget(self) -> None:
        mine = [name for name, module in list(sys.modules.items()) if self._is_mine(module) and name != "__main__"]
        for name in mine:  # only now: a folder without __init__.py asks the package around it where it is
            del sys.modules[name]


def _lacking(error: BaseException) -> str:
    """The package that is missing, also where an error that says so was raised in its place; empty if none is."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ModuleNotFoundError):
        cause = cause.__cause__ or cause.__context__
    return "" if cause is None else missing_part(cause.name or "")


def _is_misspelt(name: str, meant: str) -> bool:
    """Whether a letter of meant is left out, wrong, added or swapped with the next.

    Packages are named after others by another beginning (qtorch), or by something at the end (torchx, pathlib2).
    """
    same = next((place for place, letter in enumerate(meant) if name[place : place + 1] != letter), len(meant))
    rest, wanted = name[same:], meant[same:]
    if not same or rest == wanted:
        return False
    if not wanted:
        return rest == meant[-1]
    swapped = rest[1::-1] == wanted[:2] and rest[2:] == wanted[2:]
    return swapped or wanted[1:] in (rest, rest[1:]) or rest[1:] == wanted


def _stand_in(package: str, folder: Path) -> None:
    """An empty package, so that imports from it work without what its own file does."""
    module = types.ModuleType(package)
    module.__path__ = [str(folder)]
    module.__package__ = package
    module.__spec__ = importlib.machinery.ModuleSpec(package, None, is_package=True)
    sys.modules[package] = module


def _file(module: Any) -> str | None:
    """Its file, or its folder if it is a package without __init__.py."""
    try:  # sys.modules holds what it was given: no module at all, at times
        file, folders = (vars(module).get(name) for name in ("__file__", "__path__"))
    except TypeError:
        return None
    if is_namespace(module):
        with contextlib.suppress(KeyError):
            file = next(iter(folders or ()), None)
    return file if isinstance(file, str) else None


def _from_file(name: str, file: str, text: str | None, left_out: Mapping[str, str] = NOTHING) -> types.ModuleType:
    if "." not in name and (name in sys.modules or name in sys.stdlib_module_names):
        name = f"{name}_under_test"  # a file that is called random.py must not become everybody's random
    loader = importlib.machinery.SourceFileLoader(name, file)  # whatever the file's name ends in
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        if text is None:
            loader.exec_module(module)
        else:
            vars(module)[LEFT_OUT] = left_out
            exec(compile(text, file, "exec"), vars(module))
    except BaseException:
        sys.modules.pop(name, None)
        raise
    parent, _, last = name.rpartition(".")
    if parent in sys.modules:  # as import does: package.module is found through its package, too
        setattr(sys.modules[parent], last, module)
    return module
