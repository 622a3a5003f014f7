"""Importing a learner's code again, once it is known which packages are missing."""

import builtins
import sys
import traceback
from pathlib import Path

import pytest

from prenorm.checks.subject.child.importing import Importer


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])


@pytest.mark.parametrize("installed", [True, False])
def test_neighbours_of_an_installed_package_are_imported_once(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As numpy, they may refuse a second time; files of a project may depend on what is missing."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)] if installed else [*sys.path])
    (tmp_path / "neighbour_of_ours.py").write_text("import sys\nsys.loads_of_ours = [*sys.loads_of_ours, __name__]\n")
    (tmp_path / "package_of_ours.py").write_text("import neighbour_of_ours, lacking_in_this_lab\nname = __name__\n")
    monkeypatch.setattr(sys, "loads_of_ours", [], raising=False)
    importer = Importer(str(tmp_path), {}, {})
    try:
        module = importer.module("package_of_ours", None if installed else f"{tmp_path}/package_of_ours.py")
        assert (module.name, [*importer.notes]) == ("package_of_ours", ["lacking_in_this_lab"])
        assert len(vars(sys)["loads_of_ours"]) == (1 if installed else 2)
    finally:
        for name in ("package_of_ours", "neighbour_of_ours", "lacking_in_this_lab"):
            sys.modules.pop(name, None)


def test_what_is_missing_of_a_namespace_that_packages_share_is_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site" / "shared_by_labs" / "here").mkdir(parents=True)
    (tmp_path / "site" / "shared_by_labs" / "here" / "__init__.py").touch()
    (tmp_path / "own").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    file = tmp_path / "own" / "uses_shared.py"
    file.write_text("import shared_by_labs.here\nfrom shared_by_labs.there import drive\ndrive.mount('/content')\n")
    importer = Importer(str(tmp_path / "own"), {}, {})
    try:
        module = importer.module("uses_shared", str(file))
        assert importer.notes == {"shared_by_labs.there": "not installed here: pip install shared_by_labs-there"}
        with pytest.raises(ModuleNotFoundError, match=r"shared_by_labs\.there is not installed here"):
            module.drive.mount()
        file.write_text("from shared_by_labs.here import no_such\n")
        with pytest.raises(ImportError, match="no_such"):
            Importer(str(tmp_path / "own"), {}, {}).module("uses_shared", str(file))
    finally:
        for name in [one for one in sys.modules if one.partition(".")[0] in ("uses_shared", "shared_by_labs")]:
            del sys.modules[name]


def test_a_notebook_outside_of_one_has_an_ipython_that_does_nothing(tmp_path: Path) -> None:
    file = tmp_path / "exported.py"
    file.write_text("get_ipython().run_line_magic('matplotlib', 'inline')\nfiles = get_ipython().getoutput('ls')\n")
    importer = Importer(str(tmp_path), {}, {})
    try:
        module = importer.module("exported", str(file))
        assert [*importer.notes] == ["get_ipython"]
        assert not hasattr(builtins, "get_ipython")
        with pytest.raises(ModuleNotFoundError, match="IPython"):
            len(module.files.names)
    finally:
        sys.modules.pop("exported", None)


def test_an_error_shows_the_line_of_the_text_that_ran(tmp_path: Path) -> None:
    """And not one of the file, which for a notebook is JSON."""
    file = tmp_path / "work.ipynb"
    file.write_text('{"cells":\n[]}\n')
    with pytest.raises(ValueError, match="no") as raised:
        Importer(str(tmp_path), {}, {}, {str(file): "import sys\nraise ValueError('no')\n"}).module("work", str(file))
    assert traceback.extract_tb(raised.value.__traceback__)[-1].line == "raise ValueError('no')"
