import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prenorm import ConfigError, LayerNorm, RangeError, ShapeError, TransformerDecoderBlock, use_backend

from ..oracle import models
from ..oracle.formulas import documents, may_attend
from ..oracle.inputs import (
    layouts,
    leadings,
    mask_of,
    normal,
    randomise,
    rows_of_segments,
    seeds,
    segments,
    seqs,
    weights_of,
)
from ..oracle.pytorch import MASKS, assert_as_accurate, assert_same, gradients, masks, witness
from ..oracle.tolerance import array, assert_accurate, assert_exact, error, rms

D_MODEL, HEADS, D_FF, SOURCE = 8, 2, 12, 4

backends = pytest.mark.parametrize("backend", ["auto", "reference"])
mask_shapes = st.sampled_from([("q",), ("b", 1, "q"), ("b", 1, 1), ("b", "h", "q"), (1, "h", "q")])


def make(dtype=torch.float64, seed=0, dropout=0.0, **options):
    """A block with random weights and biases, in eval mode."""
    return randomise(TransformerDecoderBlock(D_MODEL, HEADS, D_FF, dropout, dtype=dtype, **options), seed).eval()


def inputs(*leading, seq=5, source_seq=SOURCE, seed=0, dtype=torch.float64, layout="contiguous"):
    """x and the encoder's output."""
    return (
        normal(*leading, seq, D_MODEL, seed=seed, dtype=dtype, layout=layout),
        normal(*leading, source_seq, D_MODEL, seed=seed + 1, dtype=dtype, layout=layout),
    )


def oracle(block, x, encoded, allowed=True, reads=True, eps=1e-5):
    """The papers' block, one batch row at a time; `allowed` and `reads` broadcast to the scores."""
    leading, seq, source_seq = x.shape[:-2], x.shape[-2], encoded.shape[-2]
    allowed = np.broadcast_to(allowed, (*leading, HEADS, seq, seq))
    reads = np.broadcast_to(reads, (*leading, HEADS, seq, source_seq))
    out, weights = np.empty(x.shape), weights_of(block)
    for row in np.ndindex(leading):
        rows = (array(x)[row], array(encoded)[row], allowed[row], reads[row])
        out[row] = models.decoder_block(weights, *rows, HEADS, eps)
    return out


# What it computes


@given(leadings, seqs, seqs, st.booleans(), st.sampled_from([1e-5, 0.1]), layouts, seeds)
@settings(max_examples=20)
def test_it_is_the_papers_formulas(leading, seq, source_seq, causal, eps, layout, seed):
    block = make(seed=seed, causal=causal, eps=eps)
    given = inputs(*leading, seq=seq, source_seq=source_seq, seed=seed, layout=layout)
    assert_exact(block(*given), oracle(block, *given, may_attend(seq, seq, causal=causal), eps=eps))


@given(mask_shapes, mask_shapes, seqs, st.booleans(), seeds)
@settings(max_examples=20)
def test_masks_of_every_allowed_shape_say_who_may_attend(self_shape, cross_shape, seq, causal, seed):
    block, given = make(seed=seed, causal=causal), inputs(3, seq=seq, seed=seed)
    sizes = {"b": 3, "h": HEADS, "q": seq, 1: 1}
    own = mask_of(*(sizes[axis] for axis in self_shape), seq, seed=seed)
    cross = mask_of(*(sizes[axis] for axis in cross_shape), SOURCE, seed=seed + 1)
    allowed = own.numpy() & may_attend(seq, seq, causal=causal)
    assert_exact(block(*given, own, cross), oracle(block, *given, allowed, cross.numpy()))
    assert_exact(block(*given, cross_mask=cross, self_mask=own), array(block(*given, own, cross)))


@given(rows_of_segments, st.booleans(), st.booleans(), seeds)
@settings(max_examples=15)
def test_packed_documents_are_a_mask_for_the_self_attention_alone(row, causal, masked, seed):
    block, given = make(seed=seed, causal=causal), inputs(seq=len(row), seed=seed)
    mask = mask_of(1, len(row), len(row), seed=seed) if masked else None
    allowed = documents(row.numpy())[0] & may_attend(len(row), len(row), causal=causal)
    allowed = allowed if mask is None else allowed & mask.numpy()
    assert_exact(block(*given, mask, segment_ids=row), oracle(block, *given, allowed))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_are_as_accurate_as_the_plain_formulas(dtype, causal):
    block, given = make(dtype, causal=causal), inputs(2, seq=40, source_seq=30, dtype=dtype)
    with use_backend("reference"):
        plain = block(*given)
    assert_accurate(block(*given), oracle(block, *given, may_attend(40, 40, causal=causal)), plain)


def changed_rows(block, given, place, of):
    """Which outputs change when one token of x (of=0) or of the encoder's output (of=1) does."""
    moved = [part.clone() for part in given]
    moved[of][place] = moved[of][place].flip(-1)  # a LayerNorm sees neither a shift nor another scale
    return (block(*given) != block(*moved)).any(-1).tolist()


def test_causal_holds_for_x_and_never_for_the_encoder_output():
    block, given = make(causal=True), inputs(seq=4, source_seq=4)
    for place in range(4):
        assert changed_rows(block, given, place, of=0) == [token >= place for token in range(4)]
        assert changed_rows(block, given, place, of=1) == [True] * 4
    assert changed_rows(make(), given, 3, of=0) == [True] * 4


@backends
@pytest.mark.parametrize("training", [False, True])
def test_tokens_that_see_nobody_get_the_output_biases_and_give_finite_gradients(training, backend):
    block = make(torch.float32, dropout=0.5).train(training)
    block.dropout.p = block.ffn.dropout.p = 0.0  # what is left is dropped attention weights
    x, encoded = (part.requires_grad_() for part in inputs(2, seq=6, dtype=torch.float32))
    own, cross = torch.ones(6, 6, dtype=torch.bool), torch.ones(2, 1, 6, SOURCE, dtype=torch.bool)
    own[1::2] = False
    cross[:, :, 1::2] = False
    with use_backend(backend):
        y = block(x, encoded, own, cross)
        y.square().sum().backward()
        alone = x + block.self_attn.o_proj.bias
        alone = alone + block.cross_attn.o_proj.bias
        alone = alone + block.ffn(block.norm3(alone))
    assert torch.equal(y[:, 1::2], alone[:, 1::2])
    assert all(torch.isfinite(tensor.grad).all() for tensor in (x, encoded, *block.parameters()))


@pytest.mark.parametrize("seq", [0, 1])
@pytest.mark.parametrize("source_seq", [0, 1])
def test_sequences_of_one_token_or_none_are_fine(seq, source_seq):
    block, given = make(), inputs(2, seq=seq, source_seq=source_seq)
    assert_exact(block(*given), oracle(block, *given))


@backends
def test_its_gradients_are_right(backend):
    block, given = make(causal=True), [part.requires_grad_() for part in inputs(2, seq=3, source_seq=2)]
    names, parameters = zip(*block.named_parameters(), strict=True)
    own = torch.tensor([[[[True, False, False], [False, False, False], [True, True, True]]]])
    cross = torch.tensor([[[[True, False]]], [[[False, False]]]])

    def call(x, encoded, *parameters):
        weights = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(block, weights, (x, encoded, own, cross))

    with use_backend(backend):
        assert torch.autograd.gradcheck(call, (*given, *parameters), fast_mode=True)


# Against PyTorch's own


def theirs_of(block, dropout=0.0):
    options = {"activation": "gelu", "batch_first": True, "norm_first": True}
    return witness(nn.TransformerDecoderLayer(D_MODEL, HEADS, D_FF, dropout, **options), block)


@pytest.mark.parametrize("kind", MASKS)
def test_output_and_all_gradients_are_pytorchs(kind):
    own, own_padding, self_mask = masks(kind, 3, HEADS, 5, 5)
    cross, cross_padding, cross_mask = masks(kind, 3, HEADS, 5, SOURCE, seed=1)
    parts = {}
    for dtype in (torch.float64, torch.float32):
        block = make(torch.float32).to(dtype)
        given = [part.to(dtype) for part in inputs(3, dtype=torch.float32)]
        theirs = theirs_of(block)
        parts[dtype] = (
            gradients(lambda *x, block=block: block(*x, self_mask, cross_mask), block, *given),
            gradients(lambda *x, theirs=theirs: theirs(*x, own, cross, own_padding, cross_padding), theirs, *given),
        )
    assert_same(*parts[torch.float64])
    assert_as_accurate(*parts[torch.float32], exact=parts[torch.float64][0])


def with_dropout(module, call, *given):
    torch.manual_seed(5)
    with use_backend("reference"):  # which draws the numbers that PyTorch draws
        return gradients(call, module, *given)


def test_with_dropout_and_a_seed_output_and_gradients_are_pytorchs():
    block, given = make(dropout=0.3).train(), inputs(1)
    own, own_padding, self_mask = masks("(q, k) and padding", 1, HEADS, 5, 5)
    cross, cross_padding, cross_mask = masks("padding", 1, HEADS, 5, SOURCE, seed=1)
    theirs = theirs_of(block, 0.3)

    def ours(*given):
        return block(*given, self_mask, cross_mask)

    wanted = with_dropout(theirs, lambda *x: theirs(*x, own, cross, own_padding, cross_padding), *given)
    assert_same(with_dropout(block, ours, *given), wanted)
    places = [(block.self_attn, "dropout"), (block.cross_attn, "dropout"), (block.dropout, "p")]
    for module, name in (*places, (block.ffn.dropout, "p")):  # and it would not be, were one of them missing
        setattr(module, name, 0.0)
        assert error(with_dropout(block, ours, *given)[0], array(wanted[0])) > 0.01 * rms(array(wanted[0]))
        setattr(module, name, 0.3)


@pytest.mark.parametrize("silent", ["self_attn.o_proj", "cross_attn.o_proj", "ffn.down_proj"])
def test_what_each_sublayer_adds_is_dropped_and_x_is_not(silent):
    # Only one sublayer adds anything: a constant, its bias. Dropped, x is left as it was.
    block, p = make(torch.float32, dropout=0.25).train(), 0.25
    for name in ("self_attn.o_proj", "cross_attn.o_proj", "ffn.down_proj"):
        nn.init.zeros_(block.get_submodule(name).weight)
        nn.init.constant_(block.get_submodule(name).bias, 3.0 if name == silent else 0.0)
    x, encoded = inputs(64, seq=40, dtype=torch.float32)
    zero = torch.zeros_like(x)
    added = block(zero, encoded)
    assert set(added.unique().tolist()) == {0.0, 4.0}
    assert abs((added == 0).double().mean().item() - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5
    assert torch.equal(block.eval()(x, encoded), x + 3)


def test_dropout_acts_in_training_alone():
    block, given = make(dropout=0.5), inputs(2)
    plain = make()(*given)
    assert torch.equal(block(*given), plain)
    assert not torch.equal(block.train()(*given), plain)


# The cache: tokens in pieces, an encoder output that is read once


def run_in_pieces(block, x, sizes, cache, ids=None, cross_mask=None):
    outputs = []
    ids = [None] * len(sizes) if ids is None else ids.split(sizes, dim=1)
    for piece, piece_ids in zip(x.split(sizes, dim=1), ids, strict=True):
        outputs.append(block(piece, cross_mask=cross_mask, segment_ids=piece_ids, cache=cache))
    return torch.cat(outputs, dim=1)


pieces = st.lists(st.integers(0, 4), min_size=1, max_size=4)


@given(pieces, st.sampled_from([1, 3, 0]), st.booleans(), seeds)
@settings(max_examples=20)
def test_pieces_of_any_size_with_a_cache_are_the_plain_pass(sizes, batch, masked, seed):
    block, (x, encoded) = make(seed=seed, causal=True), inputs(batch, seq=sum(sizes), seed=seed)
    mask = mask_of(batch, 1, 1, SOURCE, seed=seed) if masked else None
    cache = block.make_cache(encoded, sum(sizes) + 1)
    assert_exact(run_in_pieces(block, x, sizes, cache, cross_mask=mask), array(block(x, encoded, cross_mask=mask)))
    assert cache.lengths.tolist() == [sum(sizes)] * batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_token_at_a_time_is_as_accurate_as_the_plain_pass(dtype):
    block, (x, encoded) = make(dtype, causal=True), inputs(2, seq=40, source_seq=30, dtype=dtype)
    with use_backend("reference"):
        plain = block(x, encoded)
    actual = run_in_pieces(block, x, [1] * 40, block.make_cache(encoded, 40))
    assert_accurate(actual, oracle(block, x, encoded, may_attend(40, 40, causal=True)), plain)


@given(seeds)
@settings(max_examples=5)
def test_ragged_rows_are_each_alone(seed):
    block, (x, encoded) = make(seed=seed, causal=True), inputs(2, seq=6, seed=seed)
    ids = torch.stack([segments([(-1, 2), (0, 3), (-1, 1)]), segments([(0, 5), (-1, 1)])])
    for sizes in ([6], [1, 4, 1], [3, 3]):
        cache = block.make_cache(encoded, 6)
        y = run_in_pieces(block, x, sizes, cache, ids)
        for row in range(2):
            real = ids[row] >= 0
            assert_exact(y[row, real], array(block(x[row, real], encoded[row])))
        assert cache.lengths.tolist() == [3, 5]


def test_reset_forgets_the_tokens_and_keeps_the_encoder_output():
    block, (x, encoded) = make(causal=True), inputs(2)
    plain, cache = block(x, encoded), block.make_cache(encoded, 5)
    for _ in range(2):
        assert_exact(run_in_pieces(block, x, [2, 3], cache), array(plain))
        cache.reset()
        assert cache.lengths.tolist() == [0, 0]


@pytest.mark.parametrize("stops", ["norm2", "ffn"])
def test_a_block_that_an_error_stopped_after_its_self_attention_leaves_the_cache_as_it_was(stops, monkeypatch):
    block, (x, encoded) = make(causal=True), inputs(2)
    cache, plain = block.make_cache(encoded, 5), block(x, encoded)
    for piece, wanted in zip(x.split([2, 3], 1), plain.split([2, 3], 1), strict=True):
        with monkeypatch.context() as patch:
            patch.setattr(block.get_submodule(stops), "forward", lambda x: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                block(piece, cache=cache)
        assert_exact(block(piece, cache=cache), array(wanted))


def test_a_self_mask_with_a_cache_goes_by_place():
    block, (x, encoded), mask = make(causal=True), inputs(2), mask_of(2, 1, 5, 5)
    cache, plain = block.make_cache(encoded, 5), block(x, encoded, mask)
    for start, stop in ((0, 3), (3, 4), (4, 5)):
        y = block(x[:, start:stop], self_mask=mask[:, :, start:stop, :stop], cache=cache)
        assert_exact(y, array(plain[:, start:stop]))


def test_gradients_reach_the_encoder_output_through_the_cache():
    block, (x, encoded), weigh = make(causal=True), inputs(2), normal(2, 5, D_MODEL, seed=9)
    encoded.requires_grad_()
    (plain,) = torch.autograd.grad((block(x, encoded) * weigh).sum(), encoded)
    y = run_in_pieces(block, x, [5], block.make_cache(encoded, 5))
    (cached,) = torch.autograd.grad((y * weigh).sum(), encoded)
    assert_exact(cached, array(plain))


def test_a_cache_is_in_the_dtype_of_the_encoder_output_unless_told():
    block, (_, encoded) = make(torch.bfloat16, causal=True), inputs(2, dtype=torch.bfloat16)
    assert block.make_cache(encoded, 3).keys.dtype == torch.bfloat16
    assert block.make_cache(encoded, 3, torch.float32).keys.dtype == torch.float32


REFUSED = {
    "the wrong cache": ({"cache": "self_attn"}, ConfigError, "takes a DecoderLayerCache, from make_cache, not <"),
    "the encoder output again": ({"encoder_output": (2, SOURCE)}, ConfigError, "encoder_output must be left out with"),
    "neither": ({"cache": None}, ConfigError, "needs encoder_output or a cache, but has neither"),
    "batch size": ({"x": (1, 1)}, ShapeError, "made for batch size 2, but x has batch size 1"),
    "room": ({"x": (2, 5)}, RangeError, "at most max_seq_len = 5 tokens, but it has 2 and this call adds"),
    "another batch dim": ({"x": (1, 2, 1)}, ShapeError, r"with a cache x must be \(batch, seq, d_model\)"),
    "self mask": ({"self_mask": (1, 9)}, ShapeError, r"mask must be \(q, kv\) = \(1, 3\)"),
    "cross mask": ({"cross_mask": (2, 1, SOURCE)}, ShapeError, r"\(2, 1, 4\): an axis is missing"),
}


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_a_call_that_is_refused_leaves_the_cache_as_it_was(arguments, error, message):
    block, (x, encoded) = make(causal=True), inputs(2, seq=3)
    caches = [block.make_cache(encoded, 5) for _ in range(2)]
    for cache in caches:
        block(x[:, :2], cache=cache)
    options = {"x": (2, 1), "cache": caches[0]} | arguments
    for name, value in options.items():
        if isinstance(value, tuple):
            ones = torch.ones(*value, *([] if "mask" in name else [D_MODEL]), dtype=torch.float64)
            options[name] = ones.bool() if "mask" in name else ones
    if options["cache"] == "self_attn":
        options["cache"] = block.self_attn.make_cache(2, 5)
    with pytest.raises(error, match=message):
        block(**options)
    assert torch.equal(block(x[:, 2:], cache=caches[0]), block(x[:, 2:], cache=caches[1]))


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_cache_needs_a_causal_block():
    block, (x, encoded) = make(), inputs(2)
    with pytest.raises(ConfigError, match="a cache needs causal=True"):
        block(x, cache=block.make_cache(encoded, 5))


# What it is made of


def test_the_state_dict_has_exactly_the_names_of_the_design():
    block = TransformerDecoderBlock(8, 2)
    names = ["norm1", "norm2", "norm3", "ffn.up_proj", "ffn.down_proj"]
    names += [f"{part}.{name}_proj" for part in ("self_attn", "cross_attn") for name in "qkvo"]
    assert sorted(block.state_dict()) == sorted(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))
    assert block.ffn.d_ff == 32
    dropouts = [block.dropout.p, block.self_attn.dropout, block.cross_attn.dropout, block.ffn.dropout.p]
    assert dropouts == [0.1] * 4
    assert [module.eps for module in block.modules() if isinstance(module, LayerNorm)] == [1e-5] * 3


def test_everything_is_made_in_the_dtype_and_on_the_device_asked_for():
    block = TransformerDecoderBlock(8, 2, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in block.parameters()} == {("meta", torch.bfloat16)}
    x = torch.ones(2, 3, 8, device="meta", dtype=torch.bfloat16)
    assert block(x, x[:, :2]).shape == (2, 3, 8)


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
        TransformerDecoderBlock(**{"d_model": 8, "num_heads": 2, **options})


@pytest.mark.usefixtures("shapes_unchecked")
def test_inputs_that_do_not_fit_are_refused_with_the_rule():
    block, (x, encoded) = make(), inputs(2)
    refused = [
        ((x[..., :1], encoded), "d_model = 8"),
        ((x, encoded[..., :1]), "d_model = 8"),
        ((x, encoded[:1]), r"those of the query are \(2,\) and those of the key \(1,\)"),
        ((x, encoded, torch.ones(2, 5, 5).bool()), r"\(2, 5, 5\): an axis is missing"),
        ((x, encoded, None, torch.ones(2, 5, SOURCE).bool()), r"\(2, 5, 4\): an axis is missing"),
        ((x, encoded, None, torch.ones(5, 5).bool()), r"\(q, kv\) = \(5, 4\)"),
    ]
    for arguments, message in refused:
        with pytest.raises(ShapeError, match=message):
            block(*arguments)
