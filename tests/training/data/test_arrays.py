import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prenorm.errors import DataError
from prenorm.training.data import arrays
from prenorm.training.data.arrays import ArrayRecord, ArrayWriter, byte_of, open_array

U2 = np.dtype("<u2")


def written(path, pieces, dtype=U2):
    path.unlink(missing_ok=True)
    with ArrayWriter(path, dtype) as writer:
        for piece in pieces:
            writer.append(np.array(piece, np.int64))
        return writer.close()


@given(st.lists(st.lists(st.integers(0, 9), max_size=40), max_size=8), st.sampled_from(["<u2", "<u4", "<i8"]))
def test_what_is_written_in_pieces_is_read_as_one_array_of_numpy(tmp_path_factory, pieces, dtype):
    path = tmp_path_factory.mktemp("arrays") / "a.npy"
    record = written(path, pieces, np.dtype(dtype))
    expected = [item for piece in pieces for item in piece]
    assert open_array(path, record).tolist() == np.load(path).tolist() == expected
    assert np.load(path).dtype == np.dtype(dtype)


@pytest.fixture
def array(tmp_path, monkeypatch):
    """A file of 1,000 numbers under several checksums."""
    monkeypatch.setattr(arrays, "BLOCK", 256)
    path = tmp_path / "a.npy"
    return path, written(path, [range(600), range(400)])


def test_any_bit_that_is_flipped_is_noticed_with_the_file_and_the_bytes(array):
    path, record = array
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(300):
        place = draw.randrange(len(whole))
        changed = bytearray(whole)
        changed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"a\.npy .*(at byte 0|between the bytes)") as raised:
            open_array(path, record)
        if place >= 128:
            first, last = (int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", str(raised.value))[-2:])
            assert first <= place < last


@pytest.mark.parametrize("size", [0, 5, 127, 128, 1000, 2127])
def test_a_truncated_file_is_noticed_with_the_byte(array, size):
    path, record = array
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match="at byte 0" if size < 128 else f"is truncated at byte {size:,}, but must have"):
        open_array(path, record)


def test_a_file_with_a_tail_one_of_another_dtype_and_a_missing_one_are_noticed(array):
    path, record = array
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0\0")
    with pytest.raises(DataError, match="goes on to byte 2,130"):
        open_array(path, record)
    np.save(path, np.arange(1000, dtype=np.int32))
    with pytest.raises(DataError, match=r"1,000 numbers of the dtype <u2, but its header, at byte 0, says 1000 of <i4"):
        open_array(path, record)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.npy cannot be read: No such file"):
        open_array(path, record)


def test_a_look_at_the_items_knows_their_place(array):
    path, record = array
    seen = []
    open_array(path, record, lambda items, first: seen.append((first, items.tolist())))
    assert [item for _, items in seen for item in items] == [*range(600), *range(400)]
    assert [first for first, _ in seen] == list(range(0, 1000, 128))
    assert path.read_bytes()[byte_of(7, U2) :][:2] == bytes([7, 0])


def test_a_record_goes_through_json_unchanged(array):
    _, record = array
    assert ArrayRecord(**record._asdict()) == record
    assert len(record.crc32) == 8
