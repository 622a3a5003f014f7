import threading
import time

import pytest
import torch

from prenorm.errors import CheckpointError, PrenormError
from prenorm.training import checkpoint_writer
from prenorm.training.checkpoint_writer import CheckpointWriter
from prenorm.training.checkpoints import latest_checkpoint, read_parts, read_state, save_checkpoint


@pytest.fixture
def gate(monkeypatch):
    """The thread writes when this is set."""
    gate, save = threading.Event(), save_checkpoint

    def waiting(*arguments):
        assert gate.wait(10)
        save(*arguments)

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", waiting)
    return gate


@pytest.fixture
def no_room(monkeypatch):
    def full(*_):
        raise CheckpointError("the disk is full")

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", full)


def writer_of(tiny, tmp_path):
    return CheckpointWriter(tmp_path, tiny(), {"threads": 1})


def test_what_is_saved_is_what_there_was_whatever_training_does_meanwhile(tiny, tmp_path, gate):
    weight, state = torch.zeros(3, 2), {"seen": [1]}
    with writer_of(tiny, tmp_path) as writer:
        writer.save(1, {"model": {"w": weight.T}}, state)  # returns, although nothing is written yet
        assert latest_checkpoint(tmp_path) is None
        weight += 1
        state["seen"].append(2)
        gate.set()
        writer.save(2, {"model": {"w": weight.T}}, state)
    for step in (1, 2):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        assert torch.equal(read_parts(folder, ["model"])["model"]["w"], torch.full((2, 3), step - 1.0))
        assert read_state(folder).trainer == {"seen": [1, 2][:step]}


def test_the_memory_for_the_copies_is_used_again_where_it_fits(tiny, tmp_path):
    with writer_of(tiny, tmp_path) as writer:
        places = []
        for step, size in enumerate((3, 3, 4), 1):
            writer.save(step, {"model": {"w": torch.full((size,), 1.0 * step)}}, {})
            writer.wait()
            places.append(writer._buffers["model"]["w"].data_ptr())
            assert len(read_parts(latest_checkpoint(tmp_path), ["model"])["model"]["w"]) == size
    assert places[0] == places[1]


def until_done(writer):
    while not writer._writing.done():
        time.sleep(0.001)


def save_and(then, tiny, tmp_path):
    """Saves a checkpoint, does something with the writer, and leaves its context."""
    with writer_of(tiny, tmp_path) as writer:
        writer.save(1, {}, {})
        then(writer)


def check_when_done(writer):
    until_done(writer)
    assert writer.has_failed
    writer.wait()


def end_with(error):
    def end(writer):
        raise error

    return end


WHAT_COMES_NEXT = {
    "check": check_when_done,
    "wait": CheckpointWriter.wait,
    "save": lambda writer: writer.save(2, {}, {}),
    "the end": lambda writer: None,
}


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("then", WHAT_COMES_NEXT.values(), ids=WHAT_COMES_NEXT)
def test_an_error_of_the_thread_is_raised_by_what_comes_next(tiny, tmp_path, then):
    with pytest.raises(CheckpointError, match=r"^the disk is full$"):
        save_and(then, tiny, tmp_path)


@pytest.mark.usefixtures("no_room")
def test_an_error_of_the_thread_is_told_beside_that_which_ended_the_run(tiny, tmp_path):
    with pytest.raises(CheckpointError, match=r"the disk is full The run had ended before: the loss is nan"):
        save_and(end_with(PrenormError("the loss is nan")), tiny, tmp_path)


def test_whatever_ends_the_run_the_checkpoint_is_finished(tiny, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        save_and(end_with(KeyboardInterrupt()), tiny, tmp_path)
    assert read_state(latest_checkpoint(tmp_path)).step == 1


def test_asking_whether_it_has_failed_waits_for_nothing(tiny, tmp_path, gate):
    with writer_of(tiny, tmp_path) as writer:
        writer.save(1, {}, {})
        assert not writer.has_failed
        assert latest_checkpoint(tmp_path) is None
        gate.set()
