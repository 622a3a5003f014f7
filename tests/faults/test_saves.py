"""See saves.py: the trials run in a process of their own, which is started with the shim."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .shim import build, compiler

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    compiler() is None, reason="the shim between a process and the system needs a C++ compiler"
)


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """The path of the library."""
    return build(tmp_path_factory.mktemp("shim"))


def trials(shim, **counts):
    """How the trials ended, by kind."""
    environment = {
        **os.environ,
        "LD_PRELOAD": str(shim),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    }
    words = [f"{kind}={count}" for kind, count in counts.items()]
    command = [sys.executable, "-m", "tests.faults.saves", *words]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_kills_power_cuts_and_faults_of_the_disk_leave_what_was_saved_or_a_refusal(shim):
    ended = trials(shim, kills=50, cuts=100, faults=30)
    assert all(ended[kind].keys() >= {"old", "new"} for kind in ("kills", "cuts"))
    assert ended["faults"].keys() >= {"no error", "an error, old"}


@pytest.mark.slow
def test_a_thousand_kills_five_thousand_power_cuts_and_a_thousand_faults_do(shim):
    ended = trials(shim, kills=1000, cuts=5000, faults=1000)
    assert ended["kills"].keys() == ended["cuts"].keys() == {"old", "new", "refused"}
    assert ended["faults"].keys() >= {"no error", "an error, old", "an error, new", "an error, refused"}
    assert sum(ended["kills"].values()) == 1000
    assert sum(ended["cuts"].values()) >= 5000
    assert sum(ended["faults"].values()) == 1000
