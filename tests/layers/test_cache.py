import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prenorm import KVCache, RangeError, ShapeError
from prenorm.layers.cache import LayerCache

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
    )


@given(chunk_sizes, st.integers(0, 3), seeds)
def test_chunks_of_any_size_come_back_joined(sizes, batch, seed):
    cache, (keys, values) = cache_for(batch), keys_values(batch, sum(sizes), seed=seed)
    for k, v, stop in zip(keys.split(sizes, 2), values.split(sizes, 2), torch.tensor(sizes).cumsum(0), strict=True):
        held_k, held_v = cache.append(k, v)
        assert torch.equal(held_k, keys[:, :, :stop])
        assert torch.equal(held_v, values[:, :, :stop])
        assert cache.lengths.tolist() == [stop] * batch


padded_rows = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=2, max_size=2)


@given(st.lists(padded_rows, min_size=1, max_size=4), seeds)
def test_padding_is_never_stored(chunks, seed):
    cache = cache_for()
    real = torch.tensor(chunks)  # chunk batch seq
    tokens: list[list[torch.Tensor]] = [[], []]
    for i, keep in enumerate(real):
        k, v = keys_values(seq=3, seed=seed + i)
        held, _ = cache.append(k, v, keep)
        for row in range(2):
            tokens[row] += k[row, :, keep[row]].unbind(1)
            for place, wanted in enumerate(tokens[row]):
                assert torch.equal(held[row, :, place], wanted)
    assert cache.lengths.tolist() == real.sum((0, 2)).tolist()


def test_places_count_each_rows_own_tokens():
    cache = cache_for()
    assert cache.places(2).tolist() == [[0, 1], [0, 1]]
    cache.append(*keys_values(seq=3), torch.tensor([[False, True, True], [True, False, False]]))
    assert cache.places(2).tolist() == [[2, 3], [1, 2]]
    assert cache.places(2, torch.tensor([[True, False], [False, True]])).tolist() == [[2, -1], [-1, 1]]


def test_what_is_stored_is_a_constant_and_what_comes_is_not():
    for real in (None, torch.tensor([[False, True], [True, True]])):
        cache = cache_for()
        first, second = ([x.requires_grad_() for x in keys_values(seq=2, seed=seed)] for seed in (0, 9))
        cache.append(*first, real)
        held, _ = cache.append(*second, real)
        (held * normal(*held.shape)).sum().backward()
        assert first[0].grad is None
        assert second[0].grad[:, :, -1].all()


def test_tokens_to_come_leave_earlier_gradients_alone():
    cache, first = cache_for(), [x.requires_grad_() for x in keys_values(seq=2)]
    held, _ = cache.append(*first)
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
        held, _ = cache.append(*keys_values(seq=4), real)
        assert torch.equal(held, keys_values(seq=4)[0])


def test_padding_needs_no_room():
    cache = cache_for(max_seq_len=2)
    cache.append(*keys_values(seq=4), torch.tensor([[False, True, True, False], [False, False, False, True]]))
    cache.append(*keys_values(seq=1), torch.tensor([[False], [True]]))
    assert cache.lengths.tolist() == [2, 2]


def test_a_cache_that_was_reset_is_a_new_one():
    cache = cache_for()
    cache.append(*keys_values(seq=2), torch.tensor([[False, True], [True, True]]))
    cache.reset()
    assert contents(cache) == contents(cache_for())
    assert torch.equal(cache.append(*keys_values(seq=3))[0], keys_values(seq=3)[0])


def test_filled_under_inference_mode_it_can_be_used_in_training():
    with torch.inference_mode():
        cache = cache_for()
        cache.append(*keys_values(seq=2))
    k, v = (x.requires_grad_() for x in keys_values(seq=1))
    cache.append(k, v)[0].square().sum().backward()
    assert torch.equal(k.grad, 2 * k)


def test_a_models_cache_is_a_sequence_of_its_layers():
    layers = [cache_for(), cache_for()]
    cache = KVCache(layers)
    assert len(cache) == 2
    assert list(cache) == layers
    assert cache[-1] is layers[1]
    assert list(cache[:1]) == layers[:1]
    cache.check(2)
    for layer in cache:
        layer.append(*keys_values(seq=2))
    assert cache.lengths.tolist() == [2, 2]
    cache.reset()
    assert [layer.lengths.tolist() for layer in cache] == [[0, 0], [0, 0]]


def test_another_number_of_layers_is_refused():
    with pytest.raises(ShapeError, match="this cache has 2 layers, but the model has 3"):
        KVCache([cache_for(), cache_for()]).check(3)


def test_layers_that_hold_different_tokens_are_refused():
    cache = KVCache([cache_for(), cache_for()])
    cache[0].append(*keys_values(seq=2))
    with pytest.raises(ShapeError, match=r"must hold the same tokens.*stopped in the middle.*cache\.reset"):
        cache.check(2)
