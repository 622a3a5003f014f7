import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prenorm import (
    ConfigError,
    EncoderDecoder,
    EncoderDecoderConfig,
    RangeError,
    ShapeError,
    use_backend,
)
from prenorm.layers.cache import KVCache
from prenorm.ops import cross_entropy

from ..oracle import models
from ..oracle.inputs import ids_of, integers, leadings, normal, randomise, seeds, segments, seqs, weights_of
from ..oracle.memory import elements_held
from ..oracle.tolerance import array, assert_accurate, assert_exact

VOCAB, D_MODEL, LAYERS, ROOM = 11, 8, 2, 32
OPTIONS: tuple[Any, ...] = (
    {},
    {"positions": "learned", "num_decoder_layers": 1, "eps": 0.01, "num_heads": 4},
    {"tie_embeddings": False, "target_vocab_size": 7, "num_layers": 1},
    {"positions": "learned", "tie_embeddings": False, "d_ff": None, "num_layers": 1, "num_heads": 1},
)
options = st.sampled_from(OPTIONS)
few = settings(max_examples=8)  # each runs whole models, several times


def make(dtype=torch.float64, seed=0, **options):
    """A small model with random weights, in eval mode."""
    sizes = {"vocab_size": VOCAB, "d_model": D_MODEL, "num_layers": LAYERS, "num_heads": 2, "d_ff": 12}
    config = EncoderDecoderConfig(**{**sizes, "max_seq_len": ROOM, **options})
    return randomise(EncoderDecoder(config, dtype=dtype), seed).eval()


def pair(model, *leading, source_seq, seq, seed=0):
    """Source ids and target ids."""
    source = integers(*leading, source_seq, limit=model.config.vocab_size, seed=seed)
    return source, integers(*leading, seq, limit=model.config.target_vocab_size, seed=seed + 1)


def ids(source, target):
    """The segment ids of source and target, as keyword arguments of the model."""
    return {"source_segment_ids": source, "target_segment_ids": target}


def oracle_arguments(model, source, target, given):
    names = ("num_layers", "num_decoder_layers", "num_heads", "eps")
    options = {name: getattr(model.config, name) for name in names}
    return (weights_of(model), source.numpy(), target.numpy()), options | {
        name: ids_of(value) for name, value in given.items()
    }


def oracle(model, source, target, **given):
    arguments, options = oracle_arguments(model, source, target, given)
    return models.encoder_decoder(*arguments, **options)


def oracle_loss(model, source, target, targets, **given):
    arguments, options = oracle_arguments(model, source, target, given)
    return models.encoder_decoder_loss(*arguments, targets.numpy(), **options)


class Packed:
    """Pairs of documents in two rows: sources and targets in different orders, with padding."""

    def __init__(self, lengths, order, padding):
        self.lengths = lengths
        self.order = order
        runs = [(4 * number + 1, source) for number, (source, _) in enumerate(lengths)]
        self.source = segments([(-1, padding), *runs[:1], (-2, padding), *runs[1:]])
        self.target = segments([*((4 * number + 1, lengths[number][1]) for number in order), (-1, 2 * padding)])

    def document(self, row, number):
        """The positions of one document."""
        return (row == 4 * number + 1).nonzero().squeeze(-1)


packs = (
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)
    .flatmap(lambda lengths: st.tuples(st.just(lengths), st.permutations(range(len(lengths))), st.integers(0, 2)))
    .map(lambda drawn: Packed(*drawn))
)


# What it computes


@given(options, leadings, seqs, seqs, seeds)
@few
def test_its_logits_are_the_papers_formulas(options, leading, source_seq, seq, seed):
    model = make(seed=seed, **options)
    source, target = pair(model, *leading, source_seq=source_seq, seq=seq, seed=seed)
    logits = model(source, target)
    assert logits.shape == (*leading, seq, model.config.target_vocab_size)
    assert_exact(logits, oracle(model, source, target))


@given(options, packs, st.sampled_from([(), (2,)]), seeds)
@few
def test_packed_pairs_are_the_papers_formulas_with_masks(options, packed, leading, seed):
    model = make(seed=seed, **options)
    source, target = pair(model, *leading, source_seq=len(packed.source), seq=len(packed.target), seed=seed)
    given = ids(packed.source.expand(source.shape), packed.target.expand(target.shape))
    assert_exact(model(source, target, **given), oracle(model, source, target, **given))
    targets = integers(*target.shape, limit=model.config.target_vocab_size, seed=seed + 2)
    targets = targets.where(integers(*target.shape, limit=3, seed=seed) > 0, -100)
    assert_exact(model.loss(source, target, targets, **given), oracle_loss(model, source, target, targets, **given))


@given(options, leadings, seqs, seqs, seeds)
@few
def test_its_loss_is_the_mean_over_the_targets_that_are_not_ignored(options, leading, source_seq, seq, seed):
    model = make(seed=seed, **options)
    source, target = pair(model, *leading, source_seq=source_seq, seq=seq, seed=seed)
    targets = integers(*target.shape, limit=model.config.target_vocab_size, seed=seed + 2)
    targets = targets.where(integers(*target.shape, limit=3, seed=seed) > 0, -100)
    assert_exact(model.loss(source, target, targets), oracle_loss(model, source, target, targets))


def test_the_target_at_a_place_belongs_to_the_logits_at_that_place():
    model = make()
    source, target = pair(model, source_seq=4, seq=6)
    for place in range(6):
        targets = torch.full((6,), -100)
        targets[place] = 3
        expected = -model(source, target).log_softmax(-1)[place, 3]
        assert_exact(model.loss(source, target, targets), array(expected))


def test_without_any_target_the_loss_and_its_gradients_are_zero():
    model = make()
    source, target = pair(model, source_seq=4, seq=2)
    loss = model.loss(source, target, torch.tensor([-100, -100]))
    loss.backward()
    assert loss == 0
    assert not any(parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(options, seeds)
@settings(max_examples=8)
def test_the_kernels_are_as_accurate_as_the_plain_formulas(dtype, options, seed):
    model = make(dtype, seed, **options)
    source, target = pair(model, 2, source_seq=20, seq=20, seed=seed)
    with use_backend("reference"):
        plain = model(source, target)
    assert_accurate(model(source, target), oracle(model, source, target), plain)


@pytest.mark.parametrize("options", OPTIONS[1:3], ids=["tied, learned", "untied, sinusoidal"])
def test_the_gradients_of_its_loss_and_logits_are_right(options):
    model = make(**{**options, "num_layers": 1, "num_decoder_layers": 1, "max_seq_len": 3})
    source, target = torch.tensor([3, 0, 3, 5, 1]), torch.tensor([[2, 6, 0, 2]])
    targets = torch.tensor([[1, -100, 2, 0]])
    given = ids(segments([(4, 2), (1, 2), (-1, 1)])[None], segments([(1, 2), (4, 2)])[None])
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            return self.model.loss(source[None], target, targets, **given), self.model(source[None, :3], target[:, :3])

    def call(vector):  # of all weights: one derivative in a random direction feels every one of them
        parts = vector.split([shape.numel() for shape in shapes.values()])
        named = {f"model.{name}": part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
        return torch.func.functional_call(Both(), named, ())

    vector = torch.nn.utils.parameters_to_vector(model.parameters()).detach().requires_grad_()
    assert torch.autograd.gradcheck(call, vector, fast_mode=True)


def test_the_logits_of_a_long_target_are_never_held_whole(monkeypatch):
    seq, vocab = 30, 500
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 5 * vocab)
    model = make(vocab_size=vocab, num_layers=1)
    source, target = pair(model, source_seq=2, seq=seq)
    largest, _ = elements_held(lambda: model.loss(source, target, target))
    assert largest <= vocab * D_MODEL  # the embedding's gradient


# Who sees whom


@given(options, seqs, st.integers(1, 5), seeds)
@few
def test_a_later_target_token_never_reaches_an_earlier_logit(options, seq, later, seed):
    model = make(torch.float32, seed, **options)
    source, target = pair(model, 2, source_seq=5, seq=seq + later, seed=seed)
    changed = torch.cat((target[:, :seq], (target[:, seq:] + 1) % model.config.target_vocab_size), dim=1)
    plain, logits = model(source, target), model(source, changed)
    assert torch.equal(plain[:, :seq], logits[:, :seq])
    assert not torch.equal(plain[:, seq:], logits[:, seq:])


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_every_source_token_reaches_every_other_and_every_logit(options):
    model = make(**options)
    source, target = pair(model, source_seq=5, seq=3)
    for place in range(5):
        changed = source.clone()
        changed[place] = (changed[place] + 1) % VOCAB
        assert (model.encode(source) != model.encode(changed)).any(-1).all()
        assert (model(source, target) != model(changed, target)).any(-1).all()


@given(options, packs, seeds)
@few
def test_what_stands_under_padding_changes_nothing(options, packed, seed):
    model = make(torch.float32, seed, **options)
    source, target = pair(model, source_seq=len(packed.source), seq=len(packed.target), seed=seed)
    given = ids(packed.source, packed.target)
    others = pair(model, source_seq=len(packed.source), seq=len(packed.target), seed=seed + 7)
    changed = [
        kept.where(row >= 0, other)
        for kept, other, row in zip((source, target), others, (packed.source, packed.target), strict=True)
    ]
    real = packed.target >= 0
    assert torch.equal(model(source, target, **given)[real], model(*changed, **given)[real])
    losses = [model.loss(*rows, target, **given) for rows in ((source, target), changed)]
    assert torch.equal(*losses)


@given(options, packs, seeds)
@few
def test_packed_pairs_are_each_alone_in_whatever_order(options, packed, seed):
    model = make(seed=seed, **options)
    source, target = pair(model, source_seq=len(packed.source), seq=len(packed.target), seed=seed)
    together = model(source, target, **ids(packed.source, packed.target))
    encoded = model.encode(source, segment_ids=packed.source)
    for number in packed.order:
        read, written = packed.document(packed.source, number), packed.document(packed.target, number)
        assert_exact(together[written], array(model(source[read], target[written])))
        assert_exact(encoded[read], array(model.encode(source[read])))


ragged_rows = st.lists(st.tuples(*[st.integers(0, 3), st.integers(1, 4)] * 2), min_size=2, max_size=3)


def padded(rows):
    """Segment ids of rows with `left` padding, `n` tokens, and padding up to one length."""
    seq = max(left + n for left, n in rows)
    return torch.stack([segments([(-1, left), (5, n), (-3, seq - left - n)]) for left, n in rows])


@given(options, ragged_rows, st.sampled_from(["both", "source", "target"]), seeds)
@few
def test_ragged_rows_padded_left_and_right_are_each_alone(options, rows, sides, seed):
    model = make(seed=seed, **options)
    of_source = padded([row[:2] for row in rows] if sides != "target" else [(0, 3)] * len(rows))
    of_target = padded([row[2:] for row in rows] if sides != "source" else [(0, 4)] * len(rows))
    source, target = pair(model, len(rows), source_seq=of_source.shape[1], seq=of_target.shape[1], seed=seed)
    logits = model(
        source,
        target,
        source_segment_ids=of_source if sides != "target" else None,
        target_segment_ids=of_target if sides != "source" else None,
    )
    for row in range(len(rows)):
        real = of_target[row] >= 0
        alone = model(source[row][of_source[row] >= 0], target[row][real])
        assert_exact(logits[row][real], array(alone))


def test_a_source_of_padding_alone_is_read_as_nothing():
    model = make()
    source, target = pair(model, 2, source_seq=4, seq=3)
    logits = model(source, target, source_segment_ids=torch.tensor([[0] * 4, [-1] * 4]))
    assert_exact(logits[0], array(model(source[0], target[0])))
    assert_exact(logits[1], array(model(source[1, :0], target[1])))


# Checkpointing


def training_step(model, use_checkpointing, packed=None):
    source, target = pair(model, 2, source_seq=6, seq=5)
    given = {} if packed is None else ids(packed.source.expand(2, -1), packed.target.expand(2, -1))
    model.zero_grad()
    torch.manual_seed(7)
    loss = model.loss(source, target, target, use_checkpointing=use_checkpointing, **given)
    loss.backward()
    return [loss, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("packed", [None, Packed([(4, 2), (2, 3)], [1, 0], 0)], ids=["alone", "packed"])
@pytest.mark.parametrize("use_checkpointing", [True, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_checkpointed_it_is_the_plain_pass_to_the_bit_with_dropout_on(options, use_checkpointing, packed):
    model = make(torch.float32, **options, dropout=0.3).train()
    plain = training_step(model, False, packed)
    for expected, actual in zip(plain, training_step(model, use_checkpointing, packed), strict=True):
        assert torch.equal(expected, actual)


def test_checkpointing_runs_the_blocks_of_both_sides_again():
    model, calls = make(dropout=0.3).train(), []
    for name, module in model.named_modules():
        if name.endswith("norm1"):
            module.register_forward_pre_hook(lambda module, x, name=name: calls.append(name))
    once = [f"{side}.layers.{layer}.norm1" for side in ("encoder", "decoder") for layer in range(LAYERS)]
    training_step(model, False)
    assert calls == once
    calls.clear()
    training_step(model, True)
    assert sorted(calls) == sorted(2 * once)
    calls.clear()
    source, target = pair(model, source_seq=6, seq=5)
    model(source, target, use_checkpointing=True).sum().backward()
    model.encode(source, use_checkpointing=True).sum().backward()
    assert sorted(calls) == sorted(2 * once + 2 * once[:LAYERS])


# The cache


def run_in_pieces(model, target, sizes, cache, segment_ids=None):
    """Feed the target to the decoder piece by piece."""
    rows = (target if segment_ids is None else segment_ids).split(sizes, 1)
    pieces = zip(target.split(sizes, 1), rows, strict=True)
    return torch.cat(
        [
            model.decode(piece, segment_ids=None if segment_ids is None else of_piece, cache=cache)
            for piece, of_piece in pieces
        ],
        1,
    )


@given(options, st.lists(st.integers(0, 4), min_size=1, max_size=4), seqs, st.sampled_from([0, 1, 3]), seeds)
@few
def test_pieces_of_any_size_with_a_cache_are_the_plain_pass(options, sizes, source_seq, batch, seed):
    model = make(seed=seed, **options)
    source, target = pair(model, batch, source_seq=source_seq, seq=sum(sizes), seed=seed)
    cache = model.make_cache(source, max_seq_len=sum(sizes) + 1)
    assert_exact(run_in_pieces(model, target, sizes, cache), array(model(source, target)))
    assert cache.lengths.tolist() == [sum(sizes)] * batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_one_token_at_a_time_is_as_accurate_as_the_plain_pass(dtype, options):
    model = make(dtype, **options)
    source, target = pair(model, 2, source_seq=9, seq=20)
    with use_backend("reference"):
        plain = model(source, target)
    stepped = run_in_pieces(model, target, [1] * 20, model.make_cache(source, 20))
    assert_accurate(stepped, oracle(model, source, target), plain)


@given(options, ragged_rows, seeds)
@few
def test_ragged_rows_go_on_in_the_cache_as_if_each_were_alone(options, rows, seed):
    model = make(seed=seed, **options)
    of_source, of_target = padded([row[:2] for row in rows]), padded([row[2:] for row in rows])
    source, target = pair(model, len(rows), source_seq=of_source.shape[1], seq=of_target.shape[1], seed=seed)
    _, more = pair(model, len(rows), source_seq=1, seq=3, seed=seed + 2)
    cache = model.make_cache(source, 10, source_segment_ids=of_source)
    first = model.decode(target, segment_ids=of_target, cache=cache)
    after = run_in_pieces(model, more, [1, 2], cache)
    for row in range(len(rows)):
        real = of_target[row] >= 0
        whole = torch.cat((target[row][real], more[row]))
        alone = model(source[row][of_source[row] >= 0], whole)
        assert_exact(torch.cat((first[row][real], after[row])), array(alone))


def test_the_gradients_through_a_cache_reach_the_encoder():
    model = make()
    source, target = pair(model, 2, source_seq=4, seq=3)
    weigh = normal(2, 3, VOCAB)
    cached = torch.autograd.grad(
        (model.decode(target, cache=model.make_cache(source, 3)) * weigh).sum(), weights(model)
    )
    plain = torch.autograd.grad((model(source, target) * weigh).sum(), weights(model))
    for actual, expected in zip(cached, plain, strict=True):
        assert_exact(actual, array(expected))


def weights(model):
    return list(model.parameters())


def test_it_works_under_inference_mode_and_with_the_cache_reset():
    model = make()
    source, target = pair(model, 2, source_seq=5, seq=6)
    cache, plain = model.make_cache(source, 6), model(source, target)
    for _ in range(2):
        with torch.inference_mode():
            assert_exact(run_in_pieces(model, target, [3, 1, 2], cache), array(plain))
        cache.reset()  # the tokens are forgotten, the sources are not
        assert cache.lengths.tolist() == [0, 0]


def test_a_cache_made_under_inference_mode_can_be_used_outside():
    model = make()
    source, target = pair(model, 2, source_seq=5, seq=6)
    of_source = torch.tensor([[0] * 5, [0, 0, 0, -1, -1]])
    with torch.inference_mode():
        cache = model.make_cache(source, 6, source_segment_ids=of_source)
        first = model.decode(target[:, :4], cache=cache)
    both = torch.cat((first, model.decode(target[:, 4:], cache=cache)), 1)
    assert_exact(both, array(model(source, target, source_segment_ids=of_source)))


WRONG_CACHES = {
    "layers": (
        lambda m, source: make(num_decoder_layers=3).make_cache(source, 6),
        ShapeError,
        "has 3 layers, but the model has 2",
    ),
    "batch size": (lambda m, source: m.make_cache(source[:1], 6), ShapeError, "made for batch size 1"),
    "dtype": (
        lambda m, source: m.make_cache(source, 6, dtype=torch.float32),
        ShapeError,
        "holds torch.float32, but the keys are torch.float64",
    ),
    "room": (
        lambda m, source: m.make_cache(source, 3),
        RangeError,
        "at most max_seq_len = 3 tokens, but it has 0 and this call adds 4",
    ),
    "heads": (lambda m, source: make(num_heads=4).make_cache(source, 6), ShapeError, "4 key.value heads"),
}


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(("wrong", "error", "message"), WRONG_CACHES.values(), ids=WRONG_CACHES.keys())
def test_a_cache_made_for_something_else_is_refused_and_left_empty(wrong, error, message):
    model = make()
    source, target = pair(model, 2, source_seq=5, seq=4)
    cache = wrong(model, source)
    with pytest.raises(error, match=message):
        model.decode(target, cache=cache)
    assert all(not layer.lengths.any() and not layer.keys.any() for layer in cache)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("cache", [None, KVCache([])], ids=["None", "KVCache"])
def test_anything_but_a_decoder_cache_is_refused_by_name(cache):
    with pytest.raises(ConfigError, match=f"takes a DecoderCache, from make_cache, not a {type(cache).__name__}"):
        make().decode(torch.zeros(2, 3, dtype=torch.int64), cache=cache)


def test_a_call_refused_before_anything_was_stored_may_be_mended_and_repeated():
    model = make()
    source, target = pair(model, 2, source_seq=5, seq=6)
    cache = model.make_cache(source, 6)
    first = model.decode(target[:, :4], cache=cache)
    for bad in (target[:, 4:] + VOCAB, target):  # unknown tokens; no room
        with pytest.raises(RangeError):
            model.decode(bad, cache=cache)
    both = torch.cat((first, model.decode(target[:, 4:], cache=cache)), 1)
    assert_exact(both, array(model(source, target)))


@pytest.mark.parametrize("stops", ["layers.0.cross_attn", "layers.1.norm1", "layers.1.ffn", "final_norm"])
def test_a_call_that_an_error_stopped_leaves_the_cache_as_it_was(stops, monkeypatch):
    model = make()
    source, target = pair(model, 2, source_seq=5, seq=4)
    cache = model.make_cache(source, 6)
    model.decode(target[:, :3], cache=cache)

    def stop(*_):
        raise RuntimeError("stop")

    with monkeypatch.context() as patch:
        module = model.decoder.get_submodule(stops)
        patch.setattr(module, "attend" if stops.endswith("cross_attn") else "forward", stop)
        with pytest.raises(RuntimeError, match="stop"):
            model.decode(target[:, 3:], cache=cache)
    assert cache.lengths.tolist() == [3, 3]
    assert_exact(model.decode(target[:, 3:], cache=cache), array(model(source, target)[:, 3:]))


def test_a_cache_has_no_more_room_than_the_model_has_positions():
    model = make()
    source, target = pair(model, 1, source_seq=ROOM, seq=ROOM)
    assert_exact(model.decode(target, cache=model.make_cache(source, ROOM)), array(model(source, target)))
    with pytest.raises(RangeError, match="at most the model's max_seq_len = 32 tokens, not 33"):
        model.make_cache(source, 33)


@pytest.mark.usefixtures("shapes_unchecked")
def test_with_a_cache_there_is_one_batch_dimension_and_one_document_a_row():
    model = make()
    source, target = pair(model, 2, source_seq=4, seq=4)
    cache = model.make_cache(source, 4)
    with pytest.raises(ShapeError, match=r"with a cache source_ids must be \(batch, seq\), but they are \(4,\)"):
        model.make_cache(source[0], 4)
    with pytest.raises(ShapeError, match=r"with a cache target_ids must be \(batch, seq\), but they are \(4,\)"):
        model.decode(target[0], cache=cache)
    packed = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]])
    with pytest.raises(ConfigError, match="row 0 of the source has several, and the other side has no ids"):
        model.make_cache(source, 4, source_segment_ids=packed)
    with pytest.raises(ConfigError, match="a row must be one document without gaps, but row 0"):
        model.decode(target, segment_ids=packed, cache=cache)
    with pytest.raises(ShapeError, match=r"target_segment_ids must have one id a token, \(2, 4\), but they are \(4,\)"):
        model.decode(target, segment_ids=packed[0], cache=cache)
    assert_exact(model.decode(target, cache=cache), array(model(source, target)))


# What it is made of


def test_its_parameters_are_named_as_in_the_design():
    names = list(make(tie_embeddings=False, positions="learned").state_dict())
    untied = [
        "embedding.weight",
        "target_embedding.weight",
        "source_positions.embedding.weight",
        "target_positions.embedding.weight",
        *[f"encoder.{name}" for name in make().encoder.state_dict()],
        *[f"decoder.{name}" for name in make().decoder.state_dict()],
        "lm_head.weight",
    ]
    assert names == untied
    of_its_own = {"target_embedding.weight", "lm_head.weight"}
    assert list(make(positions="learned").state_dict()) == [name for name in untied if name not in of_its_own]
    assert list(make(tie_embeddings=False).state_dict()) == [name for name in untied if "positions" not in name]


def test_tied_one_matrix_embeds_both_sides_and_is_the_head():
    model = make()
    assert model.target_embedding is model.lm_head is None
    assert model.head_weight is model.embedding.weight
    untied = make(tie_embeddings=False)
    assert untied.head_weight is untied.lm_head.weight


def test_the_config_reaches_every_block():
    model = make(num_decoder_layers=3, dropout=0.25, eps=0.125)
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (2, 3)
    for name, module in model.named_modules():
        if "norm" in name:
            assert module.eps == 0.125
        if name.endswith("dropout"):
            assert module.p == 0.25
        if name.endswith("attn"):
            assert (module.num_heads, module.dropout) == (2, 0.25)
            assert module.causal == name.endswith("self_attn")
        if name.endswith("ffn"):
            assert module.d_ff == 12


def test_dropout_acts_in_training_alone():
    model = make(dropout=0.5)
    source, target = pair(model, 2, source_seq=5, seq=4)
    assert torch.equal(model(source, target), make()(source, target))
    assert not torch.equal(model.train()(source, target), make()(source, target))


def test_in_training_the_embeddings_of_both_sides_are_dropped_too():
    model, seen = make(dropout=0.5).train(), []
    for stack in (model.encoder, model.decoder):
        stack.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    source, target = pair(model, 4, source_seq=8, seq=8)
    model(source, target)
    for x in seen:
        assert abs((x == 0).double().mean() - 0.5) < 5 / (2 * x.numel() ** 0.5)  # five standard deviations
    cache = model.make_cache(source, 8)
    seen.clear()
    model.decode(target, cache=cache)
    assert (seen[0] == 0).any()


@pytest.mark.parametrize("way", ["to_empty", "assign"])
@pytest.mark.parametrize("options", OPTIONS[1:3], ids=["learned", "sinusoidal"])
def test_made_on_the_meta_device_it_is_the_model_that_its_weights_say(options, way):
    original = make(**options)
    source, target = pair(original, 2, source_seq=5, seq=4)
    with torch.device("meta"):
        model = EncoderDecoder(original.config, dtype=torch.float64)
    if way == "to_empty":
        model.to_empty(device="cpu").load_state_dict(original.state_dict())
    else:
        model.load_state_dict(original.state_dict(), assign=True)
    assert torch.equal(model.eval()(source, target), original(source, target))


def test_device_and_dtype_reach_every_parameter():
    for options in OPTIONS:
        model = EncoderDecoder(make(**options).config, device="meta", dtype=torch.bfloat16)
        assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
        source, target = (torch.zeros(2, n, dtype=torch.int64, device="meta") for n in (5, 4))
        assert model(source, target).shape == (2, 4, model.config.target_vocab_size)


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_moved_to_bfloat16_it_keeps_exact_positions(options):
    model = make(torch.float32, **options).to(torch.bfloat16)
    source, target = pair(model, 2, source_seq=ROOM, seq=ROOM)
    with use_backend("reference"):
        plain = model(source, target)
    assert_accurate(model(source, target), oracle(model, source, target), plain)


# torch says this of itself when its compiler is imported.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
@pytest.mark.usefixtures("shapes_unchecked")
def test_it_is_one_graph_whose_gradients_are_the_same():
    # Without the code generator: that costs ten seconds a graph, and is torch's own.
    model = make(num_layers=1)
    source, target = pair(model, 1, source_seq=5, seq=4)
    packed = ids(segments([(1, 2), (0, 3)])[None], segments([(0, 3), (1, 1)])[None])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    losses = [module(source, target, **packed).square().sum() for module in (compiled, model)]
    assert_exact(losses[0], array(losses[1]))
    for actual, expected in zip(*(torch.autograd.grad(loss, weights(model)) for loss in losses), strict=True):
        assert_exact(actual, array(expected))


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_it_starts_guessing_evenly_enough(tie_embeddings):
    # A tied head has rows of length 1, and the final norm gives vectors of length sqrt(d_model).
    model = EncoderDecoder(EncoderDecoderConfig(100, 64, 2, 2, dropout=0.0, tie_embeddings=tie_embeddings))
    source, target = pair(model, 8, source_seq=16, seq=16)
    loss = model.loss(source, target, target.roll(1)).item()
    assert abs(loss - math.log(100)) < 1


# What it refuses


@pytest.mark.parametrize(("bad", "low", "high"), [([3, 7], 3, 7), ([-1, 0], -1, 0)])
def test_a_token_outside_its_vocabulary_is_refused_with_the_numbers(bad, low, high):
    model, good = make(**OPTIONS[2]), torch.tensor([0, 1])
    with pytest.raises(RangeError, match=rf"\[0, vocab_size\) = \[0, 7\), but the token ids go from {low} to {high}"):
        model(good, torch.tensor(bad))
    with pytest.raises(RangeError, match=rf"targets must be in \[0, 7\) or -100, but the targets go from {low} to"):
        model.loss(good, good, torch.tensor(bad))
    with pytest.raises(RangeError, match=r"\[0, vocab_size\) = \[0, 11\), but the token ids go from 0 to 11"):
        model(torch.tensor([0, 11]), good)


@pytest.mark.parametrize("options", OPTIONS[:2], ids=["sinusoidal", "learned"])
def test_more_tokens_than_positions_are_refused_packed_documents_and_padding_are_not(options):
    model = make(**options)
    source, target = pair(model, source_seq=33, seq=33)
    for rows in ((source, target[:3]), (source[:3], target)):
        with pytest.raises(
            RangeError, match=r"\[0, max_seq_len\) = \[0, 32\), but the token positions go from 0 to 32"
        ):
            model(*rows)
    halves = segments([(0, 17), (1, 16)])
    packed = model(source, target, **ids(halves, halves))
    assert_exact(packed, array(torch.cat((model(source[:17], target[:17]), model(source[17:], target[17:])))))
    padding = segments([(-1, 33)])
    one = torch.zeros(1, dtype=torch.int64)
    alone = model(
        torch.cat((source, one)),
        torch.cat((target, one)),
        **ids(torch.cat((padding, one)), torch.cat((padding, one))),
    )
    assert_exact(alone[-1:], array(model(one, one)))


@pytest.mark.usefixtures("shapes_unchecked")
def test_shapes_that_do_not_fit_are_refused_with_the_rule():
    model = make()
    source, target = pair(model, 2, source_seq=4, seq=3)
    zeros = torch.zeros_like(target)
    with pytest.raises(ShapeError, match=r"source_ids must be \(..., seq\), but it is a single number"):
        model(torch.tensor(3), target)
    with pytest.raises(ShapeError, match=r"target_ids must be \(..., seq\), but it is a single number"):
        model(source, torch.tensor(3))
    with pytest.raises(ShapeError, match=r"same leading dims, but they are \(2, 4\) and \(3,\)"):
        model(source, target[0])
    with pytest.raises(ShapeError, match=r"same leading dims, but they are \(4,\) and \(2, 3\)"):
        model(source[0], target)
    with pytest.raises(ShapeError, match=r"source_segment_ids must have one id a token, \(2, 4\), but they are \(4,\)"):
        model(source, target, source_segment_ids=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"source_segment_ids must have one id a token, \(2, 4\), but they are \(4,\)"):
        model.encode(source, segment_ids=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"target_segment_ids must have one id a token, \(2, 3\), but they are \(3,\)"):
        model.loss(source, target, target, target_segment_ids=zeros[0])
    for segment_ids in (None, zeros):
        with pytest.raises(ShapeError, match=r"one target a row, but the rows are \(2, 3\) and the targets \(3,\)"):
            model.loss(source, target, target[0], target_segment_ids=segment_ids)
    with pytest.raises(ShapeError, match=r"source_ids must be int64 or int32, but they are torch.float32"):
        model(source.float(), target)


def test_documents_that_do_not_pair_up_are_refused():
    model = make()
    source, target = pair(model, source_seq=4, seq=4)
    two, one = segments([(0, 2), (1, 2)]), segments([(0, 4)])
    for documents, message in (
        (ids(two, None), "row 0 of the source has several, and the other side has no ids"),
        (ids(None, two), "row 0 of the target has several, and the other side has no ids"),
        (ids(segments([(0, 1), (1, 2), (0, 1)]), one), "a row must not have two of one id, but row 0 has"),
        (ids(one, segments([(0, 1), (-1, 2), (0, 1)])), "a row must not have two of one id, but row 0 has"),
        (ids(one, two), "every target document needs a source document of the same id, but row 0 has one without"),
    ):
        rows = {name: row if row is None else row[None] for name, row in documents.items()}
        with pytest.raises(ConfigError, match=message):
            model(source[None], target[None], **rows)


@pytest.mark.parametrize("value", [-1, 1.5, None])
@pytest.mark.usefixtures("shapes_unchecked")
def test_use_checkpointing_must_be_a_switch_or_a_count(value):
    model = make()
    source, target = pair(model, source_seq=4, seq=4)
    with pytest.raises(ConfigError, match="use_checkpointing must be True, False, or an integer k"):
        model(source, target, use_checkpointing=value)
