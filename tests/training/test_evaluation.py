import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prenorm import ModelConfig, TransformerLM
from prenorm.ops.cross_entropy import IGNORED
from prenorm.training.device import Device
from prenorm.training.evaluation import HeldOutBatches, heldout_loss

from .test_batches import lengths, stream_of

CPU = Device(torch.device("cpu"), torch.float32)


@given(lengths, st.integers(1, 9), st.integers(1, 4), st.sampled_from([0.0, 0.3, 0.5, 0.99]))
def test_every_target_is_scored_exactly_once_in_its_own_document(lengths, context, batch_size, overlap):
    stream = stream_of(lengths)
    scored = []
    for batch in HeldOutBatches(stream, batch_size=batch_size, context=context, overlap=overlap):
        assert batch.token_ids.shape == (batch_size, context)
        chosen = batch.targets != IGNORED
        assert torch.equal(batch.targets[chosen], batch.token_ids[chosen] + 1)
        assert bool((batch.segment_ids[chosen] >= 0).all())
        scored += batch.targets[chosen].tolist()
        for row, segments in zip(batch.token_ids, batch.segment_ids, strict=True):
            for segment in range(int(segments.max()) + 1):
                places = row[segments == segment].numpy()
                assert np.array_equal(places, np.arange(places[0], places[0] + len(places)))
                assert len(set(np.searchsorted(stream.starts, places, side="right"))) == 1
    assert sorted(scored) == list(range(1, sum(lengths) + 1))


@given(lengths, st.integers(1, 9))
def test_what_is_no_target_is_not_scored_and_a_window_without_any_is_left_out(lengths, context):
    unscored = np.array([1, max(1, sum(lengths) // 2)])
    stream = replace(stream_of(lengths), unscored=unscored)
    batches = HeldOutBatches(stream, batch_size=1, context=context, overlap=0.5)
    scored = torch.cat([batch.targets[batch.targets != IGNORED] for batch in batches]).tolist()
    assert sorted(scored) == list(range(int(unscored[1]), sum(lengths) + 1))
    assert all((batch.targets != IGNORED).any() for batch in batches)


@given(st.integers(20, 200), st.sampled_from([0.25, 0.5, 0.75]))
def test_a_later_window_has_read_at_least_the_overlap(length, overlap):
    for batch in HeldOutBatches(stream_of([length]), batch_size=1, context=16, overlap=overlap):
        first = int((batch.targets[0] != IGNORED).nonzero()[0])
        assert first >= 16 * overlap or int(batch.token_ids[0, 0]) == 0


def test_the_loss_is_the_mean_over_all_tokens_however_they_are_batched():
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(64, d_model=16, num_layers=1, num_heads=2, max_seq_len=32)).train()
    stream = stream_of([5, 20, 3, 32])
    total = 0.0
    for start, end in zip(stream.starts[:-1], stream.starts[1:], strict=True):
        tokens = torch.arange(start, end + 1)
        total += model.loss(tokens[:-1], tokens[1:]).item() * (end - start)
    for batch_size in (1, 3):
        batches = HeldOutBatches(stream, batch_size=batch_size, context=32, overlap=0.5)
        assert heldout_loss(model, batches, CPU) == pytest.approx(total / stream.num_targets, rel=1e-6)
    assert model.training


def test_a_model_that_knows_nothing_has_the_loss_of_the_vocabulary():
    model = TransformerLM(ModelConfig(64, d_model=16, num_layers=1, num_heads=2, max_seq_len=32))
    torch.nn.init.zeros_(model.head_weight)
    batches = HeldOutBatches(stream_of([30, 20]), batch_size=2, context=8, overlap=0.5)
    assert heldout_loss(model, batches, CPU) == pytest.approx(math.log(64), rel=1e-6)


def test_a_glance_is_spread_over_the_text():
    batches = HeldOutBatches(stream_of([64]), batch_size=1, context=8, overlap=0.0)
    assert [int(batch.token_ids[0, 0]) for batch in batches.spread(4)] == [0, 16, 32, 48]
    assert len(batches.spread(100)) == len(batches) == 8


@given(lengths, st.integers(1, 4), st.sampled_from([(3, 1), (2, 2), (1, 3)]))
def test_the_shares_of_the_text_score_every_target_once_in_as_many_batches(lengths, batches, sizes):
    rows, count = sizes
    stream = stream_of(lengths)
    options = {"batch_size": 3, "context": 8, "overlap": 0.5}
    whole = HeldOutBatches(stream, **options)
    shares = [HeldOutBatches(stream, rows=rows, share=(i, count), **options) for i in range(count)]
    assert len({len(share) for share in shares}) == 1
    assert scored([batch for share in shares for batch in share]) == scored(whole)
    some = [share.spread(batches) for share in shares]
    assert len({len(each) for each in some}) == 1
    assert scored([batch for each in some for batch in each]) == scored(whole.spread(batches))


def scored(batches):
    return sorted(torch.cat([batch.targets[batch.targets != IGNORED] for batch in batches]).tolist())
