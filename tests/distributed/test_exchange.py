"""Work that all processes do together: each learns what the others got, and a failure of one is one of all."""

import os
import pickle
import signal
import sys

import pytest
import torch.distributed as dist

from prenorm.distributed.exchange import exchange
from prenorm.errors import CheckpointError, ConfigError

from .processes import Ranks, run


def tell_their_ranks():
    rank, unpickled = dist.get_rank(), []
    sys.addaudithook(lambda event, _: unpickled.append(event) if event == "pickle.find_class" else None)
    told = exchange(lambda: {"rank": rank, "text": "ä" * 1000 * rank}, dist.group.WORLD, "telling")
    assert [one["rank"] for one in told] == [0, 1, 2]
    assert [len(one["text"]) for one in told] == [0, 1000, 2000]
    return unpickled


def test_each_process_learns_what_the_others_got_and_nothing_is_pickled(tmp_path):
    assert run(tell_their_ranks, 3, tmp_path) == [[]] * 3


def test_alone_a_process_gets_its_own_answer_and_its_own_error():
    assert exchange(lambda: (1, 2), None, "telling") == [(1, 2)]
    with pytest.raises(ZeroDivisionError):
        exchange(lambda: 1 / 0, None, "dividing")


def fail_in_one():
    def work():
        if dist.get_rank() == 1:
            raise ConfigError("it is too large")

    with pytest.raises(CheckpointError) as failed:
        exchange(work, dist.group.WORLD, "measuring")
    assert exchange(dist.get_rank, dist.group.WORLD, "going on") == [0, 1]
    return repr(failed.value.__cause__), str(failed.value)


def test_a_failure_of_one_process_is_the_same_error_in_all(tmp_path):
    told = "measuring failed in process 1: it is too large"
    assert run(fail_in_one, 2, tmp_path) == [("None", told), ("ConfigError('it is too large')", told)]


def lose_one():
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    exchange(lambda: None, dist.group.WORLD, "waiting")


def test_a_process_that_is_killed_is_an_error_in_the_others(tmp_path):
    ranks = Ranks(lose_one, 2, tmp_path)
    try:
        (kind, traceback), died = ranks.outcomes()
    finally:
        ranks.kill()
    assert died == ("died", -signal.SIGKILL)
    assert kind == "raised"
    assert "ProcessError: waiting: another process has ended or does not answer" in traceback


def test_what_the_test_listens_for_is_what_pickle_does(tmp_path):
    assert run(unpickle, 1, tmp_path) == [["pickle.find_class"]]


def unpickle():
    heard = []
    sys.addaudithook(lambda event, _: heard.append(event) if event == "pickle.find_class" else None)
    pickle.loads(pickle.dumps(ConfigError))
    return heard
