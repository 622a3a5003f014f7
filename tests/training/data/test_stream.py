import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prenorm.ops.cross_entropy import IGNORED
from prenorm.training.data.stream import Shards, TokenStream, joined

lengths = st.lists(st.integers(2, 9), min_size=1, max_size=6)


def stream_of(lengths, unscored=()):
    starts = np.cumsum([0, *lengths])
    tokens = Shards(np.array_split(np.arange(starts[-1] + 1), 3))
    return TokenStream(tokens, starts, np.array(unscored, np.int64), place_of=lambda number: (f"f{number}", number))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.data())
def test_shards_are_one_array(sizes, data):
    whole = np.arange(sum(sizes))
    shards = Shards(np.split(whole, np.cumsum(sizes)[:-1]))
    assert len(shards) == len(whole)
    start, stop = (data.draw(st.integers(0, len(whole))) for _ in range(2))
    assert shards[start:stop].tolist() == whole[start:stop].tolist()
    if len(whole):
        places = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=2, max_size=8))).reshape(-1, 1)
        assert shards[places].tolist() == whole[places].tolist()


@given(lengths, st.lists(st.integers(0, 40), max_size=6))
def test_what_is_unscored_is_no_target_and_is_not_counted(lengths, bounds):
    bounds = sorted(min(bound, sum(lengths) + 1) for bound in bounds)[: len(bounds) // 2 * 2]
    stream = stream_of(lengths, bounds)
    unscored = {place for a, b in zip(bounds[::2], bounds[1::2], strict=True) for place in range(a, b)}
    places = np.arange(1, sum(lengths) + 1)
    expected = [IGNORED if place in unscored else place for place in places.tolist()]
    assert stream.targets(places).tolist() == expected
    assert stream.num_targets == sum(target != IGNORED for target in expected)
    parts = [stream.part(number, number + 1) for number in range(len(lengths))]
    assert sum(part.num_targets for part in parts) == stream.num_targets
    assert sum(part.num_tokens for part in parts) == stream.num_tokens


@given(st.lists(lengths, min_size=1, max_size=3))
def test_joined_streams_have_all_documents_in_order(several):
    whole = joined([stream_of(lengths, [1, 2]) for lengths in several])
    assert np.diff(whole.starts).tolist() == [length for lengths in several for length in lengths]
    assert whole.num_tokens == len(whole.tokens) - 1
    number = 0
    for lengths in several:
        for index in range(len(lengths)):
            places = np.arange(whole.starts[number], whole.starts[number + 1])
            assert whole.tokens[places].tolist() == list(range(sum(lengths[:index]), sum(lengths[: index + 1])))
            assert (whole.targets(places + 1) == IGNORED).tolist() == [
                index == 0 and at == 0 for at in range(len(places))
            ]
            assert [tuple(origin) for origin in whole.origins(places)] == [(f"f{index}", index, len(places))]
            number += 1


def test_a_row_names_its_documents_in_order_also_one_that_comes_twice():
    stream = stream_of([4, 5, 6])
    places = np.array([5, 6, 7, 8, 4, 5, 9, 10])
    assert [(str(origin), origin.tokens) for origin in stream.origins(places)] == [
        ("f1, line 1", 4),
        ("f1, line 1", 2),
        ("f2, line 2", 2),
    ]
