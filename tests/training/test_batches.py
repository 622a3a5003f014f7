from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prenorm.training import batches as batches_module
from prenorm.training.batches import TrainingBatches
from prenorm.training.data.stream import TokenStream

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=12).filter(lambda lengths: sum(lengths) >= 8)


def stream_of(lengths):
    """A stream in which every token is its own place, so that a token tells where it came from."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return TokenStream(np.arange(starts[-1] + 1), starts)


def epoch_of(batches):
    """All rows of the first epoch."""
    return torch.cat([batches.at(step).token_ids for step in range(1, batches.rows_per_epoch + 1)])


@given(lengths, st.integers(1, 8), st.integers(0, 5))
def test_an_epoch_has_every_token_once_but_less_than_a_row(lengths, context, seed):
    batches = TrainingBatches(stream_of(lengths), batch_size=1, context=context, seed=seed)
    seen = epoch_of(batches).flatten().tolist()
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(range(sum(lengths)))
    assert sum(lengths) - len(seen) < context


@given(lengths, st.integers(1, 8), st.integers(1, 5), st.integers(1, 9))
def test_the_target_is_the_next_token_and_a_segment_is_one_document(lengths, context, batch_size, step):
    stream = stream_of(lengths)
    batch = TrainingBatches(stream, batch_size=batch_size, context=context, seed=0).at(step)
    assert batch.token_ids.shape == (batch_size, context)
    assert torch.equal(batch.targets, batch.token_ids + 1)
    documents = np.searchsorted(stream.starts, batch.token_ids.numpy(), side="right")
    for row, segments in zip(documents, batch.segment_ids.numpy(), strict=True):
        assert np.array_equal(row[1:] != row[:-1], segments[1:] != segments[:-1])
        assert segments.min() >= 0


def test_a_batch_follows_from_seed_and_step_alone():
    stream = stream_of([5, 40, 17, 23, 9])
    straight = TrainingBatches(stream, batch_size=3, context=8, seed=1)
    expected = {step: straight.at(step) for step in range(1, 30)}
    for step in (29, 3, 17, 4):
        again = TrainingBatches(stream, batch_size=3, context=8, seed=1).at(step)
        assert all(torch.equal(one, other) for one, other in zip(again, expected[step], strict=True))


def test_epochs_and_seeds_have_different_orders():
    stream = stream_of([5, 40, 17, 23, 9])
    one, other = (TrainingBatches(stream, batch_size=1, context=8, seed=seed) for seed in (1, 2))
    assert not torch.equal(epoch_of(one), epoch_of(other))
    later = torch.cat([one.at(one.rows_per_epoch + step).token_ids for step in range(1, one.rows_per_epoch + 1)])
    assert not torch.equal(epoch_of(one), later)


def test_a_batch_may_go_over_from_one_epoch_to_the_next():
    batches = TrainingBatches(stream_of([24]), batch_size=5, context=8, seed=0)
    rows = torch.cat([batches.at(step).token_ids for step in (1, 2, 3)])
    for epoch in range(5):
        assert sorted(rows[3 * epoch : 3 * epoch + 3].flatten().tolist()) == list(range(24))


@given(lengths, st.integers(1, 4), st.integers(1, 3), st.integers(0, 12), st.integers(0, 5))
def test_short_steps_have_the_same_tokens_in_shuffled_pieces(lengths, short, pieces, short_steps, seed):
    stream, context = stream_of(lengths), short * pieces
    if stream.num_targets < context:
        return
    whole = TrainingBatches(stream, batch_size=2, context=context, seed=seed)
    cut = TrainingBatches(
        stream, batch_size=2, context=context, seed=seed, short_context=short, short_steps=short_steps
    )
    batches = [cut.at(step) for step in range(1, 15)]
    for step, batch in enumerate(batches, start=1):
        assert batch.token_ids.shape == ((2 * pieces, short) if step <= short_steps else (2, context))
        assert torch.equal(batch.targets, batch.token_ids + 1)
        if step > short_steps:
            assert torch.equal(batch.token_ids, whole.at(step).token_ids)
    seen = torch.cat([batch.token_ids.flatten() for batch in batches])
    assert sorted(seen.tolist()) == sorted(t for s in range(1, 15) for t in whole.at(s).token_ids.flatten().tolist())


def test_the_pieces_of_a_row_are_spread_over_the_short_steps():
    batches = TrainingBatches(stream_of([4000]), batch_size=5, context=8, seed=0, short_context=2, short_steps=100)
    together = 0
    for step in range(1, 101):
        rows = (batches.at(step).token_ids[:, 0] // 8).tolist()
        together += len(rows) - len(set(rows))
    assert together < 100  # in order, 15 of the 20 pieces of every step would share a row with another


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_parts_of_a_batch_are_its_rows(rows):
    batch = TrainingBatches(stream_of([50]), batch_size=6, context=4, seed=0).at(1)
    parts = batch.split(rows)
    assert len(parts) == 6 // rows
    assert torch.equal(torch.cat([part.token_ids for part in parts]), batch.token_ids)


def mixture_of(lengths, weights):
    """A stream of several sources, each of some of the documents."""
    stream = stream_of(lengths)
    cuts = [*range(len(weights)), len(lengths)]
    parts = [stream.part(first, last) for first, last in pairwise(cuts)]
    return TokenStream(stream.tokens, stream.starts, mixture=tuple(zip(parts, weights, strict=True)))


@pytest.mark.parametrize("short", [{}, {"short_context": 2, "short_steps": 10}])
def test_each_row_of_a_mixture_is_of_one_source_and_their_shares_are_the_weights(short):
    batches = TrainingBatches(mixture_of([100, 700, 50, 60], [2.0, 1.0]), batch_size=3, context=8, seed=0, **short)
    rows = torch.cat([batches.at(step).token_ids.reshape(-1, 2) for step in range(1, 21)])
    firsts = (rows < 100).all(dim=1)
    assert torch.equal(firsts, (rows < 100).any(dim=1))
    assert firsts.double().mean().item() == pytest.approx(2 / 3, abs=0.02)
    again = TrainingBatches(mixture_of([100, 700, 50, 60], [2.0, 1.0]), batch_size=3, context=8, seed=0, **short)
    assert all(torch.equal(one, other) for one, other in zip(again.at(17), batches.at(17), strict=True))


def test_a_source_of_less_than_a_row_is_read_several_times_in_it():
    batches = TrainingBatches(mixture_of([3, 100], [1.0, 1.0]), batch_size=2, context=8, seed=0)
    batch = batches.at(1)
    (row,) = [row for row in range(2) if batch.token_ids[row].max() < 3]
    assert batch.token_ids[row].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert batch.segment_ids[row].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_the_documents_of_a_row_are_those_that_its_tokens_are_from():
    stream = stream_of([5, 40, 17, 23, 9])
    for short in ({}, {"short_context": 4, "short_steps": 3}):
        batches = TrainingBatches(stream, batch_size=3, context=8, seed=1, **short)
        for step in range(1, 8):
            for row, token_ids in enumerate(batches.at(step).token_ids.numpy()):
                expected = (np.searchsorted(stream.starts, token_ids, side="right") - 1).tolist()
                origins = batches.documents(step, row)
                assert [number for path, _, count in origins for number in [path] * count] == [
                    f"document {number}" for number in expected
                ]


def test_many_documents_are_shuffled_in_runs_of_neighbours(monkeypatch):
    monkeypatch.setattr(batches_module, "MOST_SHUFFLED", 3)
    lengths = [3, 4, 2, 5, 3, 3, 4]
    batches = TrainingBatches(stream_of(lengths), batch_size=1, context=2, seed=0)
    assert sorted(epoch_of(batches).flatten().tolist()) == list(range(24))
    assert len(batches._rows[0]._epoch.ends) == 3
    whole = TrainingBatches(stream_of(lengths), batch_size=1, context=24, seed=0).at(1)
    starts = np.flatnonzero(np.diff(whole.segment_ids[0].numpy(), prepend=-1))
    assert len(starts) == 7
    assert set(whole.token_ids[0, starts].tolist()) == {0, 3, 7, 9, 14, 17, 20}


@pytest.mark.parametrize("short", [{}, {"short_context": 2, "short_steps": 3}])
def test_the_shares_of_a_batch_are_together_the_batch(short):
    stream = mixture_of([100, 700, 50, 60], [2.0, 1.0])
    whole = TrainingBatches(stream, batch_size=6, context=8, seed=0, **short)
    shares = [TrainingBatches(stream, batch_size=6, context=8, seed=0, share=(i, 3), **short) for i in range(3)]
    for step in range(1, 6):
        parts = [torch.cat(column) for column in zip(*(share.at(step) for share in shares), strict=True)]
        assert all(map(torch.equal, parts, whole.at(step)))
        assert all(map(torch.equal, shares[1].whole(step), whole.at(step)))
