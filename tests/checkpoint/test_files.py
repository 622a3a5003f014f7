import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from prenorm.checkpoint.files import (
    MAX_JSON_BYTES,
    file_in,
    parse_json,
    read_json,
    write_atomically,
    write_together,
)
from prenorm.errors import CheckpointError


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def old(tmp_path):
    """A file that a failed write must not touch."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    return path


def test_a_file_is_written_from_bytes_or_by_a_function_and_its_folders_are_made(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "bytes", b"new")
    write_atomically(tmp_path / "a" / "function", lambda file: print(file.write(b"new"), end=""))
    assert (tmp_path / "a" / "b" / "bytes").read_bytes() == (tmp_path / "a" / "function").read_bytes() == b"new"
    assert names_in(tmp_path / "a") == ["b", "function"]


def test_a_file_has_the_permissions_that_open_would_have_given_it(tmp_path):
    write_atomically(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt])
def test_a_writer_that_raises_leaves_the_old_file_and_nothing_else(old, raised):
    def write(file):
        file.write(b"half")
        raise raised

    with pytest.raises(raised):
        write_atomically(old, write)
    assert names_in(old.parent) == ["file"]
    assert old.read_bytes() == b"old"


def test_nothing_is_replaced_before_everything_is_on_the_disk(old, monkeypatch):
    synced = []

    def fsync(descriptor):
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError, match=r"the disk is full \(\d+ MB are free\); make room, or choose"):
        write_together({old: b"new", old.with_name("second"): b"new"})
    assert names_in(old.parent) == ["file"]
    assert old.read_bytes() == b"old"


def test_where_some_names_are_taken_already_an_error_says_which(old, monkeypatch):
    replace = os.replace

    def failing(source, target):
        if target.name == "second":
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(CheckpointError, match=r"Input/output error; .* file is new already; save again\."):
        write_together({old: b"new", old.with_name("second"): b"new"})
    assert names_in(old.parent) == ["file"]


def test_files_reach_the_disk_before_their_names_do_and_the_folder_last(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append(stat.S_ISDIR(os.fstat(file).st_mode)) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda source, target: calls.append(target.name) or replace(source, target))
    write_together({tmp_path / "first": b"1", tmp_path / "second": b"2"})
    assert calls == [False, False, "first", "second", True]
    calls.clear()
    write_together({tmp_path / "first": b"1", tmp_path / "second": b"2"}, first=tmp_path / "second")
    assert calls == [False, False, "second", True, "first", True]


def test_a_real_write_that_does_not_fit_leaves_the_old_file(old):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            CheckpointError, match=r"file could not be written: File too large; .* was there before is whole"
        ):
            write_atomically(old, b"x" * 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names_in(old.parent) == ["file"]
    assert old.read_bytes() == b"old"
    write_atomically(old, b"new")
    assert old.read_bytes() == b"new"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_not_be_written_is_said_to_be_one(old, monkeypatch, number):
    def fsync(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError, match=r"this user may not write to .*; choose another folder"):
        write_atomically(old, b"new")
    assert old.read_bytes() == b"old"


def test_a_file_where_a_folder_should_be_is_a_clear_error(old):
    with pytest.raises(CheckpointError, match=r"could not be written: (Not a directory|File exists)"):
        write_atomically(old / "below", b"new")


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_cleans_up(old):
    killed = """
import os, signal, sys
from pathlib import Path
from prenorm.checkpoint.files import write_atomically
def write(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), write)
"""
    process = subprocess.run([sys.executable, "-c", killed, str(old)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert old.read_bytes() == b"old"
    assert len(names_in(old.parent)) == 2
    write_atomically(old, b"new")
    assert names_in(old.parent) == ["file"]


def test_the_file_of_a_writer_that_lives_is_not_cleaned_up(old):
    write_atomically(old, lambda _: write_atomically(old, b"inner"))
    assert names_in(old.parent) == ["file"]


@pytest.mark.parametrize("name", ["", ".", "..", "../secret", "/etc/passwd", "a/b", "a\\b", "a\0b"])
def test_only_plain_names_are_looked_up_in_a_folder(tmp_path, name):
    with pytest.raises(CheckpointError, match="must be a plain file name inside the folder"):
        file_in(tmp_path, name)


def test_links_lead_nowhere_but_into_the_download_cache(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1234"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "5678").write_text("{}")
    (tmp_path / "secret").write_text("{}")
    (snapshot / "config.json").symlink_to(Path("../../blobs/5678"))
    (snapshot / "outside").symlink_to(tmp_path / "secret")
    (snapshot / "templates").mkdir()
    (snapshot / "templates" / "one.json").symlink_to(Path("../../../blobs/5678"))
    assert read_json(file_in(snapshot, "config.json")) == {}
    assert read_json(file_in(snapshot / "templates", "one.json")) == {}
    with pytest.raises(CheckpointError, match=r"leads out of its folder, to .*secret; copy that file into the folder"):
        file_in(snapshot, "outside")


def test_a_pipe_or_a_missing_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "missing"):
        with pytest.raises(CheckpointError, match=f"{name} is missing, or is not a regular file"):
            file_in(tmp_path, name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "a may be there once only"),
        (b'{"a": {"b": 1, "b": 1}}', "b may be there once only"),
        (b'{"a": NaN}', "the number of a must be finite, not NaN"),
        (b'{"a": {"b": [1, -Infinity]}}', "the number of b must be finite, not -Infinity"),
        (b'{"a": 1', "Expecting"),
        (b'{"a": "\xff"}', "utf-8"),
        (b'{"a": ' + b"[" * 100_000, "recursion"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "digit"),
        (b"[1]", "hold a JSON object, not \\[1\\]"),
        (b"", "Expecting"),
    ],
)
def test_doubtful_json_is_refused_with_its_name(text, message):
    with pytest.raises(CheckpointError, match=f"the file must .*{message}"):
        parse_json(text, "the file")


def test_a_json_file_that_is_too_long_is_not_parsed(tmp_path):
    (tmp_path / "long.json").write_bytes(b" " * (MAX_JSON_BYTES + 1))
    with pytest.raises(CheckpointError, match=r"long.json may have at most 10,000,000 bytes"):
        read_json(tmp_path / "long.json")
