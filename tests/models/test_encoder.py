import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prenorm import ConfigError, ShapeError, TransformerEncoder, use_backend

from ..oracle import models
from ..oracle.formulas import documents, may_attend
from ..oracle.inputs import leadings, mask_of, normal, randomise, rows_of_segments, seeds, segments, seqs, weights_of
from ..oracle.pytorch import MASKS, assert_as_accurate, assert_same, gradients, masks, witness
from ..oracle.tolerance import array, assert_accurate, assert_exact, error, rms

LAYERS, D_MODEL, HEADS, D_FF = 2, 8, 2, 12
of_torch_itself = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")


def make(dtype=torch.float64, seed=0, dropout=0.0, num_layers=LAYERS, **options):
    """An encoder with random weights and biases, in eval mode."""
    sizes = (num_layers, D_MODEL, HEADS, D_FF, dropout)
    return randomise(TransformerEncoder(*sizes, dtype=dtype, **options), seed).eval()


def oracle(encoder, x, allowed=True, eps=1e-5):
    """The papers' blocks and the final norm, one batch row at a time."""
    allowed = np.broadcast_to(allowed, (*x.shape[:-2], HEADS, x.shape[-2], x.shape[-2]))
    weights, out = weights_of(encoder), np.empty(x.shape)
    for row in np.ndindex(x.shape[:-2]):
        hidden = array(x)[row]
        for layer in range(LAYERS):
            own = models.below(weights, f"layers.{layer}.")
            hidden = models.encoder_block(own, hidden, allowed[row], num_heads=HEADS, eps=eps)
        out[row] = models.norm(weights, "final_norm", hidden, eps)
    return out


@given(leadings, seqs, st.booleans(), st.sampled_from([1e-5, 0.1]), st.booleans(), seeds)
@settings(max_examples=15)
def test_it_is_its_blocks_and_a_final_norm(leading, seq, causal, eps, training, seed):
    encoder = make(seed=seed, causal=causal, eps=eps).train(training)
    x = normal(*leading, seq, D_MODEL, seed=seed)
    assert_exact(encoder(x), oracle(encoder, x, may_attend(seq, seq, causal=causal), eps))


@given(st.lists(rows_of_segments, min_size=1, max_size=3), st.booleans(), st.booleans(), seeds)
@settings(max_examples=15)
def test_packed_documents_are_a_mask(rows, causal, masked, seed):
    seq = min(len(row) for row in rows)
    ids = torch.stack([row[:seq] for row in rows])
    encoder, x = make(seed=seed, causal=causal), normal(len(rows), seq, D_MODEL, seed=seed)
    mask = mask_of(len(rows), HEADS, seq, seq, seed=seed) if masked else None
    allowed = np.stack([documents(row)[0] for row in ids.numpy()])[:, None] & may_attend(seq, seq, causal=causal)
    allowed = allowed & mask.numpy() if masked else allowed
    assert_exact(encoder(x, mask, segment_ids=ids), oracle(encoder, x, allowed))


@given(seqs, st.integers(0, 3), st.integers(0, 3), seeds)
@settings(max_examples=15)
def test_padding_changes_nothing_by_segment_ids_or_by_a_mask(seq, left, right, seed):
    encoder, x = make(seed=seed), normal(2, seq, D_MODEL, seed=seed)
    junk = [1e3 * normal(2, length, D_MODEL, seed=seed + 1) for length in (left, right)]
    padded, ids = torch.cat((junk[0], x, junk[1]), dim=1), segments([(-1, left), (0, seq), (-1, right)]).expand(2, -1)
    for options in ({"segment_ids": ids}, {"mask": (ids >= 0)[:, None, None]}):
        y = encoder(padded, **options)
        assert torch.isfinite(y).all()
        assert_exact(y[:, left : left + seq], array(encoder(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_are_as_accurate_as_the_plain_formulas(dtype):
    encoder, x = make(dtype), normal(2, 40, D_MODEL, dtype=dtype)
    with use_backend("reference"):
        plain = encoder(x)
    assert_accurate(encoder(x), oracle(encoder, x), plain)


# Against PyTorch's own


def theirs_of(encoder, dropout=0.0):
    options = {"activation": "gelu", "batch_first": True, "norm_first": True}
    layer = nn.TransformerEncoderLayer(D_MODEL, HEADS, D_FF, dropout, **options)
    return witness(nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(D_MODEL), enable_nested_tensor=False), encoder)


@pytest.mark.parametrize("kind", MASKS)
def test_output_and_all_gradients_are_pytorchs(kind):
    attn, padding, mask = masks(kind, 3, HEADS, 5, 5)
    parts = {}
    for dtype in (torch.float64, torch.float32):
        encoder = make(torch.float32).to(dtype).train()
        x, theirs = normal(3, 5, D_MODEL, dtype=torch.float32).to(dtype), theirs_of(encoder)
        parts[dtype] = (
            gradients(lambda x, encoder=encoder: encoder(x, mask), encoder, x),
            gradients(lambda x, theirs=theirs: theirs(x, attn, padding), theirs, x),
        )
    assert_same(*parts[torch.float64])
    assert_as_accurate(*parts[torch.float32], exact=parts[torch.float64][0])


def test_causal_is_pytorchs_causal_mask():
    encoder, x = make(causal=True), normal(3, 6, D_MODEL)
    mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    assert_exact(encoder(x), array(theirs_of(encoder)(x, mask, is_causal=True)))


@pytest.mark.parametrize("use_checkpointing", [False, True])
def test_with_dropout_and_a_seed_output_and_gradients_are_pytorchs(use_checkpointing):
    encoder, x = make(dropout=0.3).train(), normal(1, 5, D_MODEL)
    attn, _, mask = masks("(q, k)", 1, HEADS, 5, 5)
    theirs = theirs_of(encoder, 0.3)

    def seeded(module, call):
        torch.manual_seed(5)
        with use_backend("reference"):  # which draws the numbers that PyTorch draws
            return gradients(call, module, x)

    wanted = seeded(theirs, lambda x: theirs(x, attn))
    assert_same(seeded(encoder, lambda x: encoder(x, mask, use_checkpointing)), wanted)
    encoder.layers[-1].dropout.p = 0.0  # and it would not be, were one of them missing
    changed = seeded(encoder, lambda x: encoder(x, mask))[0]
    assert error(changed, array(wanted[0])) > 0.01 * rms(array(wanted[0]))


# What it is made of


def test_the_state_dict_has_exactly_the_names_of_the_design():
    parts = ["norm1", "norm2", *(f"attn.{name}_proj" for name in "qkvo"), "ffn.up_proj", "ffn.down_proj"]
    names = [f"layers.{layer}.{part}" for layer in range(2) for part in parts] + ["final_norm"]
    encoder = TransformerEncoder(2, 8, 2)
    assert sorted(encoder.state_dict()) == sorted(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))
    assert encoder.layers[0].ffn.d_ff == 32
    assert encoder.layers[1].dropout.p == 0.1
    assert encoder.final_norm.eps == encoder.layers[0].norm1.eps == 1e-5
    assert len({id(parameter) for parameter in encoder.parameters()}) == len(names) * 2


def test_everything_is_made_in_the_dtype_and_on_the_device_asked_for():
    encoder = TransformerEncoder(2, 8, 2, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in encoder.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers must be an integer of at least 1, not 0"),
        ({"num_heads": 3}, "num_heads must divide d_model, but 3 does not divide 8"),
        ({"dropout": 1.0}, "dropout must be below 1"),
    ],
)
def test_numbers_that_no_encoder_can_have_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TransformerEncoder(**{"num_layers": 2, "d_model": 8, "num_heads": 2, **options})


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("training", [False, True])
def test_inputs_that_do_not_fit_are_refused_with_the_rule(training):
    encoder, x, ids = make().train(training), normal(2, 5, D_MODEL), torch.zeros(2, 5, dtype=torch.int64)
    without_heads = torch.ones(2, 5, 5, dtype=torch.bool)
    refused = [
        ({"x": x[..., :1]}, "d_model = 8"),
        ({"x": x, "mask": without_heads}, "an axis is missing"),
        ({"x": x, "mask": without_heads, "segment_ids": ids}, "an axis is missing"),
        ({"x": x, "segment_ids": ids[0]}, r"one id a token, \(..., seq\) = \(2, 5\), but they are \(5,\)"),
        ({"x": x, "segment_ids": ids[:, :1]}, r"one id a token, \(..., seq\) = \(2, 5\), but they are \(2, 1\)"),
    ]
    for arguments, message in refused:
        with pytest.raises(ShapeError, match=message):
            encoder(**arguments)


@of_torch_itself
@pytest.mark.usefixtures("shapes_unchecked")
def test_compiled_whole_it_gives_the_same_numbers_and_gradients_with_checkpointing():
    encoder, x, mask = make(num_layers=1).train(), normal(2, 5, D_MODEL), mask_of(2, 1, 5, 5)
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    ours = gradients(lambda x: encoder(x, mask), encoder, x)
    assert_same(gradients(lambda x: compiled(x, mask), encoder, x), ours)
