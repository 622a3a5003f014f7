import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prenorm import ConfigError, MultiHeadAttention, ShapeError, use_backend

from ..oracle import models
from ..oracle.formulas import may_attend
from ..oracle.inputs import layouts, leadings, mask_of, normal, randomise, seeds, seqs, weights_of
from ..oracle.pytorch import MASKS, assert_as_accurate, assert_same, gradients, masks, witness
from ..oracle.tolerance import array, assert_accurate, assert_exact

D_MODEL, HEADS = 8, 2

backends = pytest.mark.parametrize("backend", ["auto", "reference"])
# The axes of a mask, each of its size or 1. b: batch, h: heads, q: queries, k: keys.
mask_shapes = st.sampled_from(
    [("q", "k"), ("b", 1, "q", "k"), ("b", 1, 1, "k"), ("b", "h", "q", "k"), (1, 1, "q", "k")]
)


def make(dtype=torch.float64, seed=0, dropout=0.0, **options):
    """A layer with random weights and biases."""
    return randomise(MultiHeadAttention(D_MODEL, HEADS, dropout, dtype=dtype, **options), seed)


def rows(*leading, q_seq=5, kv_seq=7, seed=0, dtype=torch.float64, layout="contiguous"):
    """Query, key and value."""
    seqs = (q_seq, kv_seq, kv_seq)
    return [normal(*leading, seq, D_MODEL, seed=seed + n, dtype=dtype, layout=layout) for n, seq in enumerate(seqs)]


def shaped(shape, **sizes):
    return mask_of(*(sizes.get(axis, 1) for axis in shape))


def oracle(layer, query, key, value, mask=None):
    """The paper's attention, one batch row at a time; keys and values may come from different sequences."""
    scores = (*query.shape[:-2], HEADS, query.shape[-2], key.shape[-2])
    masks = np.broadcast_to(True if mask is None else mask.numpy(), scores)
    out = np.empty(query.shape)
    for row in np.ndindex(query.shape[:-2]):
        q, k, v = (array(x)[row] for x in (query, key, value))
        out[row] = models.multihead(weights_of(layer), q, k, masks[row], HEADS, values=v)
    return out


# What it computes


@given(leadings, seqs, seqs, layouts, seeds)
@settings(max_examples=20)
def test_it_is_the_papers_formula_for_queries_and_keys_of_different_lengths(leading, q_seq, kv_seq, layout, seed):
    layer = make(seed=seed)
    given = rows(*leading, q_seq=q_seq, kv_seq=kv_seq, seed=seed, layout=layout)
    assert_exact(layer(*given), oracle(layer, *given))


@given(mask_shapes, seqs, seqs, seeds)
@settings(max_examples=20)
def test_a_mask_of_every_allowed_shape_is_applied(shape, q_seq, kv_seq, seed):
    layer, given = make(seed=seed), rows(3, q_seq=q_seq, kv_seq=kv_seq, seed=seed)
    mask = shaped(shape, b=3, h=HEADS, q=q_seq, k=kv_seq)
    assert_exact(layer(*given, mask), oracle(layer, *given, mask))


@given(seqs, seqs, st.booleans(), seeds)
@settings(max_examples=20)
def test_causal_is_a_causal_mask_that_ends_with_the_last_key(q_seq, kv_seq, masked, seed):
    layer, plain = make(seed=seed, causal=True), make(seed=seed)
    given = rows(2, q_seq=q_seq, kv_seq=kv_seq, seed=seed)
    causal = torch.from_numpy(may_attend(q_seq, kv_seq, causal=True))
    mask = mask_of(2, HEADS, q_seq, kv_seq, seed=seed) if masked else None
    both = causal if mask is None else causal & mask
    assert_exact(layer(*given, mask), array(plain(*given, both)))
    assert_exact(layer(*given, mask), oracle(layer, *given, both))


@pytest.mark.parametrize("causal", [False, True])
def test_projecting_keys_and_values_first_changes_nothing(causal):
    layer, (query, key, value), mask = make(causal=causal), rows(2), mask_of(2, 1, 5, 7)
    assert torch.equal(layer.attend(query, *layer.project(key, value), mask), layer(query, key, value, mask))


# Compared with PyTorch's own


def theirs_of(layer, dropout=0.0):
    return witness(nn.MultiheadAttention(D_MODEL, HEADS, dropout, batch_first=True), layer)


@pytest.mark.parametrize("kind", MASKS)
def test_output_and_all_gradients_are_pytorchs(kind):
    attn, padding, mask = masks(kind, 3, HEADS, 5, 7)
    options = {"need_weights": False, "attn_mask": attn, "key_padding_mask": padding}
    parts = {}
    for dtype in (torch.float64, torch.float32):
        layer, given = make(torch.float32).to(dtype), [x.to(dtype) for x in rows(3, dtype=torch.float32)]
        theirs = theirs_of(layer)
        parts[dtype] = (
            gradients(lambda *x, layer=layer: layer(*x, mask), layer, *given),
            gradients(lambda *x, theirs=theirs: theirs(*x, **options)[0], theirs, *given),
        )
    assert_same(*parts[torch.float64])
    exact = parts[torch.float64][0]
    assert_as_accurate(*parts[torch.float32], exact)


def test_causal_is_pytorchs_causal_mask():
    layer, given = make(causal=True), rows(3, q_seq=6, kv_seq=6)
    theirs, mask = theirs_of(layer), nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    wanted = theirs(*given, need_weights=False, attn_mask=mask, is_causal=True)[0]
    assert_exact(layer(*given), array(wanted))


def test_with_dropout_and_a_seed_output_and_gradients_are_pytorchs():
    layer, given = make(dropout=0.4).train(), rows(1)
    attn, _, mask = masks("(q, k)", 1, HEADS, 5, 7)
    theirs, parts = theirs_of(layer, dropout=0.4), []
    with use_backend("reference"):  # which uses the same random numbers as PyTorch
        for module, call in (
            (layer, lambda *x: layer(*x, mask)),
            (theirs, lambda *x: theirs(*x, need_weights=False, attn_mask=attn)[0]),
        ):
            torch.manual_seed(5)
            parts.append(gradients(call, module, *given))
    assert_same(*parts)


# Rounding


@pytest.mark.parametrize("dropout", [0.0, 1e-9])  # so small that nothing is dropped, but the dropout code runs
@pytest.mark.parametrize("masked", [None, "causal", "mask"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_are_as_accurate_as_the_plain_formulas(dtype, masked, dropout):
    layer = make(dtype, dropout=dropout, causal=masked == "causal").train()
    given = rows(3, q_seq=40, kv_seq=40, dtype=dtype)
    mask = mask_of(3, 1, 40, 40) if masked == "mask" else None
    with use_backend("reference"):
        plain = layer.eval()(*given, mask)
    causal = torch.from_numpy(may_attend(40, 40, causal=True)) if masked == "causal" else mask
    assert_accurate(layer.train()(*given, mask), oracle(layer, *given, causal), plain)


# Queries that may attend to nothing


@backends
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [("q", "k"), ("b", 1, "q", "k"), ("b", "h", "q", "k"), ("b", 1, 1, "k")])
def test_fully_masked_queries_get_the_output_bias_and_finite_gradients(shape, dtype, training, dropout, backend):
    layer = make(dtype, dropout=dropout).train(training)
    given = [x.requires_grad_() for x in rows(3, dtype=dtype)]
    mask = shaped(shape, b=3, h=HEADS, q=5, k=7)
    mask[..., -1] = True
    mask[0 if shape[2:3] == (1,) else ..., 0, :] = (
        False  # the first query, or every query of the first row, attends to nothing
    )
    empty = ~mask.expand(3, HEADS, 5, 7).any(-1).any(1)
    assert 0 < empty.sum() < empty.numel()
    with use_backend(backend):
        y = layer(*given, mask)
    (y * normal(*y.shape, seed=9, dtype=dtype)).sum().backward()
    assert torch.equal(y[empty], layer.o_proj.bias.expand_as(y[empty]))
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(tensor.grad).all() for tensor in (*given, *layer.parameters()))
    assert not given[0].grad[empty].any()
    assert given[0].grad[~empty].any()


@backends
def test_an_empty_key_sequence_gives_the_output_bias(backend):
    layer, given = make(dropout=0.5), [x.requires_grad_() for x in rows(2, kv_seq=0)]
    with use_backend(backend):
        y = layer(*given)
    y.sum().backward()
    assert torch.equal(y, layer.o_proj.bias.expand_as(y))
    assert not given[0].grad.any()


# Dropout


@backends
@pytest.mark.parametrize("masked", [None, "causal", "mask"])
def test_attention_weights_are_dropped_and_those_kept_are_scaled(masked, backend):
    # With one head, and values and output projection the identity, the output is the attention weights.
    size, p = 40, 0.25
    layer = MultiHeadAttention(size, 1, p, dtype=torch.float64, causal=masked == "causal")
    with torch.no_grad():
        layer.v_proj.weight.copy_(torch.eye(size))
        layer.o_proj.weight.copy_(torch.eye(size))
    query, key = normal(30, size, size), normal(30, size, size, seed=1)
    value = torch.eye(size, dtype=torch.float64).expand(30, -1, -1)
    mask = mask_of(30, 1, size, size) if masked == "mask" else None
    with use_backend(backend):
        plain, y = layer.eval()(query, key, value, mask), layer.train()(query, key, value, mask)
    kept, attended = y != 0, plain != 0
    assert not kept[~attended].any()
    assert_exact(y[kept], array(plain[kept] / (1 - p)))
    dropped = 1 - kept[attended].double().mean().item()
    assert abs(dropped - p) < 5 * (p * (1 - p) / attended.sum().item()) ** 0.5


def test_a_default_device_is_not_where_the_causal_mask_of_another_is_made():
    layer, given = make(dropout=1e-9, causal=True), rows(2, q_seq=6, kv_seq=6)
    plain = layer.eval()(*given)
    with torch.device("meta"):
        y = layer.train()(*given)
    assert_exact(y, array(plain))


def test_dropout_applies_only_in_training():
    layer, given = make(dropout=0.5), rows(2)
    plain = make()(*given)
    assert not torch.equal(layer.train()(*given), plain)
    assert torch.equal(layer.eval()(*given), plain)
    assert MultiHeadAttention(D_MODEL, HEADS).dropout == 0.1


# What it is made of


def test_its_parameters_have_the_names_and_shapes_of_the_design():
    layer = MultiHeadAttention(6, 3)
    assert {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()} == {
        "q_proj.weight": (6, 6),
        "q_proj.bias": (6,),
        "k_proj.weight": (6, 6),
        "k_proj.bias": (6,),
        "v_proj.weight": (6, 6),
        "v_proj.bias": (6,),
        "o_proj.weight": (6, 6),
        "o_proj.bias": (6,),
    }
    meta = MultiHeadAttention(6, 3, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in meta.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 0}, "d_model must be an integer of at least 1, not 0"),
        ({"num_heads": 3}, "num_heads must divide d_model, but 3 does not divide 8"),
        ({"dropout": 1.0}, "dropout must be below 1"),
        ({"dropout": -0.1}, "dropout must be at least 0"),
    ],
)
def test_invalid_sizes_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        MultiHeadAttention(**{"d_model": 8, "num_heads": 4, **options})


def test_heads_of_an_odd_size_are_fine():
    assert MultiHeadAttention(9, 3)(torch.ones(2, 9), torch.ones(4, 9), torch.ones(4, 9)).shape == (2, 9)


REFUSED = {
    "width of the query": ({"query": (2, 5, 6)}, r"with d_model = 8, .* but got \(2, 5, 6\)"),
    "width of the key": ({"key": (2, 7, 6)}, r"but got \(2, 7, 6\) and \(2, 7, 8\)"),
    "lengths of key and value": ({"value": (2, 6, 8)}, r"the same seq, but got \(2, 7, 8\) and \(2, 6, 8\)"),
    "no sequence": ({"query": (8,)}, r"must be \(..., seq, d_model\)"),
    "batches": ({"query": (3, 5, 8)}, r"those of the query are \(3,\) and those of the key \(2,\)"),
    "a batch too many": ({"query": (5, 8)}, r"those of the query are \(\) and those of the key \(2,\)"),
    "no heads axis": ({"mask": (2, 5, 7)}, r"\(2, 5, 7\): an axis is missing; .* mask.unsqueeze\(-3\) adds it"),
    "keys of the mask": ({"mask": (5, 6)}, r"\(q, kv\) = \(5, 7\) .* but it is \(5, 6\)"),
    "one key for all": ({"mask": (2, 1, 5, 1)}, r"but it is \(2, 1, 5, 1\)"),
    "heads of the mask": ({"mask": (2, 3, 5, 7)}, r"but it is \(2, 3, 5, 7\)"),
    "batch of the mask": ({"mask": (3, 1, 5, 7)}, r"but it is \(3, 1, 5, 7\)"),
}


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(("shapes", "message"), REFUSED.values(), ids=REFUSED)
def test_inputs_that_do_not_fit_are_refused_with_the_rule(shapes, message):
    shapes = {"query": (2, 5, 8), "key": (2, 7, 8), "value": (2, 7, 8), "mask": (2, 1, 5, 7), **shapes}
    given = {name: torch.ones(shape, dtype=torch.bool if name == "mask" else None) for name, shape in shapes.items()}
    with pytest.raises(ShapeError, match=message):
        make(torch.float32)(**given)


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_mask_of_numbers_is_refused():
    with pytest.raises(ShapeError, match=r"mask must be boolean \(True = may attend\), but it is torch.float64"):
        make()(*rows(2), torch.zeros(5, 7, dtype=torch.float64))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_its_gradients_are_right(backend):
    layer, mask = make(), mask_of(2, 1, 3, 4)
    given = [x.requires_grad_() for x in rows(2, q_seq=3, kv_seq=4)]
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda *given: layer(*given, mask), given, fast_mode=True)
