import os

import pytest

from prenorm.errors import DataError
from prenorm.training.data.sources import find_sources


@pytest.fixture
def root(tmp_path):
    """A folder with a file, and another folder beside it with two."""
    for name in ("data/a.txt", "elsewhere/b.txt", "elsewhere/deep/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path / "data"


def names(*roots, **options):
    found = find_sources(roots, **options)
    assert not found.unreadable
    return [source.name for source in found.sources], [tuple(one) for one in found.left_out]


def test_links_to_folders_and_files_are_followed(root):
    (root / "linked").symlink_to("../elsewhere")
    (root / "one").symlink_to(root.parent / "elsewhere" / "b.txt")
    assert names(root) == (["a.txt", "linked/b.txt", "linked/deep/c.txt"], [("one", ALREADY)])
    (root / "linked").unlink()
    assert names(root) == (["a.txt", "one"], [])


ALREADY = "found already by another path"


def test_what_is_reached_twice_is_found_once_by_the_path_without_links(root):
    (root / "A").symlink_to("b")
    (root / "b").mkdir()
    (root / "b" / "d.txt").write_text("d")
    (root / "c.txt").symlink_to("b/d.txt")
    assert names(root) == (["a.txt", "b/d.txt"], [("A", ALREADY), ("c.txt", ALREADY)])
    (root / "deep").symlink_to("../elsewhere/deep")
    (root / "elsewhere").symlink_to("../elsewhere")
    found, left_out = names(root)
    assert found == ["a.txt", "b/d.txt", "deep/c.txt", "elsewhere/b.txt"]
    assert ("elsewhere/deep", ALREADY) in left_out


def test_a_path_that_is_named_twice_is_found_once(root):
    assert names(root, root) == (["a.txt"], [(str(root), ALREADY)])
    assert names(root / "a.txt", root) == (["a.txt"], [("a.txt", ALREADY)])


def test_links_that_lead_around_in_circles_end(root):
    (root / "self").symlink_to(".")
    (root / "up").symlink_to("..")
    (root / "b").mkdir()
    (root / "b" / "to_c").symlink_to("../c")
    (root / "c").mkdir()
    (root / "c" / "to_b").symlink_to("../b")
    (root.parent / "elsewhere" / "back").symlink_to(root)
    (root / "elsewhere").symlink_to("../elsewhere")
    found, left_out = names(root)
    assert found == ["a.txt", "elsewhere/b.txt", "elsewhere/deep/c.txt"]
    around = "a link to a folder around it"
    assert {("self", around), ("up", around), ("b/to_c", ALREADY), ("elsewhere/back", ALREADY)} < {*left_out}


def test_what_links_lead_to_does_not_depend_on_the_order_on_disk(root):
    for name in ("z", "y", "x"):
        (root / name).symlink_to("../elsewhere")
    assert names(root)[0] == ["a.txt", "x/b.txt", "x/deep/c.txt"]


def test_links_that_lead_nowhere_are_found_and_are_a_fault_of_whoever_reads_them(root):
    (root / "nowhere").symlink_to("nothing")
    (root / "circle").symlink_to("circle")
    assert names(root)[0] == ["a.txt", "circle", "nowhere"]


def test_what_is_left_out_is_said(root):
    (root / ".hidden").write_text("hidden")
    (root / ".git").mkdir()
    (root / "__pycache__").mkdir()
    (root / "run").mkdir()
    for name in ("config.toml", "metrics.jsonl"):
        (root / "run" / name).write_text("")
    (root / "own").mkdir()
    (root / "own" / "vocabulary").write_text("")
    found, left_out = names(root, leave_out=root / "own")
    assert found == ["a.txt"]
    assert sorted(left_out) == [
        (".git", "hidden"),
        (".hidden", "hidden"),
        ("__pycache__", "__pycache__"),
        ("own", "this run's own"),
        ("run", "the folder of a run"),
    ]


def test_a_folder_that_cannot_be_read_is_said_and_an_error_when_it_was_named(root, monkeypatch):
    (root / "closed").mkdir()
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    found = find_sources([root])
    assert [source.name for source in found.sources] == ["a.txt"]
    assert [tuple(one) for one in found.unreadable] == [("closed", "unreadable (Permission denied)")]
    with pytest.raises(DataError, match=r"the folder .*closed cannot be read: it is unreadable \(Permission denied\)"):
        find_sources([root / "closed"])


def test_odd_names_are_found(root):
    odd = [b"new\nline", b"-dash", b"\xff\xfe", "世".encode(), b" "]
    for name in odd:
        with open(os.path.join(os.fsencode(root), name), "w") as file:
            file.write("x")
    assert {os.fsencode(name) for name in names(root)[0]} == {b"a.txt", *odd}
