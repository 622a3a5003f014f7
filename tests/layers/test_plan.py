"""One plan per call for each kind of layer, shared only with unmodified prenorm layers."""

import copy
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from prenorm import ModelConfig, RotaryEmbedding, SelfAttention, ShapeError, TransformerBlock, TransformerLM
from prenorm.layers.layer_cache import LayerCache
from prenorm.layers.plan import AttentionPlan, Call

from ..oracle.inputs import integers, normal, randomise, segments
from ..oracle.tolerance import array, assert_exact

VOCAB, MAX = 11, 40


def mixed(**options):
    """Layers of six kinds: with a window or without, without rotation, with another theta."""
    model = TransformerLM(
        ModelConfig(VOCAB, 16, 6, 2, d_ff=12, max_seq_len=MAX, window=5, **options), dtype=torch.float64
    )
    other = RotaryEmbedding(8, MAX, theta=50.0, interleaved=True)
    for i, block in enumerate(randomise(model).layers):
        block.attn.window = (5, None, 3)[i % 3]
        block.attn.rope = (block.attn.rope, None, other)[i // 2]
    return model.eval()


def alone(model, ids, segment_ids=None):
    """The model's blocks, each called on its own, so that each makes its own plan."""
    x = model.embedding(ids)
    for block in model.layers:
        x = block(x, segment_ids=segment_ids)
    return model.lm_head(model.final_norm(x))


def test_layers_of_several_kinds_each_get_their_own_plan():
    model, ids = mixed(), integers(2, 12, limit=VOCAB)
    assert_exact(model(ids), array(alone(model, ids)))
    rows = torch.stack([segments([(3, 5), (4, 7)]), segments([(-1, 2), (0, 6), (1, 4)])])
    real = rows >= 0
    assert_exact(model(ids, segment_ids=rows)[real], array(alone(model, ids, rows)[real]))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("sizes", [[12], [1] * 12, [5, 1, 4, 2], [2, 7, 3]])
def test_with_a_cache_layers_of_several_kinds_get_their_own_plan(sizes, grad):
    model, ids = mixed(), integers(2, 12, limit=VOCAB)
    cache = model.make_cache(2, 14)
    assert [layer.slots for layer in cache] == [5, 14, 3, 5, 14, 3]
    with torch.set_grad_enabled(grad):
        pieces = [model(piece, cache=cache) for piece in ids.split(sizes, 1)]
    assert_exact(torch.cat(pieces, 1), array(model(ids)))


def test_with_ragged_rows_layers_of_several_kinds_get_their_own_plan():
    model = mixed()
    rows = [integers(n, limit=VOCAB, seed=n) for n in (11, 4)]
    cache, ids = model.make_cache(2, 13), torch.stack([rows[0], torch.cat((integers(7, limit=VOCAB), rows[1]))])
    marks = torch.stack([segments([(0, 11)]), segments([(-1, 7), (0, 4)])])
    with torch.no_grad():
        begun, more = model(ids, segment_ids=marks, cache=cache), integers(2, 2, limit=VOCAB, seed=9)
        after = torch.cat([model(token, cache=cache) for token in more.split(1, 1)], 1)
    for row, prompt in enumerate(rows):
        whole = model(torch.cat((prompt, more[row])))
        assert_exact(torch.cat((begun[row, marks[row] >= 0], after[row])), array(whole))
    replies = model.generate([row.tolist() for row in rows], max_new_tokens=6, temperature=0)
    assert replies == [model.generate([row.tolist()], max_new_tokens=6, temperature=0)[0] for row in rows]


def counted(monkeypatch, owner, name):
    """Record the results of each call of a method."""
    results, method = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *given, **options: results.append(method(*given, **options)) or results[-1])
    return results


@pytest.mark.parametrize("how", ["plain", "documents", "cached", "ragged"])
def test_it_is_worked_out_once_for_each_kind(how, monkeypatch):
    model, ids = mixed(), integers(2, 6, limit=VOCAB)
    angles = counted(monkeypatch, RotaryEmbedding, "cos_sin")
    slots = counted(monkeypatch, LayerCache, "slots_for")
    options = {}
    if how != "plain":
        options["segment_ids"] = torch.stack([segments([(0, 6)]), segments([(-1, 2), (0, 4)])])
    if how in ("cached", "ragged"):
        options["cache"] = model.make_cache(2, 6)
    if how == "cached":
        del options["segment_ids"]
    with torch.no_grad():
        model(ids, **options)
    assert len(angles) == 4  # two ropes, with two windows each
    assert len(slots) == (6 if "cache" in options else 0)
    same = randomise(TransformerLM(model.config)).eval()
    angles.clear()
    same(ids)
    assert len(angles) == 1  # however many layers


class Wrapper(nn.Module):
    """A wrapper around a block that passes its arguments on."""

    def __init__(self, block):
        super().__init__()
        self.block, self.given = block, []

    def forward(self, x, *args, **options):
        self.given.append((args, set(options)))
        return self.block(x, *args, **options)


class Plain(nn.Module):
    """A foreign block with exactly the arguments of `TransformerBlock.forward`."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, token_positions=None, *, mask=None, segment_ids=None, cache=None):
        return self.block(x, token_positions, mask=mask, segment_ids=segment_ids, cache=cache)


class InTwoParts(Plain):
    """A block that splits its tokens into two chunks if it has a cache."""

    def forward(self, x, token_positions=None, *, mask=None, segment_ids=None, cache=None):
        if cache is None or segment_ids is not None or x.shape[1] < 2:
            return super().forward(x, token_positions, mask=mask, segment_ids=segment_ids, cache=cache)
        return torch.cat([self.block(part, cache=cache) for part in x.split([1, x.shape[1] - 1], 1)], 1)


def replace_forward(block):
    forward = block.forward
    block.forward = lambda x, token_positions=None, *, mask=None, segment_ids=None, cache=None: forward(
        x, token_positions, mask=mask, segment_ids=segment_ids, cache=cache
    )
    return block


def hooked(block):
    block.register_forward_pre_hook(lambda module, args, options: (args, dict(options)), with_kwargs=True)
    return block


OTHERS = {"wrapper": Wrapper, "plain": Plain, "in two parts": InTwoParts, "replaced": replace_forward, "hook": hooked}


@pytest.mark.parametrize("what", ["block", "attention", "every block"])
@pytest.mark.parametrize("other", OTHERS)
def test_a_foreign_layer_is_called_with_the_arguments(other, what):
    model, ids = mixed(), integers(2, 9, limit=VOCAB)
    rows = torch.stack([segments([(0, 9)]), segments([(-1, 2), (0, 7)])])
    wanted, packed = model(ids), model(ids, segment_ids=rows)
    if what == "attention":
        model.layers[1].attn = OTHERS[other](model.layers[1].attn)
        model.layers[1].make_cache = lambda batch_size, max_seq_len, dtype, rewind: LayerCache(
            batch_size, 2, max_seq_len, 8, dtype=torch.float64
        )
    else:
        for i in range(6) if what == "every block" else (1,):
            made = OTHERS[other](model.layers[i])
            made.make_cache = getattr(made, "block", made).make_cache
            model.layers[i] = made
    assert_exact(model(ids), array(wanted))
    assert_exact(model(ids, segment_ids=rows)[rows >= 0], array(packed[rows >= 0]))
    for options in ({}, {"segment_ids": rows}):
        cache = model.make_cache(2, 12)
        with torch.no_grad():
            y = model(ids, cache=cache, **options)
            more = model(ids[:, :1], cache=cache)
        real = rows >= 0 if options else slice(None)
        assert_exact(y[real], array((packed if options else wanted)[real]))
        assert_exact(more[0], array(model(torch.cat((ids[0], ids[0, :1])))[-1:]))


def test_a_model_call_that_fails_takes_back_what_layers_of_others_have_counted():
    model, ids = mixed(), integers(2, 6, limit=VOCAB)
    model.layers[0] = Wrapper(model.layers[0])
    model.layers[0].make_cache = model.layers[0].block.make_cache
    cache = model.make_cache(2, 12)
    model(ids[:, :2], cache=cache)
    handle = model.lm_head.register_forward_hook(lambda *_: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            model(ids[:, 2:3], cache=cache)
    handle.remove()
    assert [layer.ahead for layer in cache] == [0] * 6
    assert_exact(model(ids[:, 2:], cache=cache), array(model(ids)[:, 2:]))


def test_an_unmodified_layer_gets_the_plan_and_uses_only_that():
    block, x = TransformerBlock(16, 2, 12, causal=True, dtype=torch.float64), normal(2, 5, 16)
    plan = Call(x).plan(block.attn)
    assert isinstance(plan, AttentionPlan)
    assert_exact(block(x, torch.arange(5, 10), plan=plan), array(block(x)))
    with pytest.raises(AttributeError):
        cast(Any, plan).causal = False


class Sub(SelfAttention):
    """A subclass of SelfAttention with an addition."""

    def forward(self, x, *given, **options):
        return 2 * super().forward(x, *given, **options)


def test_a_subclass_that_calls_super_gets_its_result():
    attention = Sub(16, 2, RotaryEmbedding(8, 20), causal=True, dtype=torch.float64)
    plain = SelfAttention(16, 2, attention.rope, causal=True, dtype=torch.float64)
    plain.load_state_dict(attention.state_dict())
    x = normal(2, 5, 16)
    assert_exact(attention(x), array(2 * plain(x)))
    cache = attention.make_cache(2, 5)
    assert_exact(torch.cat([attention(part, cache=cache) for part in x.split(2, 1)], 1), array(2 * plain(x)))
    block = TransformerBlock(16, 2, 12, causal=True, dtype=torch.float64)
    block.attn.load_state_dict(plain.state_dict())
    wanted = block(x) - x - block.ffn(block.norm2(x + block.attn(block.norm1(x))))
    block.attn.__class__ = Sub
    doubled = block(x)
    assert_exact(doubled, array((h := x + 2 * wanted) + block.ffn(block.norm2(h))))


def test_a_context_of_ten_million_positions_costs_nothing():
    model = TransformerLM(ModelConfig(VOCAB, 16, 2, 2, d_ff=12, max_seq_len=10_000_000, window=4))
    near = TransformerLM(ModelConfig(VOCAB, 16, 2, 2, d_ff=12, max_seq_len=MAX, window=4))
    near.load_state_dict(model.state_dict())
    ids = integers(1, 6, limit=VOCAB)
    assert torch.equal(model(ids), near(ids))
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.numel() for tensor in held) <= 8
    far = model(ids, torch.arange(9_999_990, 9_999_996))
    torch.testing.assert_close(far, near(ids), rtol=1e-4, atol=1e-4)  # only distances count


def small(layers=3, **options):
    config = ModelConfig(VOCAB, 16, layers, 2, **{"d_ff": 12, "max_seq_len": MAX, **options})
    return randomise(TransformerLM(config, dtype=torch.float64)).eval()


@pytest.mark.parametrize("cls", [TransformerBlock, SelfAttention])
def test_a_forward_that_is_replaced_in_its_class_is_called_once_with_the_arguments(cls, monkeypatch):
    model, ids, forward = small(), integers(2, 6, limit=VOCAB), cls.forward
    alone = next(part for part in model.modules() if type(part) is cls)
    x = normal(2, 6, 16)
    plain = alone(x)

    def doubled(self, x, token_positions=None, *, mask=None, segment_ids=None, cache=None):
        return 2 * forward(self, x, token_positions, mask=mask, segment_ids=segment_ids, cache=cache)

    monkeypatch.setattr(cls, "forward", doubled)
    assert_exact(alone(x), array(2 * plain))
    wanted, cache = model(ids), model.make_cache(2, 6)
    assert_exact(torch.cat([model(part, cache=cache) for part in ids.split(2, 1)], 1), array(wanted))


CHANGES = {
    "more tokens": lambda y: y.repeat_interleave(2, -2),
    "fewer tokens": lambda y: y[..., ::2, :],
    "another dtype": lambda y: y.float(),
}


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("seq", [1, 6])
@pytest.mark.parametrize("change", CHANGES)
def test_after_a_hook_that_changes_the_tokens_layers_make_their_own_plan(change, seq):
    model, ids = small(), integers(2, seq, limit=VOCAB)
    if change == "another dtype":
        for part in (*model.layers[1:], model.final_norm, model.lm_head):
            part.float()
    model.layers[0].register_forward_hook(lambda block, given, y: CHANGES[change](y))
    x = model.embedding(ids)
    for block in model.layers:
        x = block(x)
    assert_exact(model(ids).double(), array(model.lm_head(model.final_norm(x))))


def test_layers_with_gradients_keep_keys_and_values_with_gradients():
    model, ids = small(), integers(2, 5, limit=VOCAB)

    def off(*_):
        torch.set_grad_enabled(False)

    def on(*_):
        torch.set_grad_enabled(True)

    model.layers[0].register_forward_pre_hook(off)
    model.layers[0].register_forward_hook(on)
    cache = model.make_cache(2, 5)
    model(ids, cache=cache).sum().backward()
    norms = [block.attn.v_proj.weight.grad for block in model.layers]
    assert norms[0] is None
    assert all(grad.abs().max() > 0 for grad in norms[1:])


class Skipping(Plain):
    """A block that can be skipped."""

    skips = False

    def forward(self, x, *given, **options):
        return x if self.skips else super().forward(x, *given, **options)


@pytest.mark.parametrize("when", ["always", "once"])
def test_a_layer_that_stored_nothing_is_not_counted(when):
    model, ids = small(), integers(2, 6, limit=VOCAB)
    model.layers[1] = Skipping(model.layers[1])
    model.layers[1].make_cache = model.layers[1].block.make_cache
    model.layers[1].skips, cache = True, model.make_cache(2, 8)
    model(ids[:, :3], cache=cache)
    model.layers[1].skips = when == "always"
    with pytest.raises(ShapeError, match=r"must hold the same tokens, but they hold \[\[3, 3\], \[0, 0\], \[3, 3\]\]"):
        model(ids[:, 3:], cache=cache)


def test_several_chunks_of_a_ring_in_a_call_that_fails_are_noticed():
    model, ids = small(window=3), integers(2, 7, limit=VOCAB)
    for i, block in enumerate(model.layers):
        model.layers[i] = InTwoParts(block)
        model.layers[i].make_cache = block.make_cache
    cache = model.make_cache(2, 12)
    model(ids[:, :4], cache=cache)
    handle = model.lm_head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(ids[:, 4:6], cache=cache)  # two of one token each: together one too many
    handle.remove()
    with pytest.raises(ShapeError, match="an earlier forward pass failed"):
        model(ids[:, 4:], cache=cache)


@pytest.mark.sampled(4)
@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("window", [None, 4])
def test_blocks_that_are_compiled_alone_share_their_code_with_a_cache_too(window, in_place):
    model, counter = small(5, window=window), CompileCounter()
    for i, block in enumerate(model.layers):
        if in_place:
            block.compile(backend=counter)
        else:
            model.layers[i] = torch.compile(block, backend=counter)
    cache, ids = model.make_cache(2, 20), integers(2, 12, limit=VOCAB)
    with torch.no_grad():
        pieces = [model(piece, cache=cache) for piece in ids.split([5, 1, 1, 1, 1, 1, 1, 1], 1)]
        assert counter.frame_count <= 2
        assert_exact(torch.cat(pieces, 1), array(model(ids)))


def test_after_a_pass_on_another_device_it_generates_as_before():
    model = small().float()
    wanted, weights = model.generate([[1, 2, 3]], max_new_tokens=5, temperature=0), copy.deepcopy(model.state_dict())
    model.to("meta")(torch.zeros(1, 2, dtype=torch.int64, device="meta"))
    model.to_empty(device="cpu").load_state_dict(weights)
    assert list(model.stream([[1, 2, 3]], max_new_tokens=5, temperature=0)) == [[token] for token in wanted[0]]
    assert model.generate([[1, 2, 3] * 10], max_new_tokens=5, temperature=0)


def test_a_hook_before_all_modules_may_change_the_arguments_of_blocks():
    model, ids, positions = small(), integers(2, 6, limit=VOCAB), 2 * torch.arange(6)
    wanted = model(ids, positions)

    def spread(module, given):
        return (given[0], positions) if isinstance(module, TransformerBlock) else None

    hook = nn.modules.module.register_module_forward_pre_hook(spread)
    try:
        assert_exact(model(ids), array(wanted))
    finally:
        hook.remove()
