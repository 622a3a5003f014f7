import pytest
import torch

from prenorm import KVCache, RangeError, ShapeError
from prenorm.layers.cache import whole_call

from .test_layer_cache import cache_for, keys_values


@pytest.mark.parametrize("inner", [False, True])
def test_a_call_that_an_error_stopped_after_storing_is_noticed_until_reset(inner):
    cache = cache_for()

    def call(stop):
        with whole_call(cache):
            with whole_call(cache if inner else None):
                cache.append(*keys_values(seq=2))
            if stop:
                raise KeyboardInterrupt

    call(stop=False)
    with pytest.raises(KeyboardInterrupt):
        call(stop=True)
    for _ in range(2):
        with pytest.raises(ShapeError, match=r"stopped in the middle.*cache\.reset\(\)"):
            call(stop=False)
    cache.reset()
    call(stop=False)
    assert cache.lengths.tolist() == [2, 2]


def test_a_call_that_an_error_stopped_before_storing_may_be_repeated():
    cache = cache_for()
    with pytest.raises(ZeroDivisionError), whole_call(cache):
        raise ZeroDivisionError
    with whole_call(cache):
        cache.append(*keys_values(seq=2))


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
    cache[0]._unfinished = False  # the call ended well, but it was a call of one layer alone
    with pytest.raises(
        ShapeError, match=r"must hold the same tokens, but they hold \[\[2, 2\], \[0, 0\]\].*cache\.reset"
    ):
        cache.check(2)


def test_rewinding_takes_tokens_back_from_all_layers():
    cache = KVCache([cache_for(max_seq_len=40, window=3, rewind=2) for _ in range(3)])
    with whole_call(cache):
        for layer in cache:
            layer.append(*keys_values(seq=9))
    cache.rewind(torch.tensor([2, 1]))
    assert [layer.lengths.tolist() for layer in cache] == [[7, 8]] * 3
    assert [layer.longest for layer in cache] == [8] * 3
    cache.check(3)
    for layer in cache:
        _, _, places = layer.append(*keys_values(seq=1))
        assert {int(place) for place in places[0]} >= {5, 6, 7}
        layer._unfinished = False  # as after a call that has ended well
        with pytest.raises(RangeError, match="row 0 would go back 3"):  # every layer knows how far its ring has come
            layer.rewind(torch.tensor([2, 0]))


def test_layers_that_differ_in_one_row_alone_are_refused():
    cache = KVCache([cache_for(), cache_for()])
    with whole_call(cache):
        for layer in cache:
            layer.append(*keys_values(seq=4))
    cache[0].rewind(torch.tensor([1, 0]))
    for call in (lambda: cache.check(2), lambda: cache.rewind(torch.tensor([0, 0]))):
        with pytest.raises(ShapeError, match=r"they hold \[\[3, 4\], \[4, 4\]\]: some were used alone"):
            call()
    cache[1].rewind(torch.tensor([0, 1]))  # rows of the same longest length, and not the same rows
    with pytest.raises(ShapeError, match="some were used alone"):
        cache.check(2)
