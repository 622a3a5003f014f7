import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prenorm.errors import ConfigError
from prenorm.ops.documents import cross_document_mask, document_counts, document_mask, document_positions

from ..oracle import formulas
from ..oracle.inputs import rows_of_segments, segments


@given(rows_of_segments)
def test_a_run_of_equal_ids_sees_itself_alone_and_counts_from_zero(row):
    together, positions = formulas.documents(row.numpy())
    assert np.array_equal(document_mask(row).numpy(), together[None])
    assert np.array_equal(document_positions(row).numpy(), positions)


def test_padding_of_any_length_has_no_place_but_zero():
    assert document_positions(segments([(-1, 3), (0, 2), (-2, 2), (5, 2)])).tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 1]


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


# Source and target

distinct_ids = st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True)


@given(distinct_ids, st.data())
def test_a_target_token_reads_the_source_of_its_own_id_and_nothing_else(ids, data):
    def row(order):
        lengths = data.draw(st.lists(st.integers(1, 3), min_size=len(order), max_size=len(order)))
        padding = data.draw(st.integers(0, 2))
        return segments([(-1, padding), *zip(order, lengths, strict=True), (-2, padding)])

    source, target = row(ids), row(data.draw(st.permutations(ids))[: data.draw(st.integers(0, len(ids)))])
    mask = cross_document_mask(target, source)
    assert mask.shape == (1, len(target), len(source))
    assert np.array_equal(mask[0].numpy(), formulas.same_document(target.numpy(), source.numpy()))
    batch = cross_document_mask(target.expand(2, 3, -1), source.expand(2, 3, -1))
    assert torch.equal(batch, mask.expand(2, 3, *mask.shape))


def test_with_ids_on_one_side_its_document_goes_with_all_of_the_other_side():
    row = segments([(-1, 1), (4, 2), (-1, 1)])
    assert cross_document_mask(None, None) is None
    assert cross_document_mask(row, None).tolist() == [[[False], [True], [True], [False]]]
    assert cross_document_mask(None, row).tolist() == [[[False, True, True, False]]]
    assert cross_document_mask(None, row.expand(2, -1)).shape == (2, 1, 1, 4)
    assert cross_document_mask(row.expand(2, -1), None).shape == (2, 1, 4, 1)


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        ([[0, 0], [0, 1]], None, "but row 1 of the target has several, and the other side has no ids"),
        (None, [[3, 3], [0, 1]], "but row 1 of the source has several, and the other side has no ids"),
        (None, [[[0, -1, 0]], [[0, 0, 0]]], r"but row \(0, 0\) of the source has several"),
        ([1, 0, 1], [0, 1, 1], r"a row must not have two of one id, but row \(\) has"),
        ([[0, 1, 1]], [[1, 0, 1]], "a row must not have two of one id, but row 0 has"),
        ([[0], [7]], [[0], [0]], "every target document needs a source document of the same id, but row 1 has one"),
        ([[0]], [[-1]], "every target document needs a source document of the same id, but row 0 has one without"),
    ],
)
def test_documents_that_cannot_be_paired_are_refused(target, source, message):
    sides = [None if ids is None else torch.tensor(ids) for ids in (target, source)]
    with pytest.raises(ConfigError, match=message):
        cross_document_mask(*sides)


def test_a_source_may_have_documents_that_no_target_reads_and_padding_pairs_with_nothing():
    mask = cross_document_mask(torch.tensor([2, -1, -7]), torch.tensor([1, 2, -1, -7, 3]))
    assert mask[0].nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_nothing_reads_nothing(shape):
    empty, batch = torch.zeros(shape, dtype=torch.int64), shape[:-1]
    some = torch.zeros(*batch, 2, dtype=torch.int64)
    assert cross_document_mask(empty, some).shape == (*batch, 1, shape[-1], 2)
    assert cross_document_mask(None, empty).shape == (*batch, 1, 1, shape[-1])
    assert cross_document_mask(empty, None).shape == (*batch, 1, shape[-1], 1)
    assert cross_document_mask(empty, empty).shape == (*batch, 1, shape[-1], shape[-1])
