import pytest
import torch

import prenorm.functional as F
from prenorm import ConfigError, KVCache, RotaryEmbedding, SelfAttention, ShapeError

from ..oracle.inputs import normal, randomise
from ..oracle.tolerance import array, assert_exact


def weights(layer):
    return {f"{name}_proj_weight": getattr(layer, f"{name}_proj").weight for name in "qkvo"}


@pytest.mark.parametrize("causal", [False, True])
def test_without_a_rope_it_is_the_plain_function_of_its_weights(causal):
    layer, x = SelfAttention(6, 2, causal=causal, dtype=torch.float64), normal(2, 4, 6)
    plain = F.multihead_self_attention(d_model=6, num_heads=2, in_features=x, causal=causal, **weights(layer))
    assert_exact(layer(x), array(plain))


@pytest.mark.parametrize("causal", [False, True])
def test_with_a_rope_it_is_the_function_with_rope(causal):
    layer = SelfAttention(8, 2, RotaryEmbedding(4, 20, theta=9.0), causal=causal, dtype=torch.float64)
    x, positions = normal(2, 4, 8), torch.tensor([3, 19, 0, 3])
    plain = F.multihead_self_attention_with_rope(
        d_model=8,
        num_heads=2,
        max_seq_len=20,
        theta=9.0,
        in_features=x,
        token_positions=positions,
        causal=causal,
        **weights(layer),
    )
    assert_exact(layer(x, positions), array(plain))


def test_its_parameters_have_the_shapes_of_its_heads():
    layer = SelfAttention(10, 4, num_kv_heads=2, head_dim=6, qk_norm=True, qkv_bias=True, o_bias=True)
    assert {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()} == {
        "q_proj.weight": (24, 10),
        "q_proj.bias": (24,),
        "k_proj.weight": (12, 10),
        "k_proj.bias": (12,),
        "v_proj.weight": (12, 10),
        "v_proj.bias": (12,),
        "o_proj.weight": (10, 24),
        "o_proj.bias": (10,),
        "q_norm.weight": (6,),
        "k_norm.weight": (6,),
    }


def test_an_odd_head_dim_is_fine_without_a_rope():
    layer = randomise(SelfAttention(9, 3, dtype=torch.float64))
    assert layer(normal(2, 9)).shape == (2, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 4}, "window=4 .* needs causal=True"),
        ({"window": 0, "causal": True}, "window must be an integer of at least 1, not 0"),
        ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads, but 3 does not divide 4; num_kv_heads=2 would"),
        ({"num_kv_heads": 8}, "num_kv_heads must divide num_heads, but 8 does not divide 4"),
        ({"num_heads": 3}, "num_heads must divide d_model, but 3 does not divide 8"),
        ({"dropout": 1.0}, "dropout must be below 1"),
        ({"dropout": -0.1}, "dropout must be at least 0"),
        ({"rope": RotaryEmbedding(6, 4)}, "rope.head_dim must equal .* it is 6 and head_dim is 2; .*2, .... would do"),
        ({"eps": 0.0, "qk_norm": True}, "eps must be greater than 0"),
    ],
)
def test_invalid_sizes_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SelfAttention(**{"d_model": 8, "num_heads": 4, **options})


def refused(layer, x, error, message, **arguments):
    with pytest.raises(error, match=message):
        layer(x, **arguments)


@pytest.mark.usefixtures("shapes_unchecked")
def test_inputs_that_do_not_fit_are_refused_with_the_rule():
    layer = SelfAttention(4, 2, RotaryEmbedding(2, 8))
    refused(
        layer, torch.ones(3, 5), ShapeError, r"x must be \(..., seq, d_model\) with d_model = 4, but it is \(3, 5\)"
    )
    refused(layer, torch.ones(4), ShapeError, r"x must be \(..., seq, d_model\)")
    x = torch.ones(2, 3, 4)
    for shape in ((3,), (2, 4), (1, 3)):
        ids = torch.zeros(shape, dtype=torch.int64)
        refused(layer, x, ShapeError, r"one id a token, \(..., seq\) = \(2, 3\)", segment_ids=ids)
    positions = torch.zeros(2, 4, dtype=torch.int64)
    refused(layer, x, ShapeError, "token_positions must be", token_positions=positions)
    refused(layer, x, ShapeError, "an axis is missing", mask=torch.ones(2, 3, 3, dtype=torch.bool))
    both = {"mask": torch.ones(2, 3, 3, dtype=torch.bool), "segment_ids": torch.zeros(2, 3, dtype=torch.int64)}
    refused(layer, x, ShapeError, "an axis is missing", **both)


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_cache_needs_causal_attention_one_batch_dim_and_one_document_a_row():
    layer = SelfAttention(4, 2, RotaryEmbedding(2, 8))
    cache, x = layer.make_cache(2, 8), torch.ones(2, 3, 4)
    refused(layer, x, ConfigError, "a cache needs causal=True", cache=cache)
    layer.causal = True
    refused(layer, x[0], ShapeError, r"with a cache x must be \(batch, seq, d_model\)", cache=cache)
    refused(layer, x[None], ShapeError, r"with a cache x must be \(batch, seq, d_model\)", cache=cache)
    for several in ([0, 0, 1], [0, -1, 0]):
        ids = torch.tensor([[0, 0, 0], several])
        message = "a row must be one document.* row 1 "
        refused(layer, x, ConfigError, message, cache=cache, segment_ids=ids)
    assert cache.lengths.tolist() == [0, 0]


def test_a_row_of_a_cache_goes_on_with_its_document():
    layer, x = SelfAttention(4, 2, causal=True), torch.ones(2, 1, 4)
    cache = layer.make_cache(2, 8)
    for ids in ([3, -1], [3, 5], [-1, 5], [3, 5]):
        layer(x, segment_ids=torch.tensor(ids)[:, None], cache=cache)
    refused(layer, x, ConfigError, "row 1 ", cache=cache, segment_ids=torch.tensor([[3], [4]]))
    cache.reset()
    layer(x, segment_ids=torch.tensor([[4], [4]]), cache=cache)


def test_a_cache_has_the_dtype_of_the_weights_unless_told():
    layer = SelfAttention(4, 2, num_kv_heads=1, causal=True, dtype=torch.bfloat16)
    assert layer.make_cache(2, 8).keys.dtype == torch.bfloat16
    assert layer.make_cache(2, 8, torch.float32).keys.dtype == torch.float32
    assert layer.make_cache(2, 8).keys.shape[:2] == (2, 1)


def test_positions_without_a_rope_are_refused():
    attention = SelfAttention(8, 2)
    with pytest.raises(ConfigError, match="this attention has no rope"):
        attention(torch.zeros(3, 8), torch.arange(3))


def test_the_cache_of_a_whole_model_is_refused(shapes_unchecked):
    attention = SelfAttention(8, 2, causal=True)
    with pytest.raises(ConfigError, match=r"the cache of one layer, cache\[i\], not a KVCache"):
        attention(torch.zeros(1, 3, 8), cache=KVCache([attention.make_cache(1, 3)]))
