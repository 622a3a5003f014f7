"""Hostile folders: each is refused by an error of ours, within a second and 300 MB, and nothing else is opened."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .hostile.folders import SECRET, good, hostile, shard_files, write

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = hostile()
SAMPLE = [*FOLDERS][::11]


def written(root: Path, names: list[str]) -> list[Path]:
    """The good folder, and the hostile ones of these names."""
    (root / SECRET).write_bytes(good()["model.safetensors"])
    write(good(), root / "good")
    folders = [root / f"{number:03}" for number in range(len(names))]
    for name, folder in zip(names, folders, strict=True):
        write(FOLDERS[name], folder)
    return [root / "good", *folders]


def opened(folders: list[Path], *, under: tuple[str, ...] = ()) -> list[dict]:
    command = [*under, sys.executable, "-m", "tests.checkpoint.hostile.opening", *map(str, folders)]
    # A panic in tokenizers' Rust would open the debug symbols of every library, for a trace that nobody reads.
    environment = {**os.environ, "RUST_BACKTRACE": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ready, *lines = map(json.loads, done.stdout.splitlines())
    assert ready == {"ready": True}
    return lines


def faults(names: list[str], results: list[dict]) -> dict[str, dict]:
    """Those that were not refused as they must be."""
    wrong = {}
    for name, result in zip(names, results, strict=True):
        quick = result["ours"] and result["seconds"] < 1 and result["kilobytes"] < 300_000 and not result["pickled"]
        if not quick or len(result["text"]) > 10_000 or not result["text"].isprintable():
            wrong[name] = {**result, "text": result.get("text", "")[:300]}
    return wrong


def test_there_are_more_than_three_hundred():
    assert len(FOLDERS) >= 300


def test_some_hostile_folders_are_each_refused_in_a_second_and_300_megabytes(tmp_path):
    folders = written(tmp_path, SAMPLE)
    write(shard_files(), tmp_path / "sharded")
    sharded, *results = opened([folders[0], tmp_path / "sharded", *folders[1:]])
    assert sharded["error"] is None  # and so is that of the good folder, or nothing would be opened
    assert faults(SAMPLE, results) == {}


@pytest.mark.long
def test_every_hostile_folder_is_refused_in_a_second_and_300_megabytes(tmp_path):
    names = [*FOLDERS]
    assert faults(names, opened(written(tmp_path, names))) == {}
    assert not list(ROOT.glob("opened"))  # what the pickles would have made


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    "names",
    [
        pytest.param([name for name in FOLDERS if "link" in name or "shard called" in name][::4], id="some"),
        pytest.param([*FOLDERS], id="all", marks=pytest.mark.long),
    ],
)
def test_no_file_outside_the_folder_is_opened(tmp_path, names):
    """The system calls themselves are read: an audit hook sees nothing of what libraries open."""
    folders, trace = written(tmp_path, names), tmp_path / "trace"
    under = ("strace", "-f", "-qq", "-e", "trace=open,openat,openat2,creat,execve,connect,write", "-s", "200")
    opened(folders, under=(*under, "-o", str(trace)))
    lines = trace.read_text(errors="replace").splitlines()
    begin = next(number for number, line in enumerate(lines) if r"{\"ready\": true}" in line)
    calls = [line for line in lines[begin:] if not re.search(r" write\(", line)]
    assert len(calls) > len(names)
    machine = r'"/sys/fs/cgroup/memory\.(max|stat)"|"/sys/devices/system/cpu/online"'  # its memory and processors
    homes = "|".join(re.escape(str(folder)) for folder in folders)
    allowed = re.compile(rf'"({homes})(/[^"]*)?"|"/proc/(self/status|meminfo)"|{machine}')
    foreign = [call for call in calls if re.search(r"(open|openat|openat2|creat|execve|connect)\(", call)]
    outside = [call for call in foreign if not allowed.search(call)]
    assert outside == []
