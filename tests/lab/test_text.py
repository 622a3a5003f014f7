"""The text that the lab trains on."""

import math

import pytest
import torch

from prenorm.errors import DataError
from prenorm.lab import text
from prenorm.training.data.corpus import Document
from prenorm.training.data.formats import WHOLE


@pytest.fixture
def corpus(monkeypatch):
    """A library that a test writes, in the place of Python's."""

    def use(documents):
        monkeypatch.setattr(
            text, "Corpus", lambda: [Document(name, 0, 0, WHOLE, content) for name, content in documents]
        )
        return text.python_text.__wrapped__()

    return use


def test_pythons_library_is_read_the_same_every_time_and_its_halves_are_apart():
    first, again = text.python_text.__wrapped__(), text.python_text()
    assert first.digest == again.digest
    assert len(first.training) >= text.TRAINING_BYTES
    assert len(first.heldout) > 100_000
    assert torch.equal(first.training, again.training)


def test_other_text_has_another_name_and_a_document_is_on_one_side(corpus):
    documents = [(f"{number}.py", f"x{number} = 1\n" * 2000) for number in range(40)]
    one = corpus(documents)
    assert 0 < len(one.heldout) < len(one.training)
    assert corpus([*documents[:-1], ("39.py", "y" * 20_000)]).digest != one.digest


def test_a_python_without_its_source_is_refused(corpus):
    with pytest.raises(DataError, match="use a Python that has it"):
        corpus([("a.py", "x = 1")])


def test_rows_are_pieces_of_the_text_up_to_its_end():
    data = torch.arange(10, dtype=torch.uint8)
    rows = text.draw_rows(data, 200, 8, torch.Generator().manual_seed(0))
    assert rows.shape == (200, 9)
    assert {tuple(row.tolist()) for row in rows} == {tuple(range(9)), tuple(range(1, 10))}


def test_the_loss_of_frequencies_alone_is_that_of_the_held_out_text_by_the_others_frequencies(monkeypatch):
    seen, heldout = (torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in (b"aaab", b"abbbbc"))
    monkeypatch.setattr(text, "python_text", lambda: text.Text(seen, heldout, ""))
    a, b, c = (math.log(260 / (count + 1)) for count in (3, 1, 0))  # 4 bytes, and one more of each of 256
    assert text.byte_entropy() == pytest.approx((a + 4 * b + c) / 6)


def test_the_loss_of_frequencies_alone_lies_between_none_and_all_alike():
    assert 2.5 < text.byte_entropy() < math.log(256) / 1.3
