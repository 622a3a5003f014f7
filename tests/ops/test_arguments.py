"""What the functions refuse, because it would broadcast, be truncated, or turn into NaN without a word."""

from typing import Any

import pytest
import torch

import prenorm
import prenorm.functional as F
from prenorm.errors import ConfigError, ShapeError

pytestmark = pytest.mark.usefixtures("shapes_unchecked")  # whose checker would answer first


def ones(*shape):
    return torch.ones(shape)


def integers(*shape):
    return torch.ones(shape, dtype=torch.int64)


HEADS = ones(2, 3, 8)
WEIGHTS: dict[str, Any] = {f"{name}_proj_weight": ones(8, 8) for name in "qkvo"}
ATTENTION: dict[str, Any] = {"d_model": 8, "num_heads": 2, "in_features": ones(3, 8), **WEIGHTS}
ROTARY: dict[str, Any] = {"max_seq_len": 4, "theta": 1e4, **ATTENTION}

SHAPES = {
    "a norm's weight of one number": lambda: F.rms_norm(ones(2, 8), ones(1)),
    "a norm's weight a row": lambda: F.rms_norm(ones(2, 8), ones(2, 8)),
    "one feature, many weights": lambda: F.rms_norm(ones(2, 1), ones(8)),
    "a layer norm's weight a row": lambda: F.layer_norm(ones(2, 8), ones(2, 8), ones(2, 8)),
    "a layer norm's bias of one number": lambda: F.layer_norm(ones(2, 8), ones(8), ones(1)),
    "a weight that is a vector": lambda: F.linear(ones(2, 8), ones(8)),
    "a bias of one number": lambda: F.linear(ones(2, 8), ones(4, 8), ones(1)),
    "a bias of one number, large": lambda: F.linear(ones(300, 512), ones(512, 512), ones(1)),
    "a bias a row": lambda: F.linear(ones(2, 8), ones(4, 8), ones(2, 4)),
    "one gate for all": lambda: F.swiglu(ones(2, 8), ones(1, 8), ones(16, 8), ones(8, 16)),
    "one way up for all": lambda: F.swiglu(ones(2, 8), ones(16, 8), ones(1, 8), ones(8, 16)),
    "more rows of positions than x": lambda: F.rope(ones(4, 8), integers(3, 4)),
    "more positions than tokens": lambda: F.rope(ones(1, 8), integers(5)),
    "more positions than tokens, in a layer": lambda: prenorm.RotaryEmbedding(8, 16)(ones(1, 8), integers(5)),
    "features without a sequence": lambda: F.multihead_self_attention(**ATTENTION | {"in_features": ones(8)}),
    "a projection that is a vector": lambda: F.multihead_self_attention(**ATTENTION | {"q_proj_weight": ones(8)}),
}
DTYPES = {
    "rms_norm": lambda: F.rms_norm(integers(2, 8), ones(8)),
    "layer_norm": lambda: F.layer_norm(integers(2, 8), ones(8), ones(8)),
    "softmax": lambda: F.softmax(integers(3)),
    "rope": lambda: F.rope(integers(4, 8)),
    "attention": lambda: F.scaled_dot_product_attention(*[integers(2, 3, 8)] * 3),
    "complex": lambda: F.rms_norm(ones(2, 8).to(torch.complex64), ones(8)),
    "two": lambda: F.linear(ones(2, 8), ones(4, 8).double()),
    "two, in a block": lambda: prenorm.TransformerBlock(8, 2, 16)(ones(3, 8).bfloat16()),
}
NUMBERS = {
    "eps below 0": lambda: F.rms_norm(ones(2, 8), ones(8), eps=-1.0),
    "eps below 0, layer_norm": lambda: F.layer_norm(ones(2, 8), ones(8), ones(8), eps=-1.0),
    "theta 0": lambda: F.rope(ones(4, 8), theta=0.0),
    "theta below 0": lambda: F.multihead_self_attention_with_rope(**ROTARY | {"theta": -5.0}),
    "max_seq_len below 0": lambda: F.multihead_self_attention_with_rope(**ROTARY | {"max_seq_len": -3}),
    "dropout below 0": lambda: F.dropout(ones(4), -1.0),
    "dropout of 1": lambda: F.dropout(ones(4), 1.0),
    "dropout above 1": lambda: F.scaled_dot_product_attention(HEADS, HEADS, HEADS, dropout=2.0),
    "dropout that is NaN": lambda: F.dropout(ones(4), float("nan")),
    "softcap 0": lambda: F.scaled_dot_product_attention(HEADS, HEADS, HEADS, softcap=0.0),
    "causal that is a text": lambda: F.scaled_dot_product_attention(HEADS, HEADS, HEADS, causal="no"),  # type: ignore[arg-type]
}
FLAGS = [
    lambda flag: prenorm.TransformerBlock(8, 2, 16, causal=flag),
    lambda flag: prenorm.TransformerBlock(8, 2, 16, qk_norm=flag),
    lambda flag: prenorm.TransformerBlock(8, 2, 16, qkv_bias=flag),
    lambda flag: prenorm.TransformerBlock(8, 2, 16, rope_interleaved=flag),
    lambda flag: prenorm.TransformerDecoderBlock(8, 2, causal=flag),
    lambda flag: prenorm.MultiHeadAttention(8, 2, causal=flag),
]


@pytest.mark.parametrize("case", SHAPES)
def test_what_would_broadcast_is_refused(case):
    with pytest.raises(ShapeError, match=r"but (it is|they are|are) \("):
        SHAPES[case]()


@pytest.mark.parametrize("case", DTYPES)
def test_a_dtype_that_cannot_hold_the_result_is_refused(case):
    with pytest.raises(ShapeError, match=r"torch\.(int64|complex64|float64|bfloat16)"):
        DTYPES[case]()


@pytest.mark.parametrize("case", NUMBERS)
def test_a_number_without_meaning_is_refused(case):
    with pytest.raises(ConfigError, match="must be"):
        NUMBERS[case]()


@pytest.mark.parametrize("make", FLAGS)
@pytest.mark.parametrize("flag", ["no", 1, None])
def test_a_switch_is_true_or_false(make, flag):
    with pytest.raises(ConfigError, match="must be True or False, not"):
        make(flag)


def test_autocast_may_multiply_two_dtypes():
    with torch.autocast("cpu", torch.bfloat16):
        assert F.linear(ones(2, 8), ones(4, 8).bfloat16()).dtype == torch.bfloat16
