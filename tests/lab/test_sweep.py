"""Sweeps: every cell once, in processes of their own; stopped ones keep what they have."""

import os
import signal
import threading

import pytest

from prenorm.lab.folder import open_folder
from prenorm.lab.progress import Progress
from prenorm.lab.sweep import Plan, Stopped, WorkerDied, sweep

from .cells import Endless, Failing, Square


@pytest.fixture
def cells(tmp_path):
    with open_folder(tmp_path, "test") as opened:
        yield opened


def progress():
    return Progress("test", quiet=True)


def test_each_cell_is_measured_once_in_another_process_and_later_ones_when_they_are_known(cells):
    first = [Square(number=number) for number in (1, 2, 2)]
    later = Square(number=3)
    cells.add(first[0], {"square": "kept"})

    def plan():
        known = cells.get(first[1])
        return Plan([*first, later]) if known else Plan(first, later.cost)

    sweep(plan, cells, workers=2, progress=progress())
    assert cells.get(first[0]) == {"square": "kept"}
    found = [cells.get(one) for one in (first[1], later)]
    assert [one["square"] for one in found] == [4, 9]
    assert os.getpid() not in {one["process"] for one in found}
    assert len(cells.path.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("dies", WorkerDied, r"Failing\(kind='dies'.*ended with code 7"),
        pytest.param("raises", RuntimeError, r"(?s)Failing\(kind='raises'.*no such thing", marks=pytest.mark.long),
    ],
)
def test_what_goes_wrong_in_a_cell_is_told_with_it_and_what_was_measured_before_is_kept(cells, kind, error, said):
    good = Square(number=5, cost=9.0)
    plan = Plan([Failing(kind=kind), good])
    with pytest.raises(error, match=said):
        sweep(lambda: plan, cells, workers=1, progress=progress())
    assert cells.get(good)["square"] == 25  # the dearest comes first


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_signal_ends_a_sweep_at_once_and_what_was_measured_is_kept(cells, number):
    done, endless = Square(number=6), Endless()

    def plan():
        if cells.get(done):
            threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        return Plan([done, endless])

    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=r"1 cells of this command.*same command goes on") as stopped:
        sweep(plan, cells, workers=1, progress=progress())
    assert stopped.value.signal_number == number
    assert signal.getsignal(number) == before
    assert b'"square": 36' in cells.path.read_bytes()


def test_time_left_is_that_of_the_cost_left(capsys, monkeypatch):
    times = iter([0.0, 100.0])
    monkeypatch.setattr("prenorm.lab.progress.time.monotonic", lambda: next(times))
    shown = Progress("depth")
    shown.update(0, 4, 400.0)
    shown.update(1, 4, 300.0)
    assert capsys.readouterr().err.splitlines() == ["depth: 0 of 4 cells", "depth: 1 of 4 cells, 5:00 left"]
