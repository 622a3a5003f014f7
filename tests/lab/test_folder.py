"""The folder of an experiment: what is kept, what goes on, and what is refused."""

import json
import subprocess
import sys

import pytest

from prenorm.errors import CheckpointError, ConfigError
from prenorm.lab.folder import open_folder

from .cells import Square


def test_what_was_measured_is_there_when_the_folder_is_opened_again(tmp_path):
    with open_folder(tmp_path / "new" / "out", "test") as cells:
        assert cells.get(Square(number=3)) is None
        cells.add(Square(number=3), {"square": 9.1, "list": [1, None]})
    with open_folder(tmp_path / "new" / "out", "test") as cells:
        assert cells.get(Square(number=3)) == {"square": 9.1, "list": [1, None]}
        assert cells.get(Square(number=4)) is None
        assert cells.get(Square(number=3, cost=2.0)) is None  # a cell is all of its fields


def test_what_a_killed_writer_left_of_a_line_is_dropped_and_the_next_cell_is_whole(tmp_path):
    with open_folder(tmp_path, "test") as cells:
        cells.add(Square(number=1), {"square": 1})
        cells.add(Square(number=2), {"square": 4})
    whole = (tmp_path / "cells.jsonl").read_bytes()
    (tmp_path / "cells.jsonl").write_bytes(whole[:-9])
    with open_folder(tmp_path, "test") as cells:
        assert (cells.get(Square(number=1)), cells.get(Square(number=2))) == ({"square": 1}, None)
        cells.add(Square(number=3), {"square": 9})
    with open_folder(tmp_path, "test") as cells:
        assert cells.get(Square(number=3)) == {"square": 9}


@pytest.mark.parametrize("line", [b"nonsense", b"[1]", b'{"cell": {}}', b'{"cell": 1, "result": {}}', b'{"cell": NaN}'])
def test_a_line_that_is_no_cell_is_named(tmp_path, line):
    with open_folder(tmp_path, "test") as cells:
        cells.add(Square(number=1), {"square": 1})
    with (tmp_path / "cells.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(CheckpointError, match=r"cells\.jsonl, line 2"), open_folder(tmp_path, "test"):
        pass


def test_cells_of_other_conditions_are_refused_and_left_as_they_are(tmp_path):
    with open_folder(tmp_path, "test", text="a") as cells:
        cells.add(Square(number=1), {"square": 1})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for experiment, text, said in (
        ("other", "a", "experiment is 'test' there"),
        ("test", "b", "text is 'a' there and 'b'"),
    ):
        with pytest.raises(ConfigError, match=said), open_folder(tmp_path, experiment, text=text):
            pass
    conditions = json.loads((tmp_path / "lab.json").read_text())
    (tmp_path / "lab.json").write_text(json.dumps(conditions | {"torch": "1.0"}))
    other_torch = r"torch is '1\.0' there and .* choose another --out"
    with pytest.raises(ConfigError, match=other_torch), open_folder(tmp_path, "test", text="a"):
        pass
    assert (tmp_path / "cells.jsonl").read_bytes() == before["cells.jsonl"]


def test_a_folder_of_other_things_and_a_file_are_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for path, said in ((tmp_path, "holds other things"), (tmp_path / "thesis.txt", "is a file")):
        with pytest.raises(ConfigError, match=said), open_folder(path, "test"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no locks there")
def test_a_folder_that_another_process_measures_in_is_refused(tmp_path):
    code = f"import fcntl, os; fcntl.flock(os.open({str(tmp_path)!r}, os.O_RDONLY), fcntl.LOCK_EX); print(); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ConfigError, match="another process is measuring"), open_folder(tmp_path, "test"):
            pass
        other.communicate(b"\n")
