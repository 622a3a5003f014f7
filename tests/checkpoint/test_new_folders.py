import pytest

from prenorm.checkpoint.new_folders import begin_folder, name_folder, remove_folder, remove_leftovers, write_files
from prenorm.errors import CheckpointError


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_has_its_name_once_all_is_written_and_loses_it_at_once(tmp_path):
    folder = tmp_path / "a" / "b"
    passing, other = begin_folder(folder), begin_folder(folder)
    write_files(passing, folder, {"file": b"first"})
    write_files(passing, folder, {"other": lambda file: print(file.write(b"x"), end="")})
    write_files(other, folder, {"file": b"second"})
    assert not folder.exists()
    name_folder(passing, folder)
    assert names_in(folder) == ["file", "other"]
    with pytest.raises(CheckpointError, match=r"a/b could not be written: Directory not empty"):
        name_folder(other, folder)
    assert (folder / "file").read_bytes() == b"first"
    remove_leftovers(folder.parent, "c")
    assert len(names_in(folder.parent)) == 2
    remove_leftovers(folder.parent, "b*")
    assert names_in(folder.parent) == ["b"]
    remove_folder(folder)
    assert names_in(folder.parent) == []


def test_a_file_that_is_there_already_is_not_written_over(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(
        CheckpointError, match=r"wanted could not be written: File exists; .* was there before is whole"
    ):
        write_files(tmp_path, tmp_path / "wanted", {"file": b"yours"})
    assert (tmp_path / "file").read_bytes() == b"mine"
