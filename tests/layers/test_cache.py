import copy

import pytest
import torch

from prenorm import ConfigError, KVCache, RangeError, ShapeError
from prenorm.layers.cache import one_pass

from .test_layer_cache import append, cache_for, filled, keys_values


def test_a_models_cache_is_a_sequence_of_its_layers():
    layers = [cache_for(), cache_for()]
    cache = KVCache(layers)
    assert len(cache) == 2
    assert list(cache) == layers
    assert cache[-1] is layers[1]
    assert list(cache[:1]) == layers[:1]
    cache.check(2)
    for layer in cache:
        append(layer, *keys_values(seq=2))
    assert cache.lengths.tolist() == [2, 2]
    cache.reset()
    assert [layer.lengths.tolist() for layer in cache] == [[0, 0], [0, 0]]


def test_another_number_of_layers_is_refused():
    with pytest.raises(ShapeError, match="this cache has 2 layers, but the model has 3"):
        KVCache([cache_for(), cache_for()]).check(3)


def test_tokens_count_once_every_layer_has_them():
    cache = KVCache([cache_for(), cache_for()])
    keys, values = keys_values(seq=7)
    pieces = ((0, 0, 5), (0, 5, 7), (1, 0, 3), (1, 3, 7))  # layer by layer, each in different chunks
    counted = [[0, 0], [0, 0], [3, 3], [7, 7]]
    for (layer, start, stop), lengths in zip(pieces, counted, strict=True):
        held, _, _ = append(cache[layer], keys[:, :, start:stop], values[:, :, start:stop])
        assert torch.equal(held, keys[:, :, :stop])
        assert cache.lengths.tolist() == lengths
        assert cache[layer].lengths.tolist() == [stop, stop]
    cache.check(2)


def test_tokens_of_ragged_rows_count_once_every_layer_has_them():
    cache, real = KVCache([cache_for(), cache_for()]), torch.tensor([[True, True, False], [False, True, True]])
    keys, values = keys_values(seq=4)
    for layer in cache:
        append(layer, keys[:, :, :3], values[:, :, :3], real)
        append(layer, keys[:, :, 3:], values[:, :, 3:])
        assert layer.lengths.tolist() == [3, 3]
        assert torch.equal(layer.keys[0, :, :3], keys[0, :, [0, 1, 3]])
        assert torch.equal(layer.keys[1, :, :3], keys[1, :, [1, 2, 3]])
    assert cache.lengths.tolist() == [3, 3]
    assert [layer.ahead for layer in cache] == [0, 0]
    append(cache[0], keys[:, :, :3], values[:, :, :3], real)
    append(cache[1], keys[:, :, :3], values[:, :, :3], ~real)
    with pytest.raises(ShapeError, match="must be given the same tokens, but padding differs between them"):
        cache.check(2)


def test_layers_that_hold_different_tokens_are_refused():
    cache = KVCache([cache_for(), cache_for()])
    append(cache[0], *keys_values(seq=2))
    for call in (lambda: cache.check(2), lambda: cache.rewind(torch.tensor([0, 0]))):
        with pytest.raises(
            ShapeError, match=r"must hold the same tokens, but they hold \[\[2, 2\], \[0, 0\]\].*cache\.reset"
        ):
            call()


@pytest.mark.parametrize("times", [0, 2])
def test_a_layer_that_stores_more_or_less_than_the_others_is_noticed_at_the_next_call(times):
    cache = KVCache([cache_for(), cache_for()])
    with one_pass(cache):
        append(cache[0], *keys_values(seq=2))
        for _ in range(times):
            append(cache[1], *keys_values(seq=2))  # as a block used twice in a model does
    with pytest.raises(ShapeError, match="must hold the same tokens, but they hold"):
        cache.check(2)


def test_rewinding_takes_tokens_back_from_all_layers():
    cache = KVCache([cache_for(max_seq_len=40, window=3, rewind=rewind) for rewind in (2, 3, 2)])
    for layer in cache:
        append(layer, *keys_values(seq=9))
    cache.rewind(torch.tensor([2, 1]))
    assert [layer.lengths.tolist() for layer in cache] == [[7, 8]] * 3
    assert cache.timeline.longest == 8
    for layer in cache:
        _, _, places = append(layer, *keys_values(seq=1))
        assert {int(place) for place in places[0]} >= {5, 6, 7}
    with pytest.raises(RangeError, match=r"at most 2 tokens .* row 0 would go back 3"):
        cache.rewind(torch.tensor([2, 0]))  # as far as every ring allows


@pytest.mark.parametrize("what", ["rewind", "reset"])
def test_a_layer_is_rewound_and_reset_only_with_the_others(what):
    cache = KVCache([cache_for(), cache_for()])
    given = (torch.tensor([0, 0]),) if what == "rewind" else ()
    with pytest.raises(ConfigError, match=f"{what} was called on one of them; call {what} on the KVCache"):
        getattr(cache[0], what)(*given)


def test_layers_of_one_cache_fit_together():
    for wrong in ([cache_for(), cache_for(3)], [cache_for(), filled(2)]):
        with pytest.raises(ShapeError, match="the same batch size, max_seq_len and tokens, but have"):
            KVCache(wrong)
    cache = KVCache([filled(2), filled(2)])
    assert cache.lengths.tolist() == [2, 2]
    assert KVCache(cache.layers).lengths.tolist() == [2, 2]
    for others in (cache[:1], [cache[0], cache_for()], [one := cache_for(), one]):
        with pytest.raises(ShapeError, match="distinct layers that belong to no other cache"):
            KVCache(others)
    for layer in cache:
        append(layer, *keys_values(seq=1))
    assert cache.lengths.tolist() == [3, 3]


def test_a_copy_has_a_timeline_of_its_own():
    cache = KVCache([cache_for(), cache_for()])
    other = copy.deepcopy(cache)
    for layer in other:
        append(layer, *keys_values(seq=2))
    assert (cache.lengths.tolist(), other.lengths.tolist()) == ([0, 0], [2, 2])
