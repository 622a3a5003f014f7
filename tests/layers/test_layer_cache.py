import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prenorm import ConfigError, KVCache, RangeError, ShapeError
from prenorm.layers.cache import whole_call
from prenorm.layers.layer_cache import LayerCache

from ..oracle.inputs import normal, seeds

chunk_sizes = st.lists(st.integers(0, 4), min_size=1, max_size=5)


def cache_for(batch=2, max_seq_len=20, **options):
    return LayerCache(batch, 3, max_seq_len, 4, **{"dtype": torch.float64, **options})


def keys_values(batch=2, seq=1, *, heads=3, head_dim=4, seed=0, dtype=torch.float64):
    return [normal(batch, heads, seq, head_dim, seed=seed + i, dtype=dtype) for i in range(2)]


def contents(cache):
    """Everything that a cache holds."""
    held = cache.lengths.max() if len(cache.lengths) else 0
    return (
        cache.keys[:, :, :held].tolist(),
        cache.values[:, :, :held].tolist(),
        cache.lengths.tolist(),
        cache.longest,
        cache.ragged,
        cache._unfinished,
        cache._peaks.tolist(),
    )


def by_place(held, places, row):
    """The keys (or values) that a row was given, by their places, each at most once."""
    places = torch.arange(held.shape[2]) if places is None else places
    found = [(int(place), held[row, :, i]) for i, place in enumerate(places if places.ndim == 1 else places[row])]
    found = [(place, key) for place, key in found if place >= 0]
    assert len(dict(found)) == len(found)
    return dict(found)


@given(chunk_sizes, st.integers(0, 3), seeds)
def test_chunks_of_any_size_come_back_joined(sizes, batch, seed):
    cache, (keys, values) = cache_for(batch), keys_values(batch, sum(sizes), seed=seed)
    for k, v, stop in zip(keys.split(sizes, 2), values.split(sizes, 2), torch.tensor(sizes).cumsum(0), strict=True):
        held_k, held_v, places = cache.append(k, v)
        assert places is None
        assert torch.equal(held_k, keys[:, :, :stop])
        assert torch.equal(held_v, values[:, :, :stop])
        assert cache.lengths.tolist() == [stop] * batch


chunks_of_rows = st.lists(  # each a chunk: for both rows which of its tokens are real, or None for all; and its length
    st.integers(0, 7).flatmap(
        lambda seq: st.tuples(
            st.just(seq),
            st.none() | st.lists(st.lists(st.booleans(), min_size=seq, max_size=seq), min_size=2, max_size=2),
        )
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("grad", [False, True])
@given(st.sampled_from([None, 1, 2, 5, 100]), st.integers(0, 2), chunks_of_rows, st.integers(0, 9), seeds)
@settings(max_examples=150)
def test_tokens_are_given_all_that_they_may_see_and_padding_is_never_stored(grad, window, rewind, chunks, more, seed):
    # Just enough room, or a little more: how long the longest row is may only then have to be known exactly.
    counts = [[seq if real is None else sum(real[row]) for seq, real in chunks] for row in range(2)]
    room = max(1, *map(sum, counts)) + more
    cache = cache_for(max_seq_len=room, window=window, rewind=rewind)
    tokens: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[], []]
    for i, (seq, real) in enumerate(chunks):
        k, v = keys_values(seq=seq, seed=seed + i)
        keep = (
            torch.ones(2, seq, dtype=torch.bool) if real is None else torch.tensor(real, dtype=torch.bool).view(2, seq)
        )
        with torch.set_grad_enabled(grad):
            held_k, held_v, places = cache.append(k, v, None if real is None else keep)
        for row in range(2):
            first = len(tokens[row])
            tokens[row] += zip(k[row, :, keep[row]].unbind(1), v[row, :, keep[row]].unbind(1), strict=True)
            given_k, given_v = by_place(held_k, places, row), by_place(held_v, places, row)
            for place in range(max(0, first - (window or 50) + 1), len(tokens[row])):
                assert torch.equal(given_k[place], tokens[row][place][0])
                assert torch.equal(given_v[place], tokens[row][place][1])
    assert cache.lengths.tolist() == [len(row) for row in tokens]
    assert cache.keys.shape[2] == 1 + (room if window is None else min(room, window + rewind))


def test_places_count_each_rows_own_tokens():
    cache = cache_for()
    assert cache.places(2).tolist() == [0, 1]  # of all rows
    cache.append(*keys_values(seq=3), torch.tensor([[False, True, True], [True, False, False]]))
    assert cache.places(2).tolist() == [[2, 3], [1, 2]]
    assert cache.places(2, torch.tensor([[True, False], [False, True]])).tolist() == [[2, -1], [-1, 1]]


def test_what_is_stored_is_a_constant_and_what_comes_is_not():
    for real in (None, torch.tensor([[False, True], [True, True]])):
        cache = cache_for()
        first, second = ([x.requires_grad_() for x in keys_values(seq=2, seed=seed)] for seed in (0, 9))
        cache.append(*first, real)
        held, *_ = cache.append(*second, real)
        (held * normal(*held.shape)).sum().backward()
        assert first[0].grad is None
        assert second[0].grad[:, :, -1].all()


def test_tokens_to_come_leave_earlier_gradients_alone():
    cache, first = cache_for(), [x.requires_grad_() for x in keys_values(seq=2)]
    held, *_ = cache.append(*first)
    loss = held.square().sum()
    cache.append(*keys_values(seq=3, seed=5))
    loss.backward()
    assert torch.equal(first[0].grad, 2 * first[0])


WRONG = {
    "batch size": ({"batch": 3}, ShapeError, r"made for batch size 2, 3 key heads and head_dim 4.*\(3, 3, 1, 4\)"),
    "heads": ({"heads": 1}, ShapeError, r"made for batch size 2, 3 key heads and head_dim 4.*\(2, 1, 1, 4\)"),
    "head_dim": ({"head_dim": 6}, ShapeError, r"made for batch size 2, 3 key heads and head_dim 4.*\(2, 3, 1, 6\)"),
    "dtype": ({"dtype": torch.float32}, ShapeError, "holds torch.float64, but the keys are torch.float32"),
    "room": ({"seq": 3}, RangeError, "at most max_seq_len = 4 tokens, but 2 are in it and 3 more are to come"),
}


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("wrong", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_does_not_fit_is_refused_and_changes_nothing(wrong, error, message, ragged):
    cache = cache_for(max_seq_len=4)
    cache.append(*keys_values(seq=2), torch.ones(2, 2, dtype=torch.bool) if ragged else None)
    before = copy.deepcopy(contents(cache))
    with pytest.raises(error, match=message):
        cache.append(*keys_values(**wrong))
    assert contents(cache) == before


def test_it_can_be_filled_to_the_last_place():
    for real in (None, torch.ones(2, 4, dtype=torch.bool)):
        cache = cache_for(max_seq_len=4)
        held, *_ = cache.append(*keys_values(seq=4), real)
        assert torch.equal(held, keys_values(seq=4)[0])


def test_padding_needs_no_room():
    cache = cache_for(max_seq_len=2)
    cache.append(*keys_values(seq=4), torch.tensor([[False, True, True, False], [False, False, False, True]]))
    cache.append(*keys_values(seq=1), torch.tensor([[False], [True]]))
    assert cache.lengths.tolist() == [2, 2]


@given(
    st.sampled_from([None, 1, 2, 4, 100]),
    st.lists(st.tuples(st.integers(0, 6), st.tuples(st.integers(0, 3), st.integers(0, 3))), min_size=1, max_size=6),
    st.integers(0, 6),
    seeds,
)
def test_what_was_taken_back_was_never_there(window, steps, last, seed):
    cache = cache_for(max_seq_len=60, window=window, rewind=3)
    tokens: list[list[torch.Tensor]] = [[], []]
    for i, (seq, back) in enumerate([*steps, (last, (0, 0))]):
        k, v = keys_values(seq=seq, seed=seed + i)
        with torch.no_grad():
            held, _, places = cache.append(k, v)
        for row in range(2):
            first = len(tokens[row])
            tokens[row] += k[row].unbind(1)
            given_k = by_place(held, places, row)
            for place in range(max(0, first - (window or 60) + 1), len(tokens[row])):
                assert torch.equal(given_k[place], tokens[row][place])
        cache._unfinished = False  # the call has ended
        counts = torch.tensor([min(n, seq) for n in back])  # of this chunk, so never more than 3 behind the most
        cache.rewind(counts)
        for row in range(2):
            del tokens[row][len(tokens[row]) - int(counts[row]) :]
        assert cache.lengths.tolist() == [len(row) for row in tokens]
        assert cache.longest == max(map(len, tokens))


def filled(seq, **options):
    """A cache after one call."""
    cache = cache_for(**options)
    with whole_call(cache):
        cache.append(*keys_values(seq=seq))
    return cache


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(("window", "rewind"), [(None, 0), (3, 2)])
def test_more_than_there_is_or_than_a_ring_remembers_cannot_be_taken_back(window, rewind):
    cache = filled(8, window=window, rewind=rewind)
    for bad, message in (([-1, 0], "has 8 and should forget -1"), ([0, 9], "row 1 has 8 and should forget 9")):
        with pytest.raises(RangeError, match=f"a row can forget from 0 to all of its tokens, but .*{message}"):
            cache.rewind(torch.tensor(bad))
    for no_counts in (torch.tensor([0]), torch.tensor([1.0, 0.0]), torch.tensor([True, False]), [1, 0], 1, None):
        with pytest.raises(ShapeError, match=r"one number a row|whole numbers, one for each row"):
            KVCache([cache]).rewind(no_counts)
    assert cache.lengths.tolist() == [8, 8]
    cache.rewind(torch.tensor([2, 0]))
    with whole_call(cache):
        cache.append(*keys_values(seq=1))
    if window is None:
        cache.rewind(torch.tensor([7, 9]))
        assert cache.lengths.tolist() == [0, 0]
        return
    # Row 0 has 7 now and had 8: of the ring's 2 spare tokens one is left.
    with pytest.raises(
        RangeError, match=r"no more than 2 tokens behind .* row 0 would go back 3; make_cache\(rewind=3"
    ):
        cache.rewind(torch.tensor([2, 0]))
    cache.rewind(torch.tensor([1, 2]))


def test_how_long_the_longest_row_is_may_be_said():
    for said, longest in ((None, 7), (7, 7), (8, 8)):  # or at least how long
        cache = filled(8)
        cache.rewind(torch.tensor([2, 1]), longest=said)
        assert cache.longest == longest
        with torch.no_grad():
            _, _, places = cache.append(*keys_values(seq=2))
        assert places is None
        assert cache.lengths.tolist() == [8, 9]


def test_a_call_stopped_in_the_middle_cannot_be_rewound():
    cache = cache_for()
    cache.append(*keys_values(seq=2))
    with pytest.raises(ShapeError, match="stopped in the middle"):
        cache.rewind(torch.tensor([1, 1]))


def test_a_row_without_tokens_has_no_document():
    cache = filled(3)
    cache.keep_document(torch.tensor([[4, 4], [5, 5]]))
    cache.rewind(torch.tensor([3, 1]))
    cache.check_document(torch.tensor([[6], [5]]))
    with pytest.raises(ConfigError, match=r"row 1 has segment ids \[6\], after those of document 5 in the cache"):
        cache.check_document(torch.tensor([[6], [6]]))
    with pytest.raises(ConfigError, match=r"row 0 has segment ids \[0, -1, 0\]; use one cache"):
        cache.check_document(torch.tensor([[0, -1, 0], [5, 5, 5]]))


def test_without_rows_any_amount_of_padding_fits():
    cache = cache_for(0, max_seq_len=5)
    for _ in range(3):
        with whole_call(cache):
            cache.append(*keys_values(0, 3), torch.zeros(0, 3, dtype=torch.bool))


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    "options",
    [
        {"batch": -1},
        {"batch": 1.5},
        {"batch": True},
        {"max_seq_len": "a"},
        {"dtype": torch.int64},
        {"dtype": "float32"},
    ],
)
def test_what_no_cache_can_be_is_refused(options):
    with pytest.raises(ConfigError, match=r"must be a (whole number|floating point)"):
        cache_for(**options)


@pytest.mark.parametrize("rewind", [-1, 0.5, True])
@pytest.mark.usefixtures("shapes_unchecked")
def test_a_number_of_tokens_to_take_back_is_a_whole_number(rewind):
    with pytest.raises(ConfigError, match="rewind must be a whole number of at least 0"):
        cache_for(rewind=rewind)


def test_a_cache_that_was_reset_is_a_new_one():
    cache = cache_for(window=3, rewind=2)
    with whole_call(cache):
        cache.append(*keys_values(seq=2), torch.tensor([[False, True], [True, True]]))
    cache.rewind(torch.tensor([1, 1]))
    cache.reset()
    assert contents(cache) == contents(cache_for(window=3, rewind=2))
    assert torch.equal(cache.append(*keys_values(seq=3))[0], keys_values(seq=3)[0])


def test_filled_under_inference_mode_it_can_be_used_in_training():
    with torch.inference_mode():
        cache = cache_for()
        cache.append(*keys_values(seq=2))
    k, v = (x.requires_grad_() for x in keys_values(seq=1))
    cache.append(k, v)[0].square().sum().backward()
    assert torch.equal(k.grad, 2 * k)
