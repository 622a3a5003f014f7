import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prenorm import ConfigError, ModelConfig, ShapeError, TransformerDecoder, TransformerLM, use_backend

from ..oracle import models
from ..oracle.formulas import documents, may_attend
from ..oracle.inputs import leadings, mask_of, normal, randomise, seeds, segments, seqs, weights_of
from ..oracle.pytorch import MASKS, assert_as_accurate, assert_same, gradients, masks, witness
from ..oracle.tolerance import array, assert_accurate, assert_exact, error, rms

LAYERS, D_MODEL, HEADS, D_FF, SOURCE = 2, 8, 2, 12, 4
of_torch_itself = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")


def make(dtype=torch.float64, seed=0, dropout=0.0, causal=True, num_layers=LAYERS, **options):
    """A decoder with random weights and biases, in eval mode."""
    sizes = (num_layers, D_MODEL, HEADS, D_FF, dropout)
    return randomise(TransformerDecoder(*sizes, dtype=dtype, causal=causal, **options), seed).eval()


def inputs(*leading, seq=5, source_seq=SOURCE, seed=0, dtype=torch.float64):
    """x and the encoder's output."""
    return [normal(*leading, n, D_MODEL, seed=seed + i, dtype=dtype) for i, n in enumerate((seq, source_seq))]


def oracle(decoder, x, encoded, allowed=True, reads=True, eps=1e-5):
    """The papers' blocks and the final norm, one batch row at a time."""
    leading, seq = x.shape[:-2], x.shape[-2]
    allowed = np.broadcast_to(allowed, (*leading, HEADS, seq, seq))
    reads = np.broadcast_to(reads, (*leading, HEADS, seq, encoded.shape[-2]))
    weights, out = weights_of(decoder), np.empty(x.shape)
    for row in np.ndindex(leading):
        hidden = array(x)[row]
        for layer in range(LAYERS):
            own = models.below(weights, f"layers.{layer}.")
            hidden = models.decoder_block(own, hidden, array(encoded)[row], allowed[row], reads[row], HEADS, eps)
        out[row] = models.norm(weights, "final_norm", hidden, eps)
    return out


@given(leadings, seqs, seqs, st.booleans(), st.sampled_from([1e-5, 0.1]), st.booleans(), seeds)
@settings(max_examples=15)
def test_it_is_its_blocks_and_a_final_norm(leading, seq, source_seq, causal, eps, training, seed):
    decoder = make(seed=seed, causal=causal, eps=eps).train(training)
    given = inputs(*leading, seq=seq, source_seq=source_seq, seed=seed)
    assert_exact(decoder(*given), oracle(decoder, *given, may_attend(seq, seq, causal=causal), eps=eps))


def test_packed_documents_are_a_mask_for_the_self_attention_alone():
    decoder, given, mask = make(), inputs(2, seq=6), mask_of(2, 1, 6, 6)
    ids = torch.stack([segments([(3, 2), (-1, 1), (3, 3)]), segments([(0, 4), (1, 2)])])
    allowed = np.stack([documents(row)[0] for row in ids.numpy()])[:, None] & may_attend(6, 6, causal=True)
    assert_exact(decoder(*given, segment_ids=ids), oracle(decoder, *given, allowed))
    assert_exact(decoder(*given, mask, segment_ids=ids), oracle(decoder, *given, allowed & mask.numpy()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_are_as_accurate_as_the_plain_formulas(dtype):
    decoder, given = make(dtype), inputs(2, seq=40, source_seq=30, dtype=dtype)
    with use_backend("reference"):
        plain = decoder(*given)
    assert_accurate(decoder(*given), oracle(decoder, *given, may_attend(40, 40, causal=True)), plain)


# Against PyTorch's own


def theirs_of(decoder, dropout=0.0):
    options = {"activation": "gelu", "batch_first": True, "norm_first": True}
    layer = nn.TransformerDecoderLayer(D_MODEL, HEADS, D_FF, dropout, **options)
    return witness(nn.TransformerDecoder(layer, LAYERS, nn.LayerNorm(D_MODEL)), decoder)


@pytest.mark.parametrize("kind", MASKS)
def test_output_and_all_gradients_are_pytorchs(kind):
    own, own_padding, self_mask = masks(kind, 3, HEADS, 5, 5)
    cross, cross_padding, cross_mask = masks(kind, 3, HEADS, 5, SOURCE, seed=1)
    parts = {}
    for dtype in (torch.float64, torch.float32):
        decoder = make(torch.float32, causal=False).to(dtype).train()
        given, theirs = [part.to(dtype) for part in inputs(3, dtype=torch.float32)], theirs_of(decoder)
        parts[dtype] = (
            gradients(lambda *x, decoder=decoder: decoder(*x, self_mask, cross_mask), decoder, *given),
            gradients(lambda *x, theirs=theirs: theirs(*x, own, cross, own_padding, cross_padding), theirs, *given),
        )
    assert_same(*parts[torch.float64])
    assert_as_accurate(*parts[torch.float32], exact=parts[torch.float64][0])


def test_causal_is_pytorchs_causal_mask_for_the_tokens_alone():
    decoder, given = make(), inputs(3, seq=6, source_seq=6)
    mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    assert_exact(decoder(*given), array(theirs_of(decoder)(*given, mask, tgt_is_causal=True)))


@pytest.mark.parametrize("use_checkpointing", [False, True])
def test_with_dropout_and_a_seed_output_and_gradients_are_pytorchs(use_checkpointing):
    decoder, given = make(dropout=0.3, causal=False).train(), inputs(1)
    own, _, self_mask = masks("(q, k)", 1, HEADS, 5, 5)
    theirs = theirs_of(decoder, 0.3)

    def seeded(module, call):
        torch.manual_seed(5)
        with use_backend("reference"):  # which draws the numbers that PyTorch draws
            return gradients(call, module, *given)

    wanted = seeded(theirs, lambda *x: theirs(*x, own))
    assert_same(seeded(decoder, lambda *x: decoder(*x, self_mask, None, use_checkpointing)), wanted)
    decoder.layers[-1].dropout.p = 0.0  # and it would not be, were one of them missing
    changed = seeded(decoder, lambda *x: decoder(*x, self_mask))[0]
    assert error(changed, array(wanted[0])) > 0.01 * rms(array(wanted[0]))


# The cache


def run_in_pieces(decoder, x, sizes, cache, ids=None):
    ids = [None] * len(sizes) if ids is None else ids.split(sizes, dim=1)
    parts = zip(x.split(sizes, dim=1), ids, strict=True)
    return torch.cat([decoder(piece, segment_ids=own, cache=cache) for piece, own in parts], dim=1)


pieces = st.lists(st.integers(0, 4), min_size=1, max_size=4)


@given(pieces, st.sampled_from([1, 3, 0]), st.booleans(), seeds)
@settings(max_examples=8)
def test_pieces_of_any_size_with_a_cache_are_the_plain_pass(sizes, batch, masked, seed):
    decoder, (x, encoded) = make(seed=seed), inputs(batch, seq=sum(sizes), seed=seed)
    mask = mask_of(batch, 1, 1, SOURCE, seed=seed) if masked else None
    cache = decoder.make_cache(encoded, sum(sizes) + 1, mask)
    assert_exact(run_in_pieces(decoder, x, sizes, cache), array(decoder(x, encoded, cross_mask=mask)))
    assert cache.lengths.tolist() == [sum(sizes)] * batch


def test_one_token_at_a_time_ragged_and_after_reset_it_is_the_plain_pass():
    decoder, (x, encoded) = make(), inputs(2, seq=6)
    ids = torch.stack([segments([(-1, 2), (0, 3), (-1, 1)]), segments([(0, 5), (-1, 1)])])
    cache = decoder.make_cache(encoded, 6)
    for sizes in ([1] * 6, [2, 4]):
        y = run_in_pieces(decoder, x, sizes, cache, ids)
        for row in range(2):
            real = ids[row] >= 0
            assert_exact(y[row, real], array(decoder(x[row, real], encoded[row])))
        cache.reset()
        assert_exact(run_in_pieces(decoder, x, sizes, cache), array(decoder(x, encoded)))
        cache.reset()


def test_a_cache_has_the_dtype_asked_for_and_reads_the_encoder_output_once():
    decoder, (x, encoded) = make(), inputs(2)
    calls = []
    handles = [block.cross_attn.k_proj.register_forward_hook(lambda *_: calls.append(1)) for block in decoder.layers]
    run_in_pieces(decoder, x, [1] * 5, decoder.make_cache(encoded, 5))
    assert len(calls) == len(handles) == LAYERS
    assert {layer.keys.dtype for layer in decoder.make_cache(encoded, 5, dtype=torch.float32)} == {torch.float32}


@pytest.mark.usefixtures("shapes_unchecked")
def test_what_does_not_go_with_a_cache_is_refused():
    decoder, (x, encoded) = make(), inputs(2)
    cache, mask = decoder.make_cache(encoded, 5), mask_of(2, 1, 1, SOURCE)
    language_model = TransformerLM(ModelConfig(7, 8, LAYERS, 2))
    refused = [
        ({"cache": language_model.make_cache(2, 5)}, ConfigError, "takes a DecoderCache, from make_cache, not a KVC"),
        ({"cache": cache[0]}, ConfigError, "takes a DecoderCache, from make_cache, not a DecoderLayerCache"),
        ({"cache": cache, "encoder_output": encoded}, ConfigError, "encoder_output and cross_mask must be left out"),
        ({"cache": cache, "cross_mask": mask}, ConfigError, "encoder_output and cross_mask must be left out"),
        ({}, ConfigError, "needs encoder_output or a cache"),
    ]
    for arguments, error_type, message in refused:
        with pytest.raises(error_type, match=message):
            decoder(x, **arguments)
    other = randomise(TransformerDecoder(3, D_MODEL, HEADS, dtype=torch.float64, causal=True)).eval()
    with pytest.raises(ShapeError, match="this cache has 2 layers, but the model has 3"):
        other(x, cache=cache)
    assert torch.equal(decoder(x, cache=cache), decoder(x, cache=decoder.make_cache(encoded, 5)))


def test_a_pass_that_stopped_in_the_middle_leaves_the_cache_as_it_was():
    decoder, (x, encoded) = make(), inputs(2)
    cache = decoder.make_cache(encoded, 5)

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = decoder.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        decoder(x[:, :2], cache=cache)
    handle.remove()
    assert_exact(run_in_pieces(decoder, x, [2, 3], cache), array(decoder(x, encoded)))


# What it is made of


def test_the_state_dict_has_exactly_the_names_of_the_design():
    parts = ["norm1", "norm2", "norm3", "ffn.up_proj", "ffn.down_proj"]
    parts += [f"{part}.{name}_proj" for part in ("self_attn", "cross_attn") for name in "qkvo"]
    names = [f"layers.{layer}.{part}" for layer in range(2) for part in parts] + ["final_norm"]
    decoder = TransformerDecoder(2, 8, 2)
    assert sorted(decoder.state_dict()) == sorted(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))
    assert decoder.layers[0].ffn.d_ff == 32
    assert decoder.layers[1].dropout.p == 0.1
    assert decoder.final_norm.eps == decoder.layers[0].norm3.eps == 1e-5
    assert len({id(parameter) for parameter in decoder.parameters()}) == len(names) * 2


def test_everything_is_made_in_the_dtype_and_on_the_device_asked_for():
    decoder = TransformerDecoder(2, 8, 2, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in decoder.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers must be an integer of at least 1, not 0"),
        ({"num_heads": 3}, "num_heads must divide d_model, but 3 does not divide 8"),
        ({"dropout": 1.0}, "dropout must be below 1"),
    ],
)
def test_numbers_that_no_decoder_can_have_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TransformerDecoder(**{"num_layers": 2, "d_model": 8, "num_heads": 2, **options})


@of_torch_itself
@pytest.mark.usefixtures("shapes_unchecked")
def test_compiled_whole_it_gives_the_same_numbers_and_gradients_with_checkpointing():
    decoder, given = make(num_layers=1).train(), inputs(2)
    masks = {"self_mask": mask_of(2, 1, 5, 5), "cross_mask": mask_of(2, 1, 1, SOURCE)}
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    ours = gradients(lambda *x: decoder(*x, **masks), decoder, *given)
    assert_same(gradients(lambda *x: compiled(*x, **masks), decoder, *given), ours)
