"""Importing a learner's code again, once it is known which packages are missing."""

import sys
from pathlib import Path

import pytest

from prenorm.checks.subject.child.importing import Importer


@pytest.mark.parametrize("installed", [True, False])
def test_neighbours_of_an_installed_package_are_imported_once(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As numpy, they may refuse a second time; files of a project may depend on what is missing."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)] if installed else [*sys.path])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
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
