import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prenorm import (
    ConfigError,
    ModelConfig,
    RangeError,
    RopeScaling,
    RotaryEmbedding,
    ShapeError,
    TransformerLM,
    pad,
    use_backend,
)
from prenorm.ops import cross_entropy

from ..oracle import models
from ..oracle.inputs import (
    ids_of,
    integers,
    leadings,
    normal,
    randomise,
    rows_of_segments,
    seeds,
    segments,
    seqs,
    weights_of,
)
from ..oracle.memory import elements_held
from ..oracle.tolerance import array, assert_accurate, assert_exact

VOCAB, LAYERS = 11, 2
OPTIONS: tuple[Any, ...] = (
    {},
    {"tie_embeddings": True, "window": 3, "eps": 0.01},
    {"num_kv_heads": 1, "qk_norm": True, "rope_scaling": RopeScaling("llama3", 8.0, original_max_seq_len=16)},
    {"head_dim": 6, "num_kv_heads": 2, "rope_interleaved": True, "qkv_bias": True, "o_bias": True, "rope_theta": 50.0},
)
options = st.sampled_from(OPTIONS)


def make(dtype=torch.float64, seed=0, **options):
    """A model of two blocks with random weights, in eval mode."""
    sizes = {"vocab_size": VOCAB, "d_model": 8, "num_layers": LAYERS, "num_heads": 4, "d_ff": 12, "max_seq_len": 64}
    model = TransformerLM(ModelConfig(**{**sizes, **options}), dtype=dtype)
    return randomise(model, seed).eval()


def oracle_options(config):
    """The parts of a config that the oracle needs; it takes the rest from the weights."""
    names = ("num_layers", "num_heads", "num_kv_heads", "head_dim", "eps", "window", "rope_theta", "rope_interleaved")
    scaling = None if config.rope_scaling is None else dataclasses.asdict(config.rope_scaling)
    return {name: getattr(config, name) for name in names} | {"qk_norm": config.qk_norm, "rope_scaling": scaling}


def oracle(model, ids, positions=None, segment_ids=None):
    return models.language_model(
        weights_of(model),
        ids.numpy(),
        ids_of(positions),
        segment_ids=ids_of(segment_ids),
        **oracle_options(model.config),
    )


def oracle_loss(model, ids, targets, segment_ids=None):
    return models.language_model_loss(
        weights_of(model), ids.numpy(), targets.numpy(), segment_ids=ids_of(segment_ids), **oracle_options(model.config)
    )


# What it computes


@given(options, leadings, seqs, st.booleans(), seeds)
def test_its_logits_are_the_papers_formulas(options, leading, seq, placed, seed):
    model, ids = make(seed=seed, **options), integers(*leading, seq, limit=VOCAB, seed=seed)
    positions = integers(*leading, seq, limit=64, seed=seed + 1) if placed else None
    assert_exact(model(ids, positions), oracle(model, ids, positions))


@given(options, st.lists(rows_of_segments, min_size=1, max_size=3), st.booleans(), seeds)
def test_packed_documents_are_the_papers_formulas_with_a_mask(options, rows, placed, seed):
    seq = min(len(row) for row in rows)
    segment_ids = torch.stack([row[:seq] for row in rows])
    model, ids = make(seed=seed, **options), integers(len(rows), seq, limit=VOCAB, seed=seed)
    positions = integers(len(rows), seq, limit=64, seed=seed) if placed else None
    assert_exact(model(ids, positions, segment_ids=segment_ids), oracle(model, ids, positions, segment_ids))
    targets = integers(len(rows), seq, limit=VOCAB, seed=seed + 1)
    loss = model.loss(ids, targets, segment_ids=segment_ids)
    assert_exact(loss, oracle_loss(model, ids, targets, segment_ids))


@given(options, leadings, seqs, seeds)
def test_its_loss_is_the_mean_over_the_targets_that_are_not_ignored(options, leading, seq, seed):
    model, ids = make(seed=seed, **options), integers(*leading, seq, limit=VOCAB, seed=seed)
    targets = integers(*leading, seq, limit=VOCAB, seed=seed + 1)
    targets = targets.where(integers(*leading, seq, limit=3, seed=seed + 2) > 0, -100)
    assert_exact(model.loss(ids, targets), oracle_loss(model, ids, targets))


def test_the_target_at_a_place_belongs_to_the_logits_at_that_place():
    model, ids = make(), integers(6, limit=VOCAB)
    for place in range(6):
        targets = torch.full((6,), -100)
        targets[place] = 3
        assert_exact(model.loss(ids, targets), array(-model(ids).log_softmax(-1)[place, 3]))


def test_padding_is_left_out_of_the_loss():
    model, ids, targets = make(), integers(1, 6, limit=VOCAB), integers(1, 6, limit=VOCAB, seed=1)
    padded = model.loss(ids, targets, segment_ids=segments([(-1, 2), (0, 4)])[None])
    assert_exact(padded, array(model.loss(ids[:, 2:], targets[:, 2:])))


@pytest.mark.usefixtures("shapes_unchecked")
def test_targets_of_another_shape_are_refused_beside_padding_too():
    model, ids = TransformerLM(ModelConfig(11, 8, 1, 2)), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ShapeError, match=r"rows are \(2, 3\) and the targets \(1, 3\)"):
        model.loss(ids, ids[:1], segment_ids=ids)


def test_without_any_target_the_loss_and_its_gradients_are_zero():
    model = make()
    loss = model.loss(torch.tensor([1, 2]), torch.tensor([-100, -100]))
    loss.backward()
    assert loss == 0
    assert not any(parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(options, seeds)
@settings(max_examples=8)
def test_the_kernels_are_as_accurate_as_the_plain_formulas(dtype, options, seed):
    model, ids = make(dtype, seed, **options), integers(2, 40, limit=VOCAB, seed=seed)
    with use_backend("reference"):
        plain = model(ids)
    assert_accurate(model(ids), oracle(model, ids), plain)


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_the_gradients_of_its_loss_and_logits_are_right(tie_embeddings):
    model = make(num_layers=1, num_kv_heads=2, head_dim=2, qk_norm=True, tie_embeddings=tie_embeddings)
    ids, targets, row = torch.tensor([[3, 0, 3]]), torch.tensor([[1, -100, 2]]), segments([(0, 1), (1, 2)])[None]
    names, parameters = zip(*model.named_parameters(), strict=True)

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            return self.model.loss(ids, targets), self.model(ids, segment_ids=row)

    def call(*parameters):
        weights = {f"model.{name}": parameter for name, parameter in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Both(), weights, ())

    assert torch.autograd.gradcheck(call, parameters, fast_mode=True)


def test_the_logits_of_a_long_sequence_are_never_held_whole(monkeypatch):
    seq, vocab = 60, 2000
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 5 * vocab)
    model, ids, targets = make(vocab_size=vocab), integers(seq, limit=vocab), integers(seq, limit=vocab, seed=1)
    whole = elements_held(lambda: torch.nn.functional.cross_entropy(model(ids), targets))
    assert min(whole) >= seq * vocab  # what the measure says where they are held
    largest, _ = elements_held(lambda: model.loss(ids, targets))
    assert largest <= vocab * model.config.d_model  # the embedding's gradient


# Who sees whom


@given(options, seqs, st.integers(1, 5), seeds)
def test_a_later_token_never_reaches_an_earlier_logit(options, seq, later, seed):
    model, ids = make(torch.float32, seed, **options), integers(2, seq + later, limit=VOCAB, seed=seed)
    changed = torch.cat((ids[:, :seq], (ids[:, seq:] + 1) % VOCAB), dim=1)
    assert torch.equal(model(ids)[:, :seq], model(changed)[:, :seq])
    assert not torch.equal(model(ids)[:, seq:], model(changed)[:, seq:])


@given(options, st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 2), seeds)
def test_packed_documents_are_each_alone(options, lengths, padding, seed):
    row = segments([(i % 2, length) for i, length in enumerate(lengths)] + [(-1, padding)])
    model, ids = make(seed=seed, **options), integers(len(row), limit=VOCAB, seed=seed)
    alone = torch.cat([model(document) for document in ids[: sum(lengths)].split(lengths)])
    assert_exact(model(ids, segment_ids=row)[: sum(lengths)], array(alone))


# The cache


def run_in_pieces(model, ids, sizes, cache, segment_ids=None):
    """Feed ids to the model piece by piece."""
    pieces = zip(ids.split(sizes, 1), (segment_ids if segment_ids is not None else ids).split(sizes, 1), strict=True)
    return torch.cat(
        [
            model(piece, segment_ids=None if segment_ids is None else of_piece, cache=cache)
            for piece, of_piece in pieces
        ],
        1,
    )


@given(options, st.lists(st.integers(0, 4), min_size=1, max_size=4), st.sampled_from([0, 1, 3]), seeds)
def test_pieces_of_any_size_with_a_cache_are_the_plain_pass(options, sizes, batch, seed):
    model, ids = make(seed=seed, **options), integers(batch, sum(sizes), limit=VOCAB, seed=seed)
    cache = model.make_cache(batch_size=batch, max_seq_len=sum(sizes) + 1)
    assert_exact(run_in_pieces(model, ids, sizes, cache), array(model(ids)))
    assert cache.lengths.tolist() == [sum(sizes)] * batch


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_one_token_at_a_time_is_as_accurate_as_the_plain_pass(dtype, options):
    model, ids = make(dtype, **options), integers(2, 20, limit=VOCAB)
    with use_backend("reference"):
        plain = model(ids)
    assert_accurate(run_in_pieces(model, ids, [1] * 20, model.make_cache(2, 20)), oracle(model, ids), plain)


@given(options, st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=2, max_size=3), seeds)
def test_ragged_rows_padded_left_and_right_are_each_alone(options, rows, seed):
    model = make(seed=seed, **options)
    seq = max(left + length for left, length in rows) + 1
    segment_ids = torch.stack([segments([(-1, left), (0, n), (-1, seq - left - n)]) for left, n in rows])
    ids, more = (integers(len(rows), n, limit=VOCAB, seed=seed + i) for i, n in enumerate((seq, 3)))
    for cache in (model.make_cache(len(rows), 10), None):
        prompts = model(ids, segment_ids=segment_ids, cache=cache)
        after = run_in_pieces(model, more, [1, 2], cache) if cache is not None else None
        for row, (left, length) in enumerate(rows):
            whole = model(torch.cat((ids[row, left : left + length], more[row])))
            assert_exact(prompts[row, left : left + length], array(whole[:length]))
            if after is not None:
                assert_exact(after[row], array(whole[length:]))


def test_tokens_of_the_current_call_get_the_gradients_of_the_plain_pass():
    # Cached tokens are constants, so what the last tokens write, beginning with their embeddings, is all that counts.
    model, ids = make(), torch.tensor([[1, 2, 3, 4, 5, 6]])
    weigh = normal(1, 2, VOCAB)
    cache = model.make_cache(1, 6)
    model(ids[:, :4], cache=cache)
    (cached,) = torch.autograd.grad((model(ids[:, 4:], cache=cache) * weigh).sum(), model.embedding.weight)
    (plain,) = torch.autograd.grad((model(ids)[:, 4:] * weigh).sum(), model.embedding.weight)
    assert_exact(cached[5:7], array(plain[5:7]))
    assert not cached[1:5].any()


def test_it_works_under_inference_mode_and_with_the_cache_reset():
    model, ids = make(), integers(2, 6, limit=VOCAB)
    cache, plain = model.make_cache(2, 6), model(ids)
    for _ in range(2):
        with torch.inference_mode():
            assert_exact(run_in_pieces(model, ids, [3, 1, 2], cache), array(plain))
        cache.reset()
        assert cache.lengths.tolist() == [0, 0]


def test_a_cache_made_under_inference_mode_can_be_used_outside():
    model, ids = make(), integers(2, 6, limit=VOCAB)
    with torch.inference_mode():
        cache = model.make_cache(2, 6)
        first = model(ids[:, :4], cache=cache)
    assert_exact(torch.cat((first, model(ids[:, 4:], cache=cache)), 1), array(model(ids)))


WRONG_CACHES = {
    "layers": (lambda m: make(num_layers=3).make_cache(2, 6), ShapeError, "has 3 layers, but the model has 2"),
    "batch size": (lambda m: m.make_cache(3, 6), ShapeError, "made for batch size 3"),
    "dtype": (
        lambda m: m.make_cache(2, 6, torch.float32),
        ShapeError,
        "holds torch.float32, but the keys are torch.float64",
    ),
    "room": (
        lambda m: m.make_cache(2, 3),
        RangeError,
        "at most max_seq_len = 3 tokens, but it has 0 and this call adds 4",
    ),
    "heads": (lambda m: make(num_kv_heads=2).make_cache(2, 6), ShapeError, "2 key.value heads"),
}


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(("wrong", "error", "message"), WRONG_CACHES.values(), ids=WRONG_CACHES.keys())
def test_a_cache_made_for_something_else_is_refused_and_left_empty(wrong, error, message):
    model, ids = make(), integers(2, 4, limit=VOCAB)
    cache = wrong(model)
    with pytest.raises(error, match=message):
        model(ids, cache=cache)
    assert all(not layer.lengths.any() and not layer.keys.any() for layer in cache)


def test_a_call_refused_before_anything_was_stored_may_be_mended_and_repeated():
    model, ids = make(), integers(2, 6, limit=VOCAB)
    cache = model.make_cache(2, 6)
    first = model(ids[:, :4], cache=cache)
    for bad in (ids + VOCAB, ids):  # unknown tokens; no room
        with pytest.raises(RangeError):
            model(bad, cache=cache)
    assert_exact(torch.cat((first, model(ids[:, 4:], cache=cache)), 1), array(model(ids)))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize(
    "stops", ["embedding", "layers.0.ffn", "layers.1.norm1", "layers.1.ffn", "final_norm", "lm_head"]
)
def test_a_call_that_an_error_stopped_leaves_the_cache_as_it_was(stops, window, ragged, monkeypatch):
    model, ids = make(window=window), integers(2, 4, limit=VOCAB)
    # In the ragged case only the shorter row grows, so the longest length is the same before and after.
    first = torch.stack([segments([(0, 1), (-1, 2)]), segments([(0, 3)])]) if ragged else None
    last = torch.tensor([[0], [-1]]) if ragged else None
    cache, untouched = (model.make_cache(2, 6) for _ in range(2))
    model(ids[:, :3], segment_ids=first, cache=untouched)
    model(ids[:, :3], segment_ids=first, cache=cache)

    def stop(x):
        raise RuntimeError("stop")

    with monkeypatch.context() as patch:
        patch.setattr(model.get_submodule(stops), "forward", stop)
        with pytest.raises(RuntimeError, match="stop"):
            model(ids[:, 3:], segment_ids=last, cache=cache)
    assert torch.equal(cache.lengths, untouched.lengths)
    for _ in range(3):  # one token at a time: nothing that a window still needs is overwritten
        pair = [model(ids[:, 3:], segment_ids=last, cache=one) for one in (cache, untouched)]
        real = slice(None) if last is None else last >= 0
        assert torch.equal(pair[0][real], pair[1][real])


def test_a_call_that_an_error_stopped_when_a_window_was_overwritten_is_noticed_until_reset(monkeypatch):
    model, ids = make(window=3), integers(2, 9, limit=VOCAB)
    cache = model.make_cache(2, 9)
    model(ids[:, :4], cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr(model.layers[1], "forward", lambda *given, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(ids[:, 4:6], cache=cache)
    for call in (lambda: model(ids[:, 4:5], cache=cache), lambda: cache.rewind(torch.tensor([1, 1]))):
        with pytest.raises(ShapeError, match=r"an earlier forward pass failed after .* call cache\.reset\(\)"):
            call()
    cache.reset()
    assert_exact(model(ids, cache=cache), array(model(ids)))


def test_a_cache_has_no_more_room_than_the_model_has_positions():
    with pytest.raises(RangeError, match="at most the model's max_seq_len = 64 tokens, not 65"):
        make().make_cache(1, 65)


# What it is made of


def test_its_parameters_are_named_as_in_the_design():
    block = [name for name, _ in make().layers[0].named_parameters()]
    layers = [f"layers.{i}.{name}" for i in range(LAYERS) for name in block]
    untied = ["embedding.weight", *layers, "final_norm.weight", "lm_head.weight"]
    assert [name for name, _ in make().named_parameters()] == untied
    assert list(make().state_dict()) == untied
    assert list(make(tie_embeddings=True).state_dict()) == untied[:-1]


def test_a_tied_head_is_the_embedding():
    model = make(tie_embeddings=True)
    assert model.lm_head is None
    assert model.head_weight is model.embedding.weight


def test_all_blocks_share_one_rope():
    model = make(num_layers=5)
    assert len([module for module in model.modules() if isinstance(module, RotaryEmbedding)]) == 1
    assert len({id(block.attn.rope) for block in model.layers}) == 1
    assert [name for name, _ in model.named_buffers()] == ["layers.0.attn.rope.frequencies"]


def test_the_config_reaches_every_block():
    model = make(window=3, dropout=0.25, eps=0.125, rope_theta=50.0)
    for block in model.layers:
        assert (block.attn.causal, block.attn.window, block.attn.dropout, block.dropout.p) == (True, 3, 0.25, 0.25)
        assert block.norm1.eps == block.norm2.eps == model.final_norm.eps == 0.125
        assert (block.attn.rope.theta, block.attn.rope.max_seq_len) == (50.0, 64)


def test_dropout_acts_in_training_alone():
    model, ids = make(dropout=0.5), integers(2, 5, limit=VOCAB)
    assert torch.equal(model(ids), make()(ids))
    assert not torch.equal(model.train()(ids), make()(ids))


@pytest.mark.parametrize("way", ["to_empty", "assign"])
def test_made_on_the_meta_device_it_is_the_model_that_its_weights_say(way):
    source, ids = make(), integers(2, 5, limit=VOCAB)
    with torch.device("meta"):
        model = TransformerLM(source.config, dtype=torch.float64)
    if way == "to_empty":
        model.to_empty(device="cpu").load_state_dict(source.state_dict())
    else:
        model.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(model(ids), source(ids))
    assert torch.equal(model.float()(ids), source.float()(ids))


def test_moved_to_bfloat16_it_keeps_exact_angles():
    model, ids = make(torch.float32), integers(2, 40, limit=VOCAB)
    rope, places = model.layers[0].attn.rope, torch.arange(40)
    table = rope.cos_sin(places, torch.float32)[0]
    model.to(torch.bfloat16)
    assert torch.equal(rope.cos_sin(places, torch.bfloat16)[0], table)
    with use_backend("reference"):
        plain = model(ids)
    assert_accurate(model(ids), oracle(model, ids), plain)


def test_device_and_dtype_reach_every_parameter():
    model = TransformerLM(ModelConfig(VOCAB, 8, 1, 2), device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    assert model(torch.zeros(2, 3, dtype=torch.int64, device="meta")).shape == (2, 3, VOCAB)


# What it refuses


@pytest.mark.parametrize(("bad", "low", "high"), [([3, VOCAB], 3, VOCAB), ([-1, 0], -1, 0)])
def test_a_token_outside_the_vocabulary_is_refused_with_the_numbers(bad, low, high):
    with pytest.raises(RangeError, match=rf"\[0, vocab_size\) = \[0, 11\), but the token ids go from {low} to {high}"):
        make()(torch.tensor(bad))
    with pytest.raises(
        RangeError, match=rf"targets must be in \[0, 11\) or -100, but the targets go from {low} to {high}"
    ):
        make().loss(torch.tensor([0, 1]), torch.tensor(bad))


def test_more_tokens_than_positions_are_refused_packed_documents_are_not():
    model, ids = make(), integers(65, limit=VOCAB)
    with pytest.raises(RangeError, match="65 tokens need positions up to 64"):
        model(ids)
    packed = model(ids, segment_ids=segments([(0, 33), (1, 32)]))
    assert_exact(packed, array(torch.cat((model(ids[:33]), model(ids[33:])))))


@pytest.mark.usefixtures("shapes_unchecked")
def test_shapes_that_do_not_fit_are_refused_with_the_rule():
    model, ids = make(), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ShapeError, match=r"token_ids must be \(..., seq\)"):
        model(torch.tensor(3))
    with pytest.raises(ShapeError, match=r"one id a token, \(2, 3\), but they are \(3,\)"):
        model(ids, segment_ids=ids[0])
    with pytest.raises(ShapeError, match=r"one id a token, \(2, 3\), but they are \(3,\)"):
        model.loss(ids, ids, segment_ids=ids[0])
    with pytest.raises(ShapeError, match="one target a row"):
        model.loss(ids, ids[0])
    with pytest.raises(ShapeError, match="token_positions must be"):
        model(ids, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"with a cache token_ids must be \(batch, seq\)"):
        model(ids[0], cache=model.make_cache(2, 6))
    with pytest.raises(ConfigError, match="a row must be one document"):
        model(ids, segment_ids=torch.tensor([[0, 0, 0], [0, 1, 1]]), cache=model.make_cache(2, 6))


def test_it_starts_guessing_evenly():
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(VOCAB, 64, 2, 2))
    ids = integers(8, 32, limit=VOCAB)
    assert abs(model.loss(ids, ids.roll(1)).item() - math.log(VOCAB)) < 0.1


@pytest.mark.usefixtures("shapes_unchecked")
def test_segment_ids_are_integers():
    model, ids = make(), integers(1, 3, limit=VOCAB)
    for wrong in (torch.tensor([[True, True, False]]), torch.tensor([[0.0, 0.0, -1.0]])):
        for call in (
            lambda wrong=wrong: model(ids, segment_ids=wrong),
            lambda wrong=wrong: model(ids, segment_ids=wrong, cache=model.make_cache(1, 3)),
            lambda wrong=wrong: model.loss(ids, ids, segment_ids=wrong),
            lambda wrong=wrong: model.layers[0](normal(1, 3, 8), segment_ids=wrong),
        ):
            with pytest.raises(ShapeError, match=r"segment_ids must be int64 or int32.*torch.where\(mask, 0, -1\)"):
                call()


def test_the_cache_of_a_narrower_window_is_refused():
    ids = integers(1, 9, limit=VOCAB)
    models_by_window = {window: make(window=window) for window in (None, 3, 5)}
    for made_with, used_with, fits in ((3, None, False), (3, 5, False), (5, 3, True), (None, 3, True), (3, 3, True)):
        model, cache = models_by_window[used_with], models_by_window[made_with].make_cache(1, 16)
        if fits:
            assert_exact(run_in_pieces(model, ids, [4, 1, 3, 1], cache), array(model(ids)))
            continue
        with pytest.raises(ConfigError, match=f"it holds 3 tokens and this attention has window={used_with}"):
            model(ids, cache=cache)
        assert cache.lengths.tolist() == [0]


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("wrong", ["a", (1,), 5, "a layer's", "another batch's", "another depth's"])
def test_generate_refuses_at_the_call_what_is_no_cache_of_this_model(wrong):
    model = make()
    others = {
        "a layer's": model.make_cache(1, 8)[0],
        "another batch's": model.make_cache(2, 8),
        "another depth's": make(num_layers=3).make_cache(1, 8),
    }
    with pytest.raises((ConfigError, ShapeError), match=r"takes a KVCache|batch size|layers"):
        model.stream([[1, 2]], cache=others.get(wrong, wrong))


def test_generate_goes_on_with_a_ragged_cache_as_far_as_each_row_has_room():
    model = make()
    token_ids, segment_ids = pad([[1] * 8, [2]])
    cache = model.make_cache(2, 12)
    model(token_ids, segment_ids=torch.where(segment_ids < 0, -1, 2), cache=cache)  # documents of any number
    replies = model.generate([[1], [1] * 9], cache=cache, max_new_tokens=3, temperature=0)
    for row, (before, prompt) in enumerate((([1] * 8, [1]), ([2], [1] * 9))):
        assert replies[row] == model.generate([before + prompt], max_new_tokens=3, temperature=0)[0]
    assert cache.lengths.tolist() == [11, 12]
    with pytest.raises(RangeError, match=r"prompt 1 has 1 tokens, after 12 in the cache,.*use a new cache"):
        model.generate([[1], [1]], cache=cache, max_new_tokens=1)
    other = model.make_cache(1, 12)
    model(integers(1, 11, limit=VOCAB), cache=other)
    with pytest.raises(RangeError, match=r"prompt 0 has 2 tokens, after 11 in the cache,.*leave out 1 of them"):
        model.generate([[1, 2]], cache=other, max_new_tokens=1)
    model(integers(2, 0, limit=VOCAB), segment_ids=torch.empty(2, 0, dtype=torch.int64), cache=cache)
    assert cache.documents.tolist() == [2, 2]  # what the caller said, and nothing else


def test_an_option_that_there_is_not_is_named():
    for wrong in ("max_length", "vocab_size", "device", "speculation"):
        with pytest.raises(
            ConfigError, match=f"no option named {wrong}; it has eos_token_id, logprobs, max_new_tokens"
        ):
            make().generate([[1]], **{wrong: 3})


def test_under_autocast_generation_has_a_cache_that_fits():
    model = make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        (reply,) = model.generate([[1, 2, 3]], max_new_tokens=6, temperature=0)
        cache = model.make_cache(1, 16)
        logits = model(torch.tensor([[1, 2, 3]]), cache=cache)
    assert cache[0].keys.dtype == torch.bfloat16
    assert reply[0] == int(logits[0, -1].argmax())
    assert model.make_cache(1, 16)[0].keys.dtype == torch.float32
