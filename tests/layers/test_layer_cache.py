import copy
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prenorm import ConfigError, KVCache, RangeError, ShapeError
from prenorm.layers.cache import one_pass
from prenorm.layers.layer_cache import LayerCache
from prenorm.layers.timeline import Timeline

from ..oracle.inputs import normal, seeds

chunk_sizes = st.lists(st.integers(0, 4), min_size=1, max_size=5)


def cache_for(batch=2, max_seq_len=20, **options):
    return LayerCache(batch, 3, max_seq_len, 4, **{"dtype": torch.float64, **options})


def keys_values(batch=2, seq=1, *, heads=3, head_dim=4, seed=0, dtype=torch.float64):
    return [normal(batch, heads, seq, head_dim, seed=seed + i, dtype=dtype) for i in range(2)]


def append(cache, k, v, real=None, *, exact=False):
    """Store in one call, as attention does: the keys and values to attend to, and their positions."""
    segment_ids = None if real is None else torch.where(real, 0, -1)
    with one_pass(cache):
        with patch.object(Timeline, "_check_documents"):  # padding anywhere, gaps too
            arrival = cache.arrive(torch.empty(len(k), k.shape[2], 1), segment_ids, exact=exact)
        cache.timeline.check_room(arrival)
        slots, places = cache.slots_for(arrival)
        given = cache.store(k, v, slots)
        cache.note(arrival)
        cache.timeline.arrived = (arrival.stop, None)
        return *given, places


def contents(cache):
    """The whole content of a cache."""
    held, timeline = cache.lengths.max() if len(cache.lengths) else 0, cache.timeline
    return (
        cache.keys[:, :, :held].tolist(),
        cache.values[:, :, :held].tolist(),
        cache.lengths.tolist(),
        timeline.longest,
        timeline.ragged,
        timeline._peaks.tolist(),
        timeline.documents.tolist(),
        (cache.ahead, cache.columns, cache.overwritten, timeline.running, timeline.torn),
    )


def by_place(held, places, row):
    """The keys (or values) given to a row, by position, each at most once."""
    places = torch.arange(held.shape[2]) if places is None else places
    found = [(int(place), held[row, :, i]) for i, place in enumerate(places if places.ndim == 1 else places[row])]
    found = [(place, key) for place, key in found if place >= 0]
    assert len(dict(found)) == len(found)
    return dict(found)


@given(chunk_sizes, st.integers(0, 3), seeds)
def test_chunks_of_any_size_come_back_joined(sizes, batch, seed):
    cache, (keys, values) = cache_for(batch), keys_values(batch, sum(sizes), seed=seed)
    for k, v, stop in zip(keys.split(sizes, 2), values.split(sizes, 2), torch.tensor(sizes).cumsum(0), strict=True):
        held_k, held_v, places = append(cache, k, v)
        assert places is None
        assert torch.equal(held_k, keys[:, :, :stop])
        assert torch.equal(held_v, values[:, :, :stop])
        assert cache.lengths.tolist() == [stop] * batch


chunks_of_rows = st.lists(  # for each chunk: which tokens of both rows are not padding, or None for all; and its length
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
def test_tokens_get_all_keys_that_they_may_attend_to_and_padding_is_never_stored(
    grad, window, rewind, chunks, more, seed
):
    # Just enough room, or a little more: only then does the exact length of the longest row matter.
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
            held_k, held_v, places = append(cache, k, v, None if real is None else keep)
        for row in range(2):
            first = len(tokens[row])
            tokens[row] += zip(k[row, :, keep[row]].unbind(1), v[row, :, keep[row]].unbind(1), strict=True)
            given_k, given_v = by_place(held_k, places, row), by_place(held_v, places, row)
            for place in range(max(0, first - (window or 50) + 1), len(tokens[row])):
                assert torch.equal(given_k[place], tokens[row][place][0])
                assert torch.equal(given_v[place], tokens[row][place][1])
    assert cache.lengths.tolist() == [len(row) for row in tokens]
    assert cache.keys.shape[2] == 1 + (room if window is None else min(room, window + rewind))


def places(cache, seq, real=None):
    segment_ids = None if real is None else torch.where(torch.tensor(real), 0, -1)
    return cache.arrive(torch.empty(2, seq, 1), segment_ids).cache_positions.tolist()


def test_positions_count_each_rows_own_tokens():
    cache = cache_for()
    assert places(cache, 2) == [0, 1]  # of all rows
    append(cache, *keys_values(seq=3), torch.tensor([[False, True, True], [True, False, False]]))
    assert places(cache, 2) == [[2, 3], [1, 2]]
    assert places(cache, 2, [[True, False], [False, True]]) == [[2, -1], [-1, 1]]


def test_stored_tokens_are_constants_and_new_ones_get_gradients():
    for real in (None, torch.tensor([[False, True], [True, True]])):
        cache = cache_for()
        first, second = ([x.requires_grad_() for x in keys_values(seq=2, seed=seed)] for seed in (0, 9))
        append(cache, *first, real)
        held, *_ = append(cache, *second, real)
        (held * normal(*held.shape)).sum().backward()
        assert first[0].grad is None
        assert second[0].grad[:, :, -1].all()


def test_later_tokens_do_not_change_earlier_gradients():
    cache, first = cache_for(), [x.requires_grad_() for x in keys_values(seq=2)]
    held, *_ = append(cache, *first)
    loss = held.square().sum()
    append(cache, *keys_values(seq=3, seed=5))
    loss.backward()
    assert torch.equal(first[0].grad, 2 * first[0])


WRONG = {
    "batch size": (
        {"batch": 3},
        ShapeError,
        "made for batch size 2, but x has batch size 3",
    ),
    "heads": ({"heads": 1}, ShapeError, r"made for batch size 2, 3 key.value heads and head_dim 4.*\(2, 1, 1, 4\)"),
    "head_dim": (
        {"head_dim": 6},
        ShapeError,
        r"made for batch size 2, 3 key.value heads and head_dim 4.*\(2, 3, 1, 6\)",
    ),
    "dtype": ({"dtype": torch.float32}, ShapeError, "holds torch.float64, but the keys are torch.float32"),
    "room": ({"seq": 3}, RangeError, "at most max_seq_len = 4 tokens, but it has 2 and this call adds 3"),
}


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("wrong", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_does_not_fit_is_refused_and_changes_nothing(wrong, error, message, ragged):
    cache = cache_for(max_seq_len=4)
    append(cache, *keys_values(seq=2), torch.ones(2, 2, dtype=torch.bool) if ragged else None)
    before = copy.deepcopy(contents(cache))
    with pytest.raises(error, match=message):
        append(cache, *keys_values(**wrong))
    assert contents(cache) == before


def test_it_can_be_filled_to_the_last_slot():
    for real in (None, torch.ones(2, 4, dtype=torch.bool)):
        cache = cache_for(max_seq_len=4)
        held, *_ = append(cache, *keys_values(seq=4), real)
        assert torch.equal(held, keys_values(seq=4)[0])


def test_padding_needs_no_room():
    cache = cache_for(max_seq_len=2)
    append(cache, *keys_values(seq=4), torch.tensor([[False, True, True, False], [False, False, False, True]]))
    append(cache, *keys_values(seq=1), torch.tensor([[False], [True]]))
    assert cache.lengths.tolist() == [2, 2]


@given(
    st.sampled_from([None, 1, 2, 4, 100]),
    st.lists(st.tuples(st.integers(0, 6), st.tuples(st.integers(0, 3), st.integers(0, 3))), min_size=1, max_size=6),
    st.integers(0, 6),
    seeds,
)
def test_rewound_tokens_leave_no_trace(window, steps, last, seed):
    cache = cache_for(max_seq_len=60, window=window, rewind=3)
    tokens: list[list[torch.Tensor]] = [[], []]
    for i, (seq, back) in enumerate([*steps, (last, (0, 0))]):
        k, v = keys_values(seq=seq, seed=seed + i)
        with torch.no_grad():
            held, _, places = append(cache, k, v)
        for row in range(2):
            first = len(tokens[row])
            tokens[row] += k[row].unbind(1)
            given_k = by_place(held, places, row)
            for place in range(max(0, first - (window or 60) + 1), len(tokens[row])):
                assert torch.equal(given_k[place], tokens[row][place])
        counts = torch.tensor([min(n, seq) for n in back])  # of this chunk, so never more than 3 behind the most
        cache.rewind(counts)
        for row in range(2):
            del tokens[row][len(tokens[row]) - int(counts[row]) :]
        assert cache.lengths.tolist() == [len(row) for row in tokens]
        assert cache.timeline.longest == max(map(len, tokens))


def filled(seq, **options):
    """A cache after one call."""
    cache = cache_for(**options)
    append(cache, *keys_values(seq=seq))
    return cache


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(("window", "rewind"), [(None, 0), (3, 2)])
def test_it_cannot_rewind_more_tokens_than_it_holds_or_a_ring_keeps(window, rewind):
    cache = filled(8, window=window, rewind=rewind)
    for bad, message in (([-1, 0], "has 8 tokens and counts -1"), ([0, 9], "row 1 has 8 tokens and counts 9")):
        with pytest.raises(
            RangeError, match=f"counts must be from 0 to the number of tokens in the row, but .*{message}"
        ):
            cache.rewind(torch.tensor(bad))
    wrong: Any = (torch.tensor([0]), torch.tensor([1.0, 0.0]), torch.tensor([True, False]), [1, 0], 1, None)
    for no_counts in wrong:
        with pytest.raises(ShapeError, match=r"one number per row|counts must be (a tensor of )?int64"):
            KVCache([cache]).rewind(no_counts)
    assert cache.lengths.tolist() == [8, 8]
    cache.rewind(torch.tensor([2, 0]))
    append(cache, *keys_values(seq=1))
    if window is None:
        cache.rewind(torch.tensor([7, 9]))
        assert cache.lengths.tolist() == [0, 0]
        return
    # Row 0 has 7 now and had 8: of the ring's 2 spare tokens one is left.
    with pytest.raises(RangeError, match=r"at most 2 tokens .* row 0 would go back 3; make_cache\(rewind=3"):
        cache.rewind(torch.tensor([2, 0]))
    cache.rewind(torch.tensor([1, 2]))


def test_the_length_of_the_longest_row_may_be_given():
    for said, longest in ((None, 7), (7, 7), (8, 8)):  # or an upper bound
        cache = filled(8)
        cache.rewind(torch.tensor([2, 1]), longest=said)
        assert cache.timeline.longest == longest
        with torch.no_grad():
            _, _, places = append(cache, *keys_values(seq=2))
        assert places is None
        assert cache.lengths.tolist() == [8, 9]


def call(cache, seq, *, fails=False, documents=None):
    """A call of one layer that may fail once its tokens are stored."""
    segment_ids = None if documents is None else torch.tensor(documents)[:, None].expand(-1, seq)
    with one_pass(cache):
        arrival = cache.arrive(torch.empty(2, seq, 1), segment_ids)
        given = cache.store(*keys_values(seq=seq), cache.slots_for(arrival)[0])
        cache.note(arrival)
        cache.timeline.arrived = (arrival.stop, segment_ids)
        if fails:
            raise KeyboardInterrupt
        return given


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("nested", [False, True])
def test_a_call_that_fails_leaves_the_cache_as_it_was(nested, window):
    cache = filled(2, window=window)
    before = copy.deepcopy(contents(cache))

    def fail():
        with one_pass(cache if nested else None):
            call(cache, 1, fails=not nested, documents=[3, 4])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert contents(cache) == before
    call(cache, 1, documents=[5, 5])  # the failed call left no document either
    assert cache.lengths.tolist() == [3, 3]


def test_tokens_count_when_the_outermost_call_is_done():
    cache = cache_for()
    with one_pass(cache):
        call(cache, 2)
        assert cache.timeline.longest == 0
        call(cache, 1)  # after the earlier ones
    assert cache.lengths.tolist() == [3, 3]
    assert torch.equal(cache.keys[:, :, :2], keys_values(seq=2)[0])
    assert torch.equal(cache.keys[:, :, 2:3], keys_values(seq=1)[0])


@pytest.mark.parametrize(("rewind", "seq", "tears"), [(0, 1, False), (0, 2, True), (2, 3, False), (2, 4, True)])
def test_a_call_that_fails_when_a_ring_was_overwritten_is_noticed_if_that_was_needed(rewind, seq, tears):
    with torch.no_grad():
        cache, other = (filled(8, window=3, rewind=rewind) for _ in range(2))
        with pytest.raises(KeyboardInterrupt):
            call(cache, seq, fails=True)
        if not tears:
            assert cache.lengths.tolist() == [8, 8]
            seen = [by_place(append(one, *keys_values(seed=5))[0], append_places(one), 0) for one in (cache, other)]
            assert all(torch.equal(seen[0][place], seen[1][place]) for place in (6, 7, 8))
            cache.rewind(torch.tensor([0, 0]))
            if rewind:  # the failed call has used up the spare slots of the ring
                cache.rewind(torch.tensor([1, 0]))  # a token stored since
                with pytest.raises(RangeError, match="row 0 would go back 3"):
                    cache.rewind(torch.tensor([1, 0]))
            return
        for use in (lambda: call(cache, 1), lambda: cache.rewind(torch.tensor([1, 1]))):
            with pytest.raises(ShapeError, match=r"an earlier forward pass failed .* call cache\.reset\(\)"):
                use()
        cache.reset()
        call(cache, 1)


def append_places(cache):
    """The positions of the keys in a full ring after a call with one token."""
    return cache._positions_held(None, cache.timeline.longest, cache.slots)


def test_a_row_without_tokens_has_no_document():
    cache = cache_for()
    call(cache, 3, documents=[4, 5])
    cache.rewind(torch.tensor([3, 1]))
    call(cache, 1, documents=[6, 5])
    for documents, message in (
        ([[6], [6]], r"row 1 has segment ids \[6\], and the cache holds document 5"),
        (
            [[6, -1, 6], [5, 5, 5]],
            r"row 0 has segment ids \[6, -1, 6\], and the cache holds document 6; use one",
        ),
    ):
        ids = torch.tensor(documents)
        with pytest.raises(ConfigError, match=message):
            cache.arrive(torch.empty(*ids.shape, 1), ids)


def test_without_rows_any_amount_of_padding_fits():
    cache = cache_for(0, max_seq_len=5)
    for _ in range(3):
        append(cache, *keys_values(0, 3), torch.zeros(0, 3, dtype=torch.bool))


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
def test_invalid_caches_are_refused(options):
    with pytest.raises(ConfigError, match=r"must be an? (integer|floating point)"):
        cache_for(**options)


@pytest.mark.parametrize("rewind", [-1, 0.5, True])
@pytest.mark.usefixtures("shapes_unchecked")
def test_the_number_of_tokens_to_rewind_is_an_integer(rewind):
    with pytest.raises(ConfigError, match="rewind must be an integer of at least 0"):
        cache_for(rewind=rewind)


def test_a_reset_cache_is_like_a_new_one():
    cache = cache_for(window=3, rewind=2)
    append(cache, *keys_values(seq=2), torch.tensor([[False, True], [True, True]]))
    cache.rewind(torch.tensor([1, 1]))
    cache.reset()
    assert contents(cache) == contents(cache_for(window=3, rewind=2))
    assert torch.equal(append(cache, *keys_values(seq=3))[0], keys_values(seq=3)[0])


def test_filled_under_inference_mode_it_can_be_used_in_training():
    with torch.inference_mode():
        cache = cache_for()
        append(cache, *keys_values(seq=2))
    k, v = (x.requires_grad_() for x in keys_values(seq=1))
    append(cache, k, v)[0].square().sum().backward()
    assert torch.equal(k.grad, 2 * k)
