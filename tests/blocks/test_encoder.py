import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prenorm import ConfigError, LayerNorm, ShapeError, TransformerEncoderBlock, use_backend

from ..oracle import models
from ..oracle.formulas import documents, may_attend
from ..oracle.inputs import layouts, leadings, mask_of, normal, randomise, rows_of_segments, seeds, seqs, weights_of
from ..oracle.pytorch import MASKS, assert_as_accurate, assert_same, gradients, masks, witness
from ..oracle.tolerance import array, assert_accurate, assert_exact, error, rms

D_MODEL, HEADS, D_FF = 8, 2, 12

backends = pytest.mark.parametrize("backend", ["auto", "reference"])
mask_shapes = st.sampled_from([("q",), ("b", 1, "q"), ("b", 1, 1), ("b", "h", "q"), (1, "h", "q")])


def make(dtype=torch.float64, seed=0, dropout=0.0, **options):
    """A block with random weights and biases, in eval mode."""
    return randomise(TransformerEncoderBlock(D_MODEL, HEADS, D_FF, dropout, dtype=dtype, **options), seed).eval()


def oracle(block, x, allowed=True, eps=1e-5):
    """The papers' block, one batch row at a time; `allowed` broadcasts to the scores."""
    allowed = np.broadcast_to(allowed, (*x.shape[:-2], HEADS, x.shape[-2], x.shape[-2]))
    out, weights = np.empty(x.shape), weights_of(block)
    for row in np.ndindex(x.shape[:-2]):
        out[row] = models.encoder_block(weights, array(x)[row], allowed[row], num_heads=HEADS, eps=eps)
    return out


# What it computes


@given(leadings, seqs, st.booleans(), st.sampled_from([1e-5, 0.1]), layouts, seeds)
@settings(max_examples=20)
def test_it_is_the_papers_formulas(leading, seq, causal, eps, layout, seed):
    block, x = make(seed=seed, causal=causal, eps=eps), normal(*leading, seq, D_MODEL, seed=seed, layout=layout)
    assert_exact(block(x), oracle(block, x, may_attend(seq, seq, causal=causal), eps))


@given(mask_shapes, seqs, st.booleans(), seeds)
@settings(max_examples=20)
def test_a_mask_of_every_allowed_shape_says_who_may_attend(shape, seq, causal, seed):
    block, x = make(seed=seed, causal=causal), normal(3, seq, D_MODEL, seed=seed)
    sizes = {"b": 3, "h": HEADS, "q": seq, 1: 1}
    mask = mask_of(*(sizes[axis] for axis in shape), seq, seed=seed)
    assert_exact(block(x, mask), oracle(block, x, mask.numpy() & may_attend(seq, seq, causal=causal)))


@given(rows_of_segments, st.booleans(), st.booleans(), seeds)
@settings(max_examples=20)
def test_packed_documents_are_a_mask(row, causal, masked, seed):
    block, x = make(seed=seed, causal=causal), normal(len(row), D_MODEL, seed=seed)
    mask = mask_of(1, len(row), len(row), seed=seed) if masked else None
    allowed = documents(row.numpy())[0] & may_attend(len(row), len(row), causal=causal)
    assert_exact(block(x, mask, segment_ids=row), oracle(block, x, allowed if mask is None else allowed & mask.numpy()))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_are_as_accurate_as_the_plain_formulas(dtype, causal):
    block, x = make(dtype, causal=causal), normal(2, 40, D_MODEL, dtype=dtype)
    with use_backend("reference"):
        plain = block(x)
    assert_accurate(block(x), oracle(block, x, may_attend(40, 40, causal=causal)), plain)


@backends
@pytest.mark.parametrize("training", [False, True])
def test_tokens_that_see_nobody_get_the_output_bias_and_give_finite_gradients(training, backend):
    block, x = make(torch.float32, dropout=0.5).train(training), normal(2, 6, D_MODEL, dtype=torch.float32)
    block.dropout.p = block.ffn.dropout.p = 0.0  # what is left is dropped attention weights
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[1::2] = False
    x.requires_grad_()
    with use_backend(backend):
        y = block(x, mask)
        y.square().sum().backward()
        alone = x + block.attn.o_proj.bias
        alone = alone + block.ffn(block.norm2(alone))
    assert torch.equal(y[:, 1::2], alone[:, 1::2])
    assert all(torch.isfinite(tensor.grad).all() for tensor in (x, *block.parameters()))


# Against PyTorch's own


def theirs_of(block, dropout=0.0):
    options = {"activation": "gelu", "batch_first": True, "norm_first": True}
    return witness(nn.TransformerEncoderLayer(D_MODEL, HEADS, D_FF, dropout, **options), block)


@pytest.mark.parametrize("kind", MASKS)
def test_output_and_all_gradients_are_pytorchs(kind):
    attn, padding, mask = masks(kind, 3, HEADS, 5, 5)
    parts = {}
    for dtype in (torch.float64, torch.float32):
        block, x = make(torch.float32).to(dtype), normal(3, 5, D_MODEL, dtype=torch.float32).to(dtype)
        theirs = theirs_of(block)
        parts[dtype] = (
            gradients(lambda x, block=block: block(x, mask), block, x),
            gradients(lambda x, theirs=theirs: theirs(x, attn, padding), theirs, x),
        )
    assert_same(*parts[torch.float64])
    assert_as_accurate(*parts[torch.float32], exact=parts[torch.float64][0])


def with_dropout(module, call, x):
    torch.manual_seed(5)
    with use_backend("reference"):  # which draws the numbers that PyTorch draws
        return gradients(call, module, x)


def test_with_dropout_and_a_seed_output_and_gradients_are_pytorchs():
    block, x = make(dropout=0.3).train(), normal(1, 5, D_MODEL)
    attn, padding, mask = masks("(q, k) and padding", 1, HEADS, 5, 5)
    theirs = theirs_of(block, 0.3)
    wanted = with_dropout(theirs, lambda x: theirs(x, attn, padding), x)
    assert_same(with_dropout(block, lambda x: block(x, mask), x), wanted)
    for where in (block.attn, block.dropout, block.ffn.dropout):  # and it would not be, were one of them missing
        name = "dropout" if where is block.attn else "p"
        setattr(where, name, 0.0)
        changed = with_dropout(block, lambda x: block(x, mask), x)[0]
        assert error(changed, array(wanted[0])) > 0.01 * rms(array(wanted[0]))
        setattr(where, name, 0.3)


# What it is made of


def test_the_state_dict_has_exactly_the_names_of_the_design():
    block = TransformerEncoderBlock(8, 2)
    names = ["norm1", "norm2", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "ffn.up_proj"]
    names.append("ffn.down_proj")
    assert sorted(block.state_dict()) == sorted(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))
    assert block.ffn.d_ff == 32
    assert [block.dropout.p, block.attn.dropout, block.ffn.dropout.p] == [0.1] * 3
    assert [module.eps for module in block.modules() if isinstance(module, LayerNorm)] == [1e-5] * 2


def test_everything_is_made_in_the_dtype_and_on_the_device_asked_for():
    block = TransformerEncoderBlock(8, 2, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in block.parameters()} == {("meta", torch.bfloat16)}
    assert block(torch.ones(2, 3, 8, device="meta", dtype=torch.bfloat16)).shape == (2, 3, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 0}, "d_model must be an integer of at least 1, not 0"),
        ({"num_heads": 3}, "num_heads must divide d_model, but 3 does not divide 8"),
        ({"d_ff": 0}, "d_ff must be an integer of at least 1, not 0"),
        ({"dropout": 1.0}, "dropout must be below 1"),
        ({"eps": 0.0}, "eps must be greater than 0"),
    ],
)
def test_numbers_that_no_block_can_have_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TransformerEncoderBlock(**{"d_model": 8, "num_heads": 2, **options})


@pytest.mark.usefixtures("shapes_unchecked")
def test_inputs_that_do_not_fit_are_refused_with_the_rule():
    block, x = make(), normal(2, 5, D_MODEL)
    with pytest.raises(ShapeError, match="d_model = 8"):
        block(x[..., :1])
    with pytest.raises(ShapeError, match=r"\(2, 5, 5\): an axis is missing"):
        block(x, torch.ones(2, 5, 5, dtype=torch.bool))
    with pytest.raises(ShapeError, match="one id a token"):
        block(x, segment_ids=torch.zeros(5, dtype=torch.int64))
