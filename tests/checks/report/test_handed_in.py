import json
import stat
import zipfile
from pathlib import Path

import pytest

from prenorm.checks.report import unpack
from prenorm.checks.report.handed_in import find_submissions

LAYERS = "class Block: ...\n"


@pytest.fixture
def folder(tmp_path):
    handed_in = tmp_path / "handed in"
    handed_in.mkdir()
    return handed_in


def found(folder, tmp_path, pattern="layers.py:Block"):
    return find_submissions(folder, pattern, unpacked=tmp_path / "unpacked")


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_zips_files_notebooks_and_packages_are_found(folder, tmp_path):
    zipped(folder / "ann (late).zip", {"task/layers.py": LAYERS, "__MACOSX/layers.py": "", "task/model.pt": "x"})
    (folder / "bob").mkdir()
    (folder / "bob" / "my layers.py").write_text(LAYERS)
    notebook = {"cells": [{"cell_type": "code", "source": ["class Block: ...\n"]}]}
    (folder / "cy.ipynb").write_text(json.dumps(notebook))
    (folder / "dee").mkdir()
    (folder / "dee" / "homework 3.ipynb").write_text(json.dumps(notebook))
    ann, bob, cy, dee = found(folder, tmp_path)
    assert ann.subject == f"{tmp_path}/unpacked/ann (late).zip/task/layers.py:Block"
    assert bob.subject == f"{folder}/bob/my layers.py:Block"  # the one file that defines it
    assert (cy.subject, cy.within) == (f"{folder}/cy.ipynb:Block", f"{folder}/cy.ipynb")
    assert dee.subject == f"{folder}/dee/homework 3.ipynb:Block"


@pytest.mark.parametrize("name", ["../evil.py", "/evil.py", "a/../../evil.py", "C:\\evil.py", "..\\evil.py"])
def test_a_path_that_leads_out_of_its_zip_is_refused(name, folder, tmp_path):
    with zipfile.ZipFile(folder / "eve.zip", "w") as archive:
        archive.writestr("layers.py", LAYERS)
        archive.writestr(name, "evil")
    (eve,) = found(folder, tmp_path)
    assert "leads out of it" in eve.problem
    assert not list(tmp_path.rglob("*evil*"))


def test_links_and_bombs_are_refused(folder, tmp_path):
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("layers.py", b"#" * (40 << 20))
    with zipfile.ZipFile(folder / "link.zip", "w") as archive:
        link = zipfile.ZipInfo("layers.py")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    (folder / "none.zip").write_text("no zip")
    bomb, link, none = found(folder, tmp_path)
    assert "layers.py unpacks to more than 200 times its size" in bomb.problem
    assert "is a link" in link.problem
    assert "the zip is refused" in none.problem


def test_a_damaged_zip_stops_no_other(folder, tmp_path):
    damaged = zipped(folder / "damaged.zip", {"layers.py": "".join(map(str, range(9000)))})
    data = bytearray(damaged.read_bytes())
    data[60:90] = bytes(255 - one for one in data[60:90])
    damaged.write_bytes(data)
    (folder / "ann.py").write_text(LAYERS)
    ann, bad = found(folder, tmp_path)
    assert ann.subject is not None
    assert "the zip is refused: " in bad.problem


def test_zips_whose_names_differ_in_their_ends_are_kept_apart(folder, tmp_path):
    for end in ("zip", "ZIP"):
        zipped(folder / f"ann.{end}", {f"{end}/layers.py": LAYERS})
    assert [one.problem for one in found(folder, tmp_path)] == ["", ""]


def test_a_zip_in_a_folder_is_unpacked_and_a_zip_in_a_zip_is_told(folder, tmp_path):
    (folder / "ann").mkdir()
    zipped(folder / "ann" / "task 1.zip", {"code/layers.py": LAYERS})
    zipped(folder / "bob.zip", {"task.zip": "PK", "notes.txt": ""})
    ann, bob = found(folder, tmp_path)
    assert (ann.name, ann.subject) == ("ann", f"{tmp_path}/unpacked/ann/code/layers.py:Block")
    assert bob.problem == "it has no layers.py, and no class Block: it has notes.txt"
    assert bob.note == "not unpacked: task.zip"


def test_what_is_not_read_has_a_row_that_says_so(folder, tmp_path):
    (folder / "ann.tar.gz").touch()
    (folder / "bob").mkdir()
    (folder / "bob" / "layers.py").write_text(LAYERS)
    (folder / "eve").symlink_to(folder / "bob")
    (folder / "grades.csv").touch()
    ann, bob, eve = found(folder, tmp_path)
    assert ann.problem == "it is a .gz archive; only folders, files and zips are read"
    assert bob.subject is not None
    assert eve.problem == f"it is a link, to {folder}/bob"


def test_a_link_out_of_a_submission_is_no_file_of_it(folder, tmp_path):
    (tmp_path / "secret.py").write_text(LAYERS)
    (folder / "ann").mkdir()
    (folder / "ann" / "layers.py").symlink_to(tmp_path / "secret.py")
    assert found(folder, tmp_path)[0].problem == "it has no layers.py, and no class Block: it has layers.py (a link)"


def test_everybody_has_a_row_but_for_lists_and_hidden_names(folder, tmp_path):
    for name in ("ann.pdf", "bob.docx", "cy.txt", "dee.html", "eve", "grades.csv", "readme.md", ".hidden.py"):
        (folder / name).touch()
    (folder / "_finn.py").write_text(LAYERS)
    (folder / "__MACOSX").mkdir()
    rows = found(folder, tmp_path)
    assert [one.name for one in rows] == ["_finn.py", "ann.pdf", "bob.docx", "cy.txt", "dee.html", "eve"]
    assert [one.subject is None for one in rows] == [False, True, True, True, True, True]
    assert rows[-1].problem.startswith("it is a file without an ending; only")


def test_a_folder_without_the_class_says_what_it_has(folder, tmp_path):
    (folder / "ann").mkdir()
    (folder / "ann" / "hw1.pdf").touch()
    (folder / "ann" / "model.rar").touch()
    (folder / "bob").mkdir()
    for name in ("model_v1.py", "model_v2.py"):
        (folder / "bob" / name).write_text(LAYERS)
    ann, bob = found(folder, tmp_path)
    assert ann.problem.endswith("and no class Block: it has hw1.pdf, model.rar; model.rar is not unpacked")
    assert bob.problem == "it has class Block more than once: model_v1.py, model_v2.py"


def written(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(LAYERS)


@pytest.mark.parametrize(
    ("files", "judged", "others"),
    [
        (("hw/layers.py", "hw/backup/layers.py"), "hw/layers.py", "hw/backup/layers.py"),
        (("old/layers.py", "nn/parts/layers.py"), "nn/parts/layers.py", "old/layers.py"),
        (("block.py", "tests/layers.py", "test_block.py"), "block.py", "tests/layers.py"),
        (("src/nn/block.py", "build/lib/nn/block.py"), "src/nn/block.py", "build/lib/nn/block.py"),
        (("layers.py", "a/layers.py", "b/layers.py"), "layers.py", "a/layers.py, b/layers.py"),
    ],
)
def test_of_several_files_that_fit_the_main_one_is_judged_and_the_row_says_so(files, judged, others, folder, tmp_path):
    written(folder / "ann", *files)
    (ann,) = found(folder, tmp_path)
    assert ann.subject == f"{folder}/ann/{judged}:Block"
    assert ann.note == f"judged: {judged}, not {others}"


@pytest.mark.parametrize("files", [("a/layers.py", "b/layers.py"), ("block_v1.py", "block_v2.py")])
def test_where_none_is_the_main_one_nothing_is_guessed(files, folder, tmp_path):
    written(folder / "ann", *files)
    assert "more than once" in found(folder, tmp_path)[0].problem


def test_a_pattern_that_names_tests_or_a_backup_means_it(folder, tmp_path):
    written(folder / "ann", "layers.py", "old/layers.py", "test_layers.py")
    assert found(folder, tmp_path, "old/layers.py:Block")[0].subject == f"{folder}/ann/old/layers.py:Block"
    assert found(folder, tmp_path, "test_layers.py:Block")[0].subject == f"{folder}/ann/test_layers.py:Block"


def test_of_several_files_with_the_name_one_that_has_the_class_is_judged(folder, tmp_path):
    written(folder / "ann", "nn/layers.py")
    (folder / "ann" / "layers.py").write_text("import torch\n")
    assert found(folder, tmp_path)[0].subject == f"{folder}/ann/nn/layers.py:Block"


def test_names_are_found_in_letters_of_either_case(folder, tmp_path):
    written(folder / "ann", "hw/LAYERS.PY")
    written(folder / "bob", "layers.py", "hw/Layers.py")
    zipped(folder / "cy.zip", {"Layers.py": LAYERS})
    written(folder, "DEE.PY")
    assert [Path(one.subject).name for one in found(folder, tmp_path)] == [
        "DEE.PY:Block",
        "LAYERS.PY:Block",
        "layers.py:Block",
        "Layers.py:Block",
    ]


def test_of_a_zip_only_what_is_needed_is_looked_at(folder, tmp_path):
    files = {f".venv/lib/{number}.py": "" for number in range(6_000)}
    zipped(
        folder / "ann.zip",
        {"model.pt": "0" * (4 << 20), "corpus.txt": "the " * (6 << 20), "layers.py": LAYERS, **files},
    )
    (ann,) = found(folder, tmp_path)
    assert ann.subject is not None
    assert [one.name for one in (tmp_path / "unpacked" / "ann.zip").rglob("*")] == ["layers.py"]
    assert ann.note == "not unpacked: model.pt, corpus.txt"


def test_data_in_a_zip_is_unpacked_after_the_sources_as_far_as_the_limits_allow(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "MOST_FILES", 4)
    data = {f"data/{number}.npy": "\x93NUMPY" for number in range(5)}
    zipped(folder / "ann.zip", {**data, "layers.py": LAYERS, "parts.py": ""})
    (ann,) = found(folder, tmp_path)
    there = sorted(one.name for one in (tmp_path / "unpacked" / "ann.zip").rglob("*.*"))
    assert there == ["0.npy", "1.npy", "layers.py", "parts.py"]
    assert ann.note == "not unpacked: data/2.npy, data/3.npy, data/4.npy"


def test_a_damaged_picture_in_a_zip_costs_nobody_the_block(folder, tmp_path):
    path = zipped(folder / "ann.zip", {"layers.py": LAYERS, "plot.png": "".join(map(str, range(9000)))})
    data = bytearray(path.read_bytes())
    start = data.index(b"plot.png") + 40
    data[start : start + 30] = bytes(255 - one for one in data[start : start + 30])
    path.write_bytes(data)
    (ann,) = found(folder, tmp_path)
    assert (ann.subject is not None, ann.note) == (True, "not unpacked: plot.png")


def test_a_zip_with_a_password_says_so(folder, tmp_path):
    path = zipped(folder / "ann.zip", {"layers.py": LAYERS})
    data = bytearray(path.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(header) + flags] |= 1
    path.write_bytes(data)
    (ann,) = found(folder, tmp_path)
    assert ann.problem == "the zip is refused: it has a password"


def test_loose_files_with_the_key_of_one_student_are_one_submission(folder, tmp_path):
    key = "leekim_LATE_8840"
    for number, name in enumerate(["layers-1.py", "attention-1.py", "vocab.json", "report.pdf"], 9981):
        (folder / f"{key}_{number}_{name}").write_text(LAYERS if name == "layers-1.py" else "")
    (folder / "leekit_8841_9981_layers.py").write_text(LAYERS)
    (folder / "grades.csv").touch()
    kim, kit = found(folder, tmp_path)
    assert kim.name == key
    assert kim.subject == f"{kim.within}/layers.py:Block"
    assert sorted(one.name for one in Path(kim.within).iterdir()) == [
        "attention.py",
        "layers.py",
        "report.pdf",
        "vocab.json",
    ]
    assert kit.subject == f"{folder}/leekit_8841_9981_layers.py:Block"


def test_a_zip_among_the_loose_files_of_a_student_is_unpacked(folder, tmp_path):
    zipped(folder / "leekim_8840_9981_hw1.zip", {"hw/layers.py": LAYERS})
    (folder / "leekim_8840_9980_report.pdf").touch()
    (kim,) = found(folder, tmp_path)
    assert (kim.name, kim.problem) == ("leekim_8840", "")
    assert kim.subject.endswith("/hw/layers.py:Block")


def test_two_versions_of_one_file_keep_the_names_that_tell_them_apart(folder, tmp_path):
    for name in ("layers.py", "layers-1.py"):
        (folder / f"leekim_8840_9980_{name}").write_text(LAYERS)
    assert found(folder, tmp_path)[0].subject.endswith("/leekim_8840/layers.py:Block")
