import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from prenorm.ops.documents import document_counts, document_mask, document_positions

from ..oracle import formulas
from ..oracle.inputs import rows_of_segments, segments


@given(rows_of_segments)
def test_a_run_of_equal_ids_sees_itself_alone_and_counts_from_zero(row):
    together, positions = formulas.documents(row.numpy())
    assert np.array_equal(document_mask(row).numpy(), together[None])
    assert np.array_equal(document_positions(row).numpy(), positions)


def test_two_runs_with_the_same_id_are_two_documents():
    row = segments([(7, 2), (4, 1), (7, 2)])
    assert document_positions(row).tolist() == [0, 1, 0, 0, 1]
    assert document_counts(row) == 3
    assert not document_mask(row)[0, 3:, :2].any()


def test_padding_sees_nobody_and_nobody_sees_it():
    mask = document_mask(segments([(-1, 2), (0, 1), (-1, 1), (-5, 1)]))[0]
    assert mask.nonzero().tolist() == [[2, 2]]


@given(st.lists(rows_of_segments, min_size=1, max_size=3))
def test_each_row_of_a_batch_is_as_it_is_alone(rows):
    seq = min(len(row) for row in rows)
    batch = torch.stack([row[:seq] for row in rows])[:, None]
    assert document_mask(batch).shape == (len(rows), 1, 1, seq, seq)
    for i, row in enumerate(rows):
        assert torch.equal(document_mask(batch)[i, 0], document_mask(row[:seq]))
        assert torch.equal(document_positions(batch)[i, 0], document_positions(row[:seq]))
        assert document_counts(batch)[i, 0] == document_counts(row[:seq])


def test_no_tokens_are_no_documents():
    for shape in ((0,), (2, 0), (0, 3)):
        empty = torch.zeros(shape, dtype=torch.int64)
        assert document_mask(empty).shape == (*shape[:-1], 1, shape[-1], shape[-1])
        assert document_positions(empty).shape == shape
        assert document_counts(empty).tolist() == [0] * len(empty) if len(shape) == 2 else document_counts(empty) == 0
