"""One equality law: however the tokens are passed, the block computes the papers' formulas."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prenorm import (
    ConfigError,
    RangeError,
    RMSNorm,
    RopeScaling,
    RotaryEmbedding,
    ShapeError,
    TransformerBlock,
    use_backend,
)

from ..oracle import models
from ..oracle.inputs import (
    ids_of,
    integers,
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
from ..oracle.tolerance import array, assert_accurate, assert_exact, assert_rounding_alone

D_MODEL, D_FF, MAX_SEQ_LEN = 8, 12, 64
SCALINGS = (RopeScaling("linear", 3.0), RopeScaling("llama3", 8.0, original_max_seq_len=16))

shapes = st.fixed_dictionaries(
    {
        "num_heads": st.sampled_from([2, 4]),
        "num_kv_heads": st.sampled_from([None, 1, 2]),
        "head_dim": st.sampled_from([None, 6]),
        "rope_theta": st.sampled_from([10000.0, 30.0]),
        "eps": st.sampled_from([1e-6, 1e-2]),
        "rope_interleaved": st.booleans(),
        "rope_scaling": st.sampled_from([None, *SCALINGS]),
        "qk_norm": st.booleans(),
    }
)
biases = st.fixed_dictionaries({"qkv_bias": st.booleans(), "o_bias": st.booleans()})
restrictions = st.sampled_from(
    [{"causal": False}, {"causal": True}, {"causal": True, "window": 1}, {"causal": True, "window": 3}]
)
causal_options = st.sampled_from(
    [
        {},
        {"window": 3},
        {"num_kv_heads": 1, "qk_norm": True},
        {"num_kv_heads": 2, "head_dim": 6, "window": 2, "rope_interleaved": False, "qkv_bias": True, "o_bias": True},
    ]
)


def make(dtype=torch.float64, seed=0, **options):
    """A block with random weights in eval mode, by default with 4 heads."""
    options = {"num_heads": 4, **options}
    block = TransformerBlock(D_MODEL, d_ff=D_FF, max_seq_len=MAX_SEQ_LEN, dtype=dtype, **options)
    return randomise(block, seed).eval()


def causal_block(**options):
    return make(causal=True, **options)


def oracle(block, x, token_positions=None, *, mask=None, segment_ids=None, **options):
    """The papers' formulas with the block's weights; `options` are those it was made with."""
    options = {"num_heads": 4, **options}
    del options["qkv_bias"], options["o_bias"]  # the oracle sees them among the weights
    if options.get("rope_scaling") is not None:
        options["rope_scaling"] = dataclasses.asdict(options["rope_scaling"])
    arrays = {name: ids_of(x) for name, x in (("mask", mask), ("segment_ids", segment_ids))}
    return models.block(weights_of(block), array(x), ids_of(token_positions), **arrays, **options)


# What it computes


@given(shapes, biases, restrictions, leadings, seqs, layouts, seeds)
def test_with_every_option_it_is_the_papers_formulas(shape, bias, restriction, leading, seq, layout, seed):
    options = {**shape, **bias, **restriction}
    block, x = make(seed=seed, **options), normal(*leading, seq, D_MODEL, seed=seed, layout=layout)
    assert_exact(block(x), oracle(block, x, **options))


position_shapes = st.sampled_from(["(seq,)", "(..., seq)", "(1, ..., seq)"])


@given(shapes, restrictions, leadings, seqs, position_shapes, seeds)
def test_tokens_are_turned_by_their_positions_unsorted_and_repeated(shape, restriction, leading, seq, kind, seed):
    options = {**shape, **restriction, "qkv_bias": False, "o_bias": False}
    block, x = make(seed=seed, **options), normal(*leading, seq, D_MODEL, seed=seed)
    dims = {"(seq,)": (), "(..., seq)": leading, "(1, ..., seq)": (1,) * min(1, len(leading)) + leading[1:]}[kind]
    positions = integers(*dims, seq, limit=MAX_SEQ_LEN, seed=seed)
    assert_exact(block(x, positions), oracle(block, x, positions, **options))


mask_shapes = st.sampled_from([("q",), ("b", 1, "q"), ("b", 1, 1), ("b", "h", "q"), (1, "h", "q"), (1, 1, 1)])


@given(restrictions, mask_shapes, seqs, seeds)
def test_a_mask_of_every_allowed_shape_says_who_may_attend(restriction, shape, seq, seed):
    options = {**restriction, "num_heads": 2, "qkv_bias": False, "o_bias": False}
    block, x = make(seed=seed, **options), normal(3, seq, D_MODEL, seed=seed)
    sizes = {"b": 3, "h": 2, "q": seq, 1: 1}
    mask = mask_of(*(sizes[dim] for dim in shape), seq, seed=seed)
    assert_exact(block(x, mask=mask), oracle(block, x, mask=mask, **options))


@given(restrictions, st.lists(rows_of_segments, min_size=1, max_size=3), st.booleans(), st.booleans(), seeds)
def test_packed_documents_are_the_papers_formulas_with_a_mask(restriction, rows, masked, placed, seed):
    options = {**restriction, "qkv_bias": False, "o_bias": False}
    seq = min(len(row) for row in rows)
    ids = torch.stack([row[:seq] for row in rows])
    block, x = make(seed=seed, **options), normal(len(rows), seq, D_MODEL, seed=seed)
    mask = mask_of(len(rows), 1, seq, seq, seed=seed) if masked else None
    positions = integers(len(rows), seq, limit=MAX_SEQ_LEN, seed=seed) if placed else None
    y = block(x, positions, mask=mask, segment_ids=ids)
    assert_exact(y, oracle(block, x, positions, mask=mask, segment_ids=ids, **options))


@given(causal_options, st.lists(st.tuples(st.integers(0, 1), st.integers(1, 4)), min_size=1, max_size=4), seeds)
def test_packed_documents_are_each_alone(options, runs, seed):
    # Ids are made different from one run to the next; two runs far apart may share one and are two documents still.
    lengths = [length for _, length in runs]
    row = segments([(2 * (i % 2) + identity, length) for i, (identity, length) in enumerate(runs)])
    block, x = causal_block(seed=seed, **options), normal(len(row), D_MODEL, seed=seed)
    alone = torch.cat([block(document) for document in x.split(lengths)])
    assert_exact(block(x, segment_ids=row), array(alone))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(shapes, biases, restrictions, seeds)
def test_the_kernels_are_as_accurate_as_the_plain_formulas(dtype, shape, bias, restriction, seed):
    options = {**shape, **bias, **restriction}
    block, x = make(dtype, seed, **options), normal(2, 40, D_MODEL, seed=seed, dtype=dtype)
    wanted = oracle(block, x, **options)
    with use_backend("reference"):
        plain = block(x)
    assert_accurate(block(x), wanted, plain)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_its_gradients_are_right(backend):
    block = make(
        num_heads=2, num_kv_heads=1, head_dim=2, causal=True, window=2, qk_norm=True, qkv_bias=True, o_bias=True
    )
    x = normal(2, 3, D_MODEL)[..., :].requires_grad_()
    names, parameters = zip(*block.named_parameters(), strict=True)
    mask = torch.tensor([[[[True, False, False], [False, False, False], [True, True, True]]]])

    def call(x, *parameters):
        arguments = (x, torch.tensor([5, 0, 5]))
        weights = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(block, weights, arguments, {"mask": mask})

    with use_backend(backend):
        assert torch.autograd.gradcheck(call, (x, *parameters), fast_mode=True)


# Who sees whom


@given(causal_options, seqs, st.integers(1, 6), seeds)
def test_a_later_token_never_reaches_an_earlier_output(options, seq, later, seed):
    for dtype in (torch.float32, torch.bfloat16):
        block, x = (
            causal_block(dtype=dtype, seed=seed, **options),
            normal(2, seq + later, D_MODEL, seed=seed, dtype=dtype),
        )
        changed = torch.cat((x[:, :seq], 100 * normal(2, later, D_MODEL, seed=seed + 1, dtype=dtype)), dim=1)
        assert torch.equal(block(x)[:, :seq], block(changed)[:, :seq])


@pytest.mark.parametrize("options", [{}, {"window": 50}, {"num_kv_heads": 2}])
def test_nor_does_it_in_the_long_rows_that_a_kernel_cuts_into_blocks(options):
    block, x = causal_block(dtype=torch.bfloat16, **options), normal(200, D_MODEL, dtype=torch.bfloat16)
    positions = torch.arange(200) % MAX_SEQ_LEN
    for later in (1, 100, 127, 128, 150):
        changed = torch.cat((x[:later], 100 * x[later:].flip(0)))
        assert torch.equal(block(x, positions)[:later], block(changed, positions)[:later])


def test_without_causal_every_token_reaches_every_output():
    block, x = make(), normal(5, D_MODEL)
    for token in range(5):
        changed = x.clone()
        changed[token] += 1
        assert (block(x) != block(changed)).any(-1).all()


def test_a_window_reaches_itself_and_the_places_just_before():
    block, x = causal_block(window=3), normal(7, D_MODEL)
    changed = x.clone()
    changed[2] += 1
    assert (block(x) != block(changed)).any(-1).tolist() == [False, False, True, True, True, False, False]


def test_rows_of_a_batch_never_meet():
    block, x = causal_block(dtype=torch.float32), normal(2, 3, 4, D_MODEL, dtype=torch.float32)
    changed = x.clone()
    changed[1, 2] += 1
    same = (block(x) == block(changed)).all(-1).all(-1)
    assert same.tolist() == [[True, True, True], [True, True, False]]


@given(st.integers(0, MAX_SEQ_LEN - 5), seeds)
def test_only_the_distance_between_positions_counts(shift, seed):
    block, x, positions = make(seed=seed), normal(2, 4, D_MODEL, seed=seed), integers(2, 4, limit=5, seed=seed)
    assert_exact(block(x, positions + shift), array(block(x, positions)))


@given(seqs, seeds)
def test_without_causal_tokens_may_come_in_any_order_with_their_positions(seq, seed):
    block, x, positions = make(seed=seed), normal(seq, D_MODEL, seed=seed), integers(seq, limit=50, seed=seed)
    order = torch.randperm(seq, generator=torch.Generator().manual_seed(seed))
    assert_exact(block(x[order], positions[order]), array(block(x, positions)[order]))


def test_positions_turn_and_do_nothing_else():
    # Causality goes by place: reversed positions still leave the later token out.
    block, x, positions = causal_block(), normal(4, D_MODEL), torch.tensor([3, 2, 1, 0])
    changed = x.clone()
    changed[3] += 1
    assert torch.equal(block(x, positions)[:3], block(changed, positions)[:3])
    assert not torch.equal(block(x, positions), block(x))


@given(causal_options, seqs, st.integers(0, 3), st.integers(0, 3), seeds)
def test_padding_changes_nothing(options, seq, left, right, seed):
    block, x = causal_block(seed=seed, **options), normal(2, seq, D_MODEL, seed=seed)
    junk = [1e3 * normal(2, length, D_MODEL, seed=seed + 1) for length in (left, right)]
    ids = segments([(-1, left), (0, seq), (-2, right)]).expand(2, -1)
    padded = block(torch.cat((junk[0], x, junk[1]), dim=1), segment_ids=ids)
    assert_exact(padded[:, left : left + seq], array(block(x)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_that_see_nobody_get_nothing_from_attention_and_give_finite_gradients(training, backend, dtype):
    block, x = make(dtype).train(training), normal(2, 40, D_MODEL, dtype=dtype).requires_grad_()
    mask = torch.ones(40, 40, dtype=torch.bool)
    mask[1::2] = False
    with use_backend(backend):
        y = block(x, mask=mask)
        y.sum().backward()
        alone = x + block.ffn(block.norm2(x))
    assert torch.equal(y[:, 1::2], alone[:, 1::2])
    assert all(torch.isfinite(tensor.grad).all() for tensor in (x, *block.parameters()))


# The cache: tokens in pieces


def run_in_pieces(block, x, sizes, cache, ids=None, token_positions=None):
    """Feed x to the block piece by piece."""
    outputs, start = [], 0
    for size in sizes:
        piece = slice(start, start + size)
        outputs.append(
            block(
                x[:, piece],
                None if token_positions is None else token_positions[..., piece],
                segment_ids=None if ids is None else ids[:, piece],
                cache=cache,
            )
        )
        start += size
    return torch.cat(outputs, dim=1)


pieces = st.lists(st.integers(0, 5), min_size=1, max_size=5)


@given(causal_options, pieces, st.sampled_from([1, 3, 0]), seeds)
def test_pieces_of_any_size_with_a_cache_are_the_plain_pass(options, sizes, batch, seed):
    block, x = causal_block(seed=seed, **options), normal(batch, sum(sizes), D_MODEL, seed=seed)
    cache = block.make_cache(batch_size=batch, max_seq_len=sum(sizes) + 1)
    assert_exact(run_in_pieces(block, x, sizes, cache), array(block(x)))
    assert cache.lengths.tolist() == [sum(sizes)] * batch


@given(causal_options, st.integers(1, 9), seeds)
def test_one_token_at_a_time_is_the_plain_pass(options, seq, seed):
    block, x = causal_block(seed=seed, **options), normal(2, seq, D_MODEL, seed=seed)
    assert_exact(run_in_pieces(block, x, [1] * seq, block.make_cache(2, seq)), array(block(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(causal_options, seeds)
@settings(max_examples=6)
def test_with_a_cache_it_is_as_accurate_as_without(dtype, options, seed):
    block, x = causal_block(dtype=dtype, seed=seed, **options), normal(2, 40, D_MODEL, seed=seed, dtype=dtype)
    exact = causal_block(**options)
    exact.load_state_dict(block.state_dict())
    with use_backend("reference"):
        plain = block(x)
    for sizes in ([1] * 40, [33, 1, 6]):
        assert_accurate(run_in_pieces(block, x, sizes, block.make_cache(2, 40)), array(exact(x.double())), plain)


@given(causal_options, pieces, seeds)
def test_positions_with_a_cache_are_those_of_the_plain_pass(options, sizes, seed):
    block, x = causal_block(seed=seed, **options), normal(2, sum(sizes), D_MODEL, seed=seed)
    positions = integers(2, sum(sizes), limit=MAX_SEQ_LEN, seed=seed)
    cached = run_in_pieces(block, x, sizes, block.make_cache(2, 30), token_positions=positions)
    assert_exact(cached, array(block(x, positions)))


ragged_pieces = st.lists(
    st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 2))] * 2), min_size=1, max_size=4
)


@given(causal_options, ragged_pieces, seeds)
def test_ragged_rows_padded_left_and_right_are_each_alone(options, chunks, seed):
    # Each piece of each row is padding, tokens, padding; rows run out of step, and their tokens never notice.
    block = causal_block(seed=seed, **options)
    cache = block.make_cache(2, 30)
    tokens, outputs = [[], []], [[], []]
    for step, rows in enumerate(chunks):
        seq = max(sum(row) for row in rows)
        ids = torch.stack([segments([(-1, left), (0, n), (-1, seq - left - n)]) for left, n, _ in rows])
        x = normal(2, seq, D_MODEL, seed=seed + step)
        y = block(x, segment_ids=ids, cache=cache)
        for row in range(2):
            tokens[row].append(x[row, ids[row] >= 0])
            outputs[row].append(y[row, ids[row] >= 0])
    for row in range(2):
        assert_exact(torch.cat(outputs[row]), array(block(torch.cat(tokens[row]))))
    assert cache.lengths.tolist() == [sum(len(x) for x in row) for row in tokens]


@given(causal_options, seeds)
def test_after_ragged_prompts_plain_tokens_go_on_in_every_row(options, seed):
    block, lengths = causal_block(seed=seed, **options), (2, 5)
    x, more = normal(2, 5, D_MODEL, seed=seed), normal(2, 3, D_MODEL, seed=seed + 1)
    ids = torch.stack([segments([(-1, 3), (0, 2)]), segments([(0, 5)])])
    cache = block.make_cache(2, 8)
    block(x, segment_ids=ids, cache=cache)
    y = run_in_pieces(block, more, [1, 2], cache)
    for row, length in enumerate(lengths):
        assert_exact(y[row], array(block(torch.cat((x[row, 5 - length :], more[row])))[length:]))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("shape", [("q",), (2, 1, "q"), (1, 4, "q"), (2, 1, 1)])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_mask_with_a_cache_goes_by_place(ragged, shape, window, grad):
    block, x = causal_block(window=window), normal(2, 12, D_MODEL)
    mask = mask_of(*(12 if size == "q" else size for size in shape), 12)
    cache, plain = block.make_cache(2, 12), block(x, mask=mask)
    for start, stop in ((0, 3), (3, 4), (4, 6), (6, 11), (11, 12)):
        ids = torch.zeros(2, stop - start, dtype=torch.int64) if ragged else None
        of_these = mask[..., :stop] if mask.shape[-2] == 1 else mask[..., start:stop, :stop]
        with torch.set_grad_enabled(grad):
            y = block(x[:, start:stop], mask=of_these, segment_ids=ids, cache=cache)
        assert_exact(y, array(plain[:, start:stop]))


def test_a_mask_over_ragged_rows_goes_by_the_places_of_each():
    # Padding takes no place: the columns of the mask are the tokens of a row, as if it were alone.
    block, x, mask = causal_block(window=2), normal(2, 6, D_MODEL), mask_of(2, 1, 1, 4)
    rows = torch.stack([segments([(-1, 2), (0, 4)]), segments([(0, 2), (-1, 4)])])
    with torch.no_grad():
        y = block(x, mask=mask, segment_ids=rows, cache=block.make_cache(2, 20))
        for row in range(2):
            alone = x[row, rows[row] >= 0]
            assert_exact(y[row, rows[row] >= 0], array(block(alone, mask=mask[row, :, :, : len(alone)])))


@pytest.mark.parametrize(("max_seq_len", "slots"), [(60, 3), (2, 2)])
def test_the_cache_of_a_window_takes_the_memory_of_the_window(max_seq_len, slots):
    block, x = causal_block(window=3), normal(2, 60, D_MODEL)
    cache = block.make_cache(2, max_seq_len)
    assert cache.keys.shape == cache.values.shape == (2, 4, slots + 1, 2)  # one more for padding
    if max_seq_len == 60:
        with torch.no_grad():
            assert_exact(run_in_pieces(block, x, [1, 9, 1, 1, 30, 3, 15], cache), array(block(x)))
        assert elements_of(cache) == elements_of(block.make_cache(2, MAX_SEQ_LEN))


def elements_of(cache):
    """The number of elements in all tensors of a cache."""
    return sum(value.numel() for value in vars(cache).values() if isinstance(value, torch.Tensor))


@given(causal_options, st.integers(0, 4), st.integers(1, 3), seeds)
def test_tokens_taken_back_were_never_there(options, back, more, seed):
    block, x = causal_block(seed=seed, **options), normal(2, 14, D_MODEL, seed=seed)
    cache, counts = block.make_cache(2, 20, rewind=4), torch.tensor([back, max(0, back - 1)])
    with torch.no_grad():
        run_in_pieces(block, x, [8, 2, 4], cache)
        cache.rewind(counts)
        y = block(x[:, :more], cache=cache)
        for row in range(2):
            kept = x[row, : 14 - int(counts[row])]
            assert_exact(y[row], array(block(torch.cat((kept, x[row, :more])))[len(kept) :]))


def test_a_block_that_an_error_stopped_after_its_attention_leaves_the_cache_as_it_was(monkeypatch):
    block, x = causal_block(), normal(2, 5, D_MODEL)
    cache = block.make_cache(2, 6)
    block(x[:, :3], cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr(block.ffn, "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            block(x[:, 3:], cache=cache)
    assert cache.lengths.tolist() == [3, 3]
    assert_exact(block(x[:, 3:], cache=cache), array(block(x)[:, 3:]))


@pytest.mark.parametrize("ragged", [False, True])
def test_tokens_of_the_current_call_get_the_gradients_of_the_plain_pass(ragged):
    block, x = causal_block(num_kv_heads=2), normal(2, 6, D_MODEL).requires_grad_()
    ids = torch.zeros(2, 6, dtype=torch.int64) if ragged else None
    weigh = normal(2, 2, D_MODEL, seed=7)
    (plain,) = torch.autograd.grad((block(x)[:, 4:] * weigh).sum(), x)
    cache = block.make_cache(2, 6)
    y = run_in_pieces(block, x, [4, 2], cache, ids)
    (cached,) = torch.autograd.grad((y[:, 4:] * weigh).sum(), x)
    assert_exact(cached[:, 4:], array(plain[:, 4:]))
    assert not cached[:, :4].any()  # keys and values in the cache are constants


@pytest.mark.parametrize("trained", ["attn.q_proj.weight", "attn.k_proj.weight", "ffn.up_proj.weight"])
def test_gradients_of_an_earlier_call_survive_the_next_one(trained):
    block, x = causal_block().requires_grad_(False), normal(2, 6, D_MODEL)
    block.get_parameter(trained).requires_grad_()
    plain = block(x[:, :4]).square().sum()
    cache = block.make_cache(2, 6)
    first = block(x[:, :4], cache=cache).square().sum()
    block(x[:, 4:], cache=cache)
    gradients = [torch.autograd.grad(loss, block.get_parameter(trained))[0] for loss in (first, plain)]
    assert_exact(gradients[0], array(gradients[1]))


@pytest.mark.parametrize("ragged", [False, True])
def test_a_cache_can_be_filled_under_inference_mode_and_used_again_after_reset(ragged):
    block, x = causal_block(), normal(2, 6, D_MODEL)
    ids = torch.zeros(2, 6, dtype=torch.int64) if ragged else None
    cache, plain = block.make_cache(2, 6), block(x)
    for _ in range(2):
        with torch.inference_mode():
            assert_exact(run_in_pieces(block, x, [4, 1, 1], cache, ids), array(plain))
        cache.reset()
    assert_exact(run_in_pieces(block, x, [2, 4], cache, ids), array(plain))


REFUSED = {
    "batch size": (lambda x: {"x": x[:1]}, ShapeError, "made for batch size 2"),
    "a larger batch": (lambda x: {"x": torch.cat((x, x))}, ShapeError, "made for batch size 2"),
    "dtype": (lambda x: {"x": x.float()}, ShapeError, "holds torch.float64, but the keys are torch.float32"),
    "room": (
        lambda x: {"x": torch.cat((x, x), 1)},
        RangeError,
        "at most max_seq_len = 5 tokens, but it has 2 and this call adds",
    ),
    "mask": (lambda x: {"x": x, "mask": torch.ones(2, 4, 4).bool()}, ShapeError, r"mask must be \(q, kv\) = \(2, 4\)"),
    "positions": (lambda x: {"x": x, "token_positions": torch.tensor([0, 64])}, RangeError, "positions must be in"),
}


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_call_that_is_refused_leaves_the_cache_as_it_was(arguments, error, message, ragged):
    block, x, more = causal_block(), normal(2, 2, D_MODEL), normal(2, 2, D_MODEL, seed=1)
    cache, untouched = block.make_cache(2, 5), block.make_cache(2, 5)
    ids = segments([(0, 2)]).expand(2, -1) if ragged else None
    padding = segments([(0, 2), (-1, 2)]).unflatten(0, (2, 2)) if ragged else None  # row 1 has no document yet
    for each in (cache, untouched):
        block(x, segment_ids=padding, cache=each)
    given = arguments(more)
    if ragged:
        row_ids = torch.tensor([0, 9])[torch.arange(len(given["x"])) % 2]
        given["segment_ids"] = row_ids[:, None].expand(given["x"].shape[:2])
    with pytest.raises(error, match=message):
        block.to(given["x"].dtype)(**given, cache=cache)
    block.double()
    assert torch.equal(block(more, segment_ids=ids, cache=cache), block(more, segment_ids=ids, cache=untouched))
    assert cache.lengths.tolist() == untouched.lengths.tolist()


def test_a_cache_cannot_hold_more_places_than_there_are_positions():
    block = causal_block()
    cache = block.make_cache(1, MAX_SEQ_LEN + 5)
    block(normal(1, MAX_SEQ_LEN, D_MODEL), cache=cache)
    with pytest.raises(RangeError, match=r"\[0, max_seq_len\) = \[0, 64\), but 65 tokens need positions up to 64"):
        block(normal(1, 1, D_MODEL), cache=cache)


# Training


def test_dropout_acts_in_training_alone():
    block, plain = make(dropout=0.5), make()
    x = normal(2, 5, D_MODEL)
    assert torch.equal(block(x), plain(x))
    block.train()
    assert not torch.equal(block(x), plain(x))
    assert torch.equal(plain.train()(x), plain.eval()(x))


def test_dropout_acts_on_attention_weights_and_on_both_branches():
    # With an empty other branch the rest of the block is seen alone; a zero in y - x is a feature that was dropped.
    x, p = normal(64, 40, D_MODEL, dtype=torch.float32), 0.25
    for silenced in ("attn.o_proj", "ffn.down_proj"):
        block = make(torch.float32, dropout=p).train()
        torch.nn.init.zeros_(block.get_submodule(silenced).weight)
        dropped = (block(x) - x == 0).double().mean().item()
        assert abs(dropped - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5
    block = make(torch.float32, dropout=p).train()
    block.dropout.p = 0.0
    torch.nn.init.zeros_(block.ffn.down_proj.weight)
    assert not torch.equal(block(x), block(x))  # what is left is attention's own


def test_dropout_repeats_with_the_seed():
    block, x, outputs = make(dropout=0.3).train(), normal(2, 5, D_MODEL), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(block(x))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_its_input_is_left_as_it_was():
    block, x = make(), normal(2, 5, D_MODEL)
    before = x.clone()
    block(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e18])
def test_tiny_and_huge_inputs_come_out_right(size):
    block, x = make(torch.float32), (normal(2, 8, D_MODEL) * size).float()
    options = {"qkv_bias": False, "o_bias": False}
    with use_backend("reference"):
        plain = block(x)
    assert_accurate(block(x), oracle(block, x, **options), plain)
    assert_rounding_alone(plain, oracle(block, x, **options), torch.float32)


def test_autocast_keeps_the_residual_in_float32_and_its_error_within_bfloat16():
    block, x = make(torch.float32, causal=True), normal(2, 40, D_MODEL, dtype=torch.float32)
    exact = block(x).double()
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
        with use_backend("reference"):
            plain = block(x)
    assert y.dtype == torch.float32
    branches = [(tensor - x).bfloat16() for tensor in (y, plain)]
    assert_accurate(branches[0], array(exact - x), branches[1])


# What it is made of


def test_the_state_dict_has_exactly_the_names_of_the_design():
    names = [
        "norm1.weight",
        *(f"attn.{name}_proj.weight" for name in "qkvo"),
        "norm2.weight",
        *(f"ffn.{name}_proj.weight" for name in ("gate", "up", "down")),
    ]
    assert sorted(TransformerBlock(8, 2, 16).state_dict()) == sorted(names)
    extras = ["attn.q_proj.bias", "attn.k_proj.bias", "attn.v_proj.bias", "attn.o_proj.bias"]
    extras += ["attn.q_norm.weight", "attn.k_norm.weight"]
    full = TransformerBlock(8, 2, 16, qkv_bias=True, o_bias=True, qk_norm=True)
    assert sorted(full.state_dict()) == sorted([*names, *extras])


def test_it_has_two_norms_with_its_own_weights_and_eps():
    block = TransformerBlock(8, 2, 16, eps=0.5, qk_norm=True)
    norms = [module for module in block.modules() if isinstance(module, RMSNorm)]
    assert [norm.eps for norm in norms] == [0.5] * 4
    assert len({id(norm.weight) for norm in norms}) == 4


def test_everything_is_made_in_the_dtype_and_on_the_device_asked_for():
    block = TransformerBlock(8, 2, 16, device="meta", dtype=torch.bfloat16, qk_norm=True, qkv_bias=True, o_bias=True)
    assert {(p.device.type, p.dtype) for p in block.parameters()} == {("meta", torch.bfloat16)}
    assert block(torch.ones(2, 3, 8, device="meta", dtype=torch.bfloat16)).shape == (2, 3, 8)


def test_a_block_made_on_the_meta_device_is_the_block_that_its_weights_say():
    source, x = make(qk_norm=True), normal(2, 5, D_MODEL)
    options = {"num_heads": 4, "d_ff": D_FF, "max_seq_len": MAX_SEQ_LEN, "qk_norm": True}
    with torch.device("meta"):
        assigned, emptied = TransformerBlock(D_MODEL, **options), TransformerBlock(D_MODEL, **options)
    assigned.load_state_dict(source.state_dict(), assign=True)
    emptied.to_empty(device="cpu").double().load_state_dict(source.state_dict())
    wanted, rounded = source(x), source.float()(x.float())
    for block in (assigned, emptied):
        assert torch.equal(block(x), wanted)
        assert torch.equal(block.float()(x.float()), rounded)


def test_a_rope_that_is_given_is_used():
    rope = RotaryEmbedding(2, 16, theta=7.0, interleaved=False)
    given, own = make(rope=rope), make(rope_theta=7.0, rope_interleaved=False)
    x = normal(2, 5, D_MODEL)
    assert given.attn.rope is rope
    assert torch.equal(given(x), own(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 0}, "d_model must be an integer of at least 1, not 0"),
        ({"num_heads": 0}, "num_heads must be an integer of at least 1, not 0"),
        ({"num_heads": 3}, "num_heads must divide d_model, but 3 does not divide 8"),
        ({"num_heads": 8}, r"head_dim must be even, .* but it is 1 \(d_model 8, num_heads 8\)"),
        ({"head_dim": 5}, "head_dim must be even, .* but it is 5"),
        ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads, but 3 does not divide 4"),
        ({"d_ff": 0}, "d_ff must be an integer of at least 1, not 0"),
        ({"max_seq_len": 0}, "max_seq_len must be an integer of at least 1, not 0"),
        ({"rope_theta": -1.0}, "theta must be greater than 0"),
        ({"eps": 0.0}, "eps must be greater than 0"),
        ({"window": 3}, "window=3 .* needs causal=True"),
        ({"window": 0, "causal": True}, "window must be an integer of at least 1"),
        ({"dropout": 1.0}, "dropout must be below 1"),
    ],
)
def test_numbers_that_no_block_can_have_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TransformerBlock(**{"d_model": 8, "num_heads": 4, "d_ff": 16, **options})


@pytest.mark.parametrize("bad", [-1, 64])
def test_a_position_outside_the_table_is_refused_with_the_numbers(bad):
    message = rf"\[0, max_seq_len\) = \[0, 64\), but the token positions go from {min(bad, 2)} to {max(bad, 2)}"
    with pytest.raises(RangeError, match=message):
        make()(normal(2, 2, D_MODEL), torch.tensor([2, bad]))


def test_more_tokens_than_positions_are_refused_packed_documents_are_not():
    block, x = make(), normal(65, D_MODEL)
    with pytest.raises(RangeError, match="65 tokens need positions up to 64; max_seq_len=65 would do"):
        block(x)
    assert block(x, segment_ids=segments([(0, 33), (1, 32)])).shape == x.shape


@pytest.mark.usefixtures("shapes_unchecked")
def test_positions_may_be_int32():
    positions = torch.tensor([60, 0, 1])
    for weights_dtype in (torch.float64, torch.float32):
        block, x = make(weights_dtype), normal(2, 3, D_MODEL, dtype=weights_dtype)
        assert torch.equal(block(x, positions.int()), block(x, positions))


# Compiled

# torch says this of itself when its compiler is imported.
of_torch_itself = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")


@of_torch_itself
@pytest.mark.usefixtures("shapes_unchecked")
def test_compiled_whole_it_gives_the_same_numbers_and_still_checks_positions():
    block, x, positions = make(causal=True, num_kv_heads=2), normal(2, 5, D_MODEL), torch.tensor([7, 0, 63, 7, 1])
    compiled = torch.compile(block, fullgraph=True)
    with torch.no_grad():
        assert_exact(compiled(x, positions), array(block(x, positions)))
        for bad in (64, -1):
            with pytest.raises(RuntimeError, match="positions must be in"):
                compiled(x, positions.where(positions != 63, bad))


@of_torch_itself
@pytest.mark.usefixtures("shapes_unchecked")
def test_compiled_for_batches_of_every_size_it_still_takes_masks_and_positions():
    block, ones = make(causal=True), torch.ones(2, 1, 5, 5, dtype=torch.bool)
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    for batch in (3, 4):  # the second size makes torch compile for any
        compiled(normal(batch, 5, D_MODEL))
    x, positions = normal(2, 5, D_MODEL), integers(2, 5, limit=MAX_SEQ_LEN)
    assert_exact(compiled(x, mask=ones), array(block(x)))
    assert_exact(compiled(x, mask=ones[:, :, :1]), array(block(x)))
    assert_exact(compiled(x, positions), array(block(x, positions)))


@of_torch_itself
@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("arguments", ["nothing", "positions", "segment_ids", "mask"])
def test_it_is_one_graph_whose_gradients_are_the_same(arguments):
    # Without the code generator: that costs ten seconds a graph, and is torch's own.
    block, x = make(causal=True, window=3, qk_norm=True), normal(2, 5, D_MODEL).requires_grad_()
    given = {
        "nothing": {},
        "positions": {"token_positions": integers(2, 5, limit=MAX_SEQ_LEN)},
        "segment_ids": {"segment_ids": segments([(0, 2), (1, 2), (-1, 1)]).expand(2, -1)},
        "mask": {"mask": mask_of(2, 1, 5, 5)},
    }[arguments]
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    losses = [module(x, **given).square().sum() for module in (compiled, block)]
    assert_exact(losses[0], array(losses[1]))
    for actual, wanted in zip(*(torch.autograd.grad(loss, (x, *block.parameters())) for loss in losses), strict=True):
        assert_exact(actual, array(wanted))
