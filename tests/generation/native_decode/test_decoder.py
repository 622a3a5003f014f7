"""A decoding step in one kernel call equals the model's, and is not used where it does not apply."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prenorm import ConfigError, ModelConfig, RangeError, SwiGLU, TransformerLM, use_backend
from prenorm.family import Family
from prenorm.generation.native_decode.decoder import NativeDecoder
from prenorm.kernels.cpu import decode_step as kernel
from prenorm.kernels.cpu import native
from prenorm.layers.dropout import Dropout
from prenorm.layers.layer_cache import LayerCache
from prenorm.layers.linear import Linear
from prenorm.ops import backends

from ...oracle.inputs import integers, randomise
from ...oracle.tolerance import array, assert_accurate

pytestmark = pytest.mark.skipif(bool(native.unavailable_reason()), reason="this machine has no C++ compiler")

VOCAB, MAX = 131, 48
KINDS: dict[str, Any] = {
    "plain": {},
    "grouped, with biases": {"num_kv_heads": 2, "qkv_bias": True, "o_bias": True},
    "many queries a group": {"num_heads": 10, "num_kv_heads": 1, "head_dim": 32},
    "normed queries, pairs side by side, tied": {"qk_norm": True, "rope_interleaved": True, "tie_embeddings": True},
    "windowed": {"window": 9},
    "a window that is never full": {"window": MAX},
    "windows in some layers, never full": {"family": Family(windows=(MAX, 0)), "qk_norm": True},
    "a record that adds nothing": {"family": Family(), "num_kv_heads": 2, "qkv_bias": True, "tie_embeddings": True},
}


def model(dtype: torch.dtype = torch.float32, **options: object) -> TransformerLM:
    given = {"num_heads": 4, "d_ff": 200, "max_seq_len": MAX} | options
    return randomise(TransformerLM(ModelConfig(VOCAB, 128, 2, **given))).to(dtype).eval()


def prompts(rows: int) -> tuple[Tensor, Tensor | None]:
    """Five tokens per row; with three rows, from one to five."""
    segment_ids = torch.tensor([[0] * count + [-1] * (5 - count) for count in (5, 3, 1)]) if rows == 3 else None
    return integers(rows, 5, limit=VOCAB), segment_ids


class Beside:
    """The same steps through the kernel and through the model, each with a cache of its own."""

    def __init__(self, made: TransformerLM, rows: int = 1, **cache: int) -> None:
        self.model, self.steps, self.rows = made, made._decoder(), rows
        token_ids, segment_ids = prompts(rows)
        with torch.inference_mode():
            self.caches = [made.make_cache(rows, MAX, **cache) for _ in range(2)]
            for one in self.caches:
                made._next_logits(token_ids, segment_ids=segment_ids, cache=one)
        self.seed = 0

    def step(self, seq: int = 1) -> tuple[Tensor, Tensor, bool]:
        """The results of both, and whether the kernel ran."""
        self.seed += 1
        token_ids, ran = integers(self.rows, seq, limit=VOCAB, seed=self.seed), []
        original = kernel.decode_step
        with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
            patch.setattr(
                backends, "choose", lambda op, *given, **options: self.watch(op, given, options, original, ran)
            )
            ours = self.steps(token_ids, segment_ids=None, cache=self.caches[0])
            patch.undo()
            theirs = self.model._next_logits(token_ids, segment_ids=None, cache=self.caches[1])
        return ours, theirs, bool(ran)

    @staticmethod
    def watch(op, given, options, original, ran, choose=backends.choose):
        chosen = choose(op, *given, **options)
        if chosen is original:
            ran.append(op)
        return chosen


def alike(ours: Tensor, theirs: Tensor) -> None:
    """Rounded at the same points; only the last float32 bits may differ, which in bfloat16 may decide a rounding."""
    tolerance = 2e-6 if ours.dtype == torch.float32 else 2e-2
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("rows", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_what_the_model_gives(kind, dtype, rows):
    both = Beside(model(dtype, **KINDS[kind]), rows)
    for _ in range(20):
        ours, theirs, ran = both.step()
        assert ran
        assert ours.dtype == dtype
        alike(ours, theirs)
    assert torch.equal(both.caches[0].lengths, both.caches[1].lengths)
    for one, other in zip(*both.caches, strict=True):
        alike(one.keys[:, :, :-1], other.keys[:, :, :-1])
        alike(one.values[:, :, :-1], other.values[:, :, :-1])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_it_takes_several_tokens_of_a_row_too(kind, dtype, rows):
    made = model(dtype, **KINDS[kind])
    wide = copy.deepcopy(made).double()
    for held in (0, 5):  # from the start, and after a prompt
        both, exact = Beside(made, rows), Beside(wide, rows).caches[1]
        if not held:
            both.caches, exact = [made.make_cache(rows, MAX) for _ in range(2)], wide.make_cache(rows, MAX)
        ring = exact[0].slots < MAX
        for seq in (3, 12 // rows, 1, 2, 24 // rows):
            ours, theirs, ran = both.step(seq)
            held += seq
            assert ran == (seq == 1 or not ring or held <= made.config.window)
            with torch.inference_mode():
                token_ids = integers(rows, seq, limit=VOCAB, seed=both.seed)
                logits = wide._next_logits(token_ids, segment_ids=None, cache=exact)
            assert_accurate(ours, array(logits), theirs)
        assert torch.equal(both.caches[0].lengths, both.caches[1].lengths)
        stored = slice(-1) if rows == 3 or ring else slice(held)  # a slot of padding may hold anything
        for one, other, oracle in zip(*both.caches, exact, strict=True):
            for name in ("keys", "values"):
                mine, plain, right = (getattr(layer, name)[:, :, stored] for layer in (one, other, oracle))
                assert_accurate(mine, array(right), plain)


@pytest.mark.parametrize("kind", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_give_the_same_bits_together_and_one_by_one(dtype, kind):
    made, token_ids = model(dtype, num_kv_heads=2), integers(2, 12, limit=VOCAB)
    if kind:
        made.quantize(kind)
    found = []
    for pieces in ([12], [1] * 12, [5, 1, 6], [7, 5]):
        taken, cache = made._decoder(), made.make_cache(2, MAX)
        with torch.inference_mode():
            logits = [taken(piece, segment_ids=None, cache=cache) for piece in token_ids.split(pieces, 1)]
        found.append((logits[-1], *(layer.keys[:, :, :12] for layer in cache)))
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert torch.equal(one, same)


def test_the_path_may_change_from_step_to_step():
    made = model()
    whole = made(token_ids := integers(2, 20, limit=VOCAB))
    taken, cache = made._decoder(), made.make_cache(2, MAX)
    with torch.inference_mode():
        taken(token_ids[:, :4], segment_ids=None, cache=cache)
        for place in range(4, 20):
            given = token_ids[:, place : place + 1]
            logits = taken(given, segment_ids=None, cache=cache) if place % 3 else made(given, cache=cache)[:, -1]
            torch.testing.assert_close(logits, whole[:, place], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_do_not_depend_on_threads(threads):
    found, before = [], torch.get_num_threads()
    for count in (before, threads):
        try:
            torch.set_num_threads(count)
            both = Beside(model(num_kv_heads=2), 3)
            found.append([both.step(seq)[0] for seq in (1, 7, 1, 4)])
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


CHANGES = {
    "copy_": lambda made: made.layers[1].ffn.up_proj.weight.copy_(torch.randn(200, 128) / 11),
    "data": lambda made: setattr(made.layers[1].ffn.up_proj.weight, "data", torch.randn(200, 128) / 11),
    "another parameter": lambda made: setattr(
        made.layers[0].attn.q_proj, "weight", nn.Parameter(torch.randn(128, 128) / 11)
    ),
    "load_state_dict": lambda made: made.load_state_dict(model().double().state_dict()),
    "assign": lambda made: made.load_state_dict(randomise(model(), seed=5).state_dict(), assign=True),
    "optimizer": lambda made: one_step_of_training(made),
}


def one_step_of_training(made: TransformerLM) -> None:
    with torch.inference_mode(False), torch.enable_grad():
        made.loss(integers(2, 6, limit=VOCAB), integers(2, 6, limit=VOCAB, seed=1)).backward()
        torch.optim.SGD(made.parameters(), lr=0.5).step()


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_take_effect_in_the_next_step(change):
    both = Beside(randomise(model(), seed=3))
    both.step()
    before = both.model.layers[1].ffn.up_proj.weight.clone(), both.model.layers[0].attn.q_proj.weight.clone()
    with torch.no_grad():
        CHANGES[change](both.model)
    after = both.model.layers[1].ffn.up_proj.weight, both.model.layers[0].attn.q_proj.weight
    assert not all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    ours, theirs, ran = both.step()
    assert ran
    alike(ours, theirs)


class Doubling(Linear):
    """A layer of another class."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice the product."""
        return 2 * super().forward(x)


def double(module: nn.Module, given: object, y: Tensor) -> Tensor:
    return 2 * y


def put_another_in(made: TransformerLM) -> None:
    made.layers[1].ffn.down_proj = Doubling(200, 128)


def replace_forward(made: TransformerLM) -> None:
    forward = made.layers[1].norm2.forward
    made.layers[1].norm2.forward = lambda x: 2 * forward(x)


def half_of_it(made: TransformerLM) -> None:
    made.layers[1].ffn.down_proj.weight = nn.Parameter((torch.randn(128, 400) / 14)[:, ::2])


def drop_in_between(made: TransformerLM) -> None:
    """Monte Carlo dropout: everything except the dropout layers is in eval mode."""
    for module in made.modules():
        if isinstance(module, Dropout):
            module.p = 0.5
            module.train()


def keep_as_buffer(made: TransformerLM) -> None:
    linear = made.layers[1].attn.q_proj
    del linear.bias
    linear.register_buffer("bias", torch.ones(128))


def forget_one_norm(made: TransformerLM) -> None:
    made.layers[1].attn.k_norm = None


def parametrise(made: TransformerLM) -> None:
    nn.utils.parametrizations.weight_norm(made.layers[0].ffn.up_proj)


def transpose(made: TransformerLM) -> None:
    weight = made.layers[0].attn.q_proj.weight
    weight.data = weight.data.t()


def replace_method(made: TransformerLM) -> None:
    angles = made.layers[1].attn.rope.cos_sin
    made.layers[1].attn.rope.cos_sin = lambda positions, dtype: angles(2 * positions, dtype)


INSTEAD = {
    "biases of the feed-forward": lambda made: setattr(made.layers[0].ffn, "down_proj", Linear(200, 128, bias=True)),
    "a bias that is a buffer": keep_as_buffer,
    "one norm without the other": forget_one_norm,
    "a parametrisation": parametrise,
    "a weight the other way round": transpose,
    "no norm at all": lambda made: setattr(made.layers[0], "norm1", Dropout(0.0)),
    "no feed-forward at all": lambda made: setattr(made.layers[0], "ffn", Linear(128, 128)),
    "a hook": lambda made: made.layers[1].attn.o_proj.register_forward_hook(double),
    "a hook before": lambda made: made.layers[1].norm1.register_forward_pre_hook(lambda module, given: (2 * given[0],)),
    "a hook on the model's norm": lambda made: made.final_norm.register_forward_hook(double),
    "another module": put_another_in,
    "a weight with gaps": half_of_it,
}


@pytest.mark.parametrize("when", ["before", "in between"])
@pytest.mark.parametrize("what", INSTEAD)
def test_it_is_not_used_for_modified_or_foreign_modules(what, when):
    made = model(qkv_bias=True, qk_norm=True)
    if when == "before":
        INSTEAD[what](made)
    both = Beside(made)
    if when == "in between":
        assert both.step()[2]
        INSTEAD[what](made)
    ours, theirs, ran = both.step()
    assert not ran
    alike(ours, theirs)


def bias_of(name: str, value: float | None) -> Callable[[Any], None]:
    """A change of the model: this layer has this bias, or none."""

    def change(made: Any) -> None:
        layer = made.get_submodule(name)
        layer.bias = None if value is None else nn.Parameter(torch.full((layer.out_features,), value))

    return change


BIASES = {
    "of queries": (bias_of("layers.1.attn.q_proj", 3.0), True),
    "of values, gone": (bias_of("layers.1.attn.v_proj", None), True),
    "of the output": (bias_of("layers.0.attn.o_proj", 3.0), True),
    "of the gate": (bias_of("layers.0.ffn.gate_proj", 3.0), False),
    "of the feed-forward": (bias_of("layers.1.ffn.down_proj", 3.0), False),
    "of the head": (bias_of("lm_head", 3.0), False),
}


@pytest.mark.parametrize("when", ["before", "in between"])
@pytest.mark.parametrize("what", BIASES)
def test_biases_that_come_and_go_are_seen(what, when):
    made = randomise(model(qkv_bias=what == "of values, gone"), seed=3)
    change, supported = BIASES[what]
    both, plain = Beside(made), Beside(copy.deepcopy(made)).step()[0]
    if when == "before":
        change(made)
        both = Beside(made)
    else:
        assert both.step()[2]
        change(made)
    ours, theirs, ran = both.step()
    assert ran == supported
    alike(ours, theirs)
    assert (ours - plain).abs().max() > 1e-3  # it matters


def test_keys_that_the_caller_puts_in_the_place_of_others_are_read():
    both = Beside(model())
    for _ in range(2):
        assert both.step()[2]
        for cache in both.caches:
            cache[1].values = cache[1].values * 2
    ours, theirs, ran = both.step()
    assert ran
    alike(ours, theirs)


def test_the_next_cache_is_looked_at_even_if_no_other_code_runs_between_steps():
    made = model(window=9)
    taken = made._decoder(exclusive=True)
    token_ids = integers(1, 1, limit=VOCAB)
    with torch.inference_mode():
        for options in ({}, {"rewind": 3}, {}):
            cache, other = (made.make_cache(1, MAX, **options) for _ in range(2))
            for _ in range(2):
                ours = taken(token_ids, segment_ids=None, cache=cache)
                alike(ours, made._next_logits(token_ids, segment_ids=None, cache=other))
            assert cache.lengths.tolist() == [2]
            alike(cache[1].keys[:, :, :2], other[1].keys[:, :, :2])


ATTRIBUTES = {  # seen where a generation begins
    "another method": replace_method,
    "another forward": replace_forward,
    "another eps": lambda made: setattr(made.layers[0].norm1, "eps", 0.5),
    "another pairing": lambda made: setattr(made.layers[0].attn.rope, "interleaved", True),
}


@pytest.mark.parametrize("what", ATTRIBUTES)
def test_it_is_not_used_for_modules_with_overridden_attributes(what):
    made = model(qkv_bias=True, qk_norm=True)
    ATTRIBUTES[what](made)
    ours, theirs, ran = Beside(made).step()
    assert ran == (what == "another pairing")
    alike(ours, theirs)


def test_dropout_in_eval_mode_is_applied():
    made = model()
    drop_in_between(made)
    ours, theirs, ran = Beside(made).step()
    assert not ran
    assert (ours - theirs).abs().max() > 0.1  # by chance


def test_a_model_that_was_loaded_is_decoded_so_too(tmp_path):
    made = model()
    made.eos_token_ids = (3,)
    made.save_pretrained(tmp_path)
    assert Beside(TransformerLM.from_pretrained(tmp_path)).step()[2]


def test_it_is_not_used_after_a_class_was_changed(monkeypatch):
    forward = SwiGLU.forward
    monkeypatch.setattr(SwiGLU, "forward", lambda self, x: 2 * forward(self, x))
    ours, theirs, ran = Beside(model()).step()
    assert not ran
    assert torch.equal(ours, theirs)


def test_a_part_that_is_gone_is_missed_by_the_model():
    both = Beside(model())
    both.step()
    del both.model.layers[0].ffn.up_proj
    with pytest.raises(AttributeError, match="up_proj"):
        both.step()


class Loud(LayerCache):
    """A cache that modifies what it stores."""

    def store(self, k, v, slots):
        return super().store(k, 2 * v, slots)


def test_a_cache_of_another_class_is_called():
    both = Beside(model())
    for cache in both.caches:
        for layer in cache:
            layer.__class__ = Loud
    ours, theirs, ran = both.step()
    assert not ran
    assert torch.equal(ours, theirs)


def test_a_cache_of_another_window_is_refused_as_ever():
    made = model(window=5)
    narrow = model(window=3).make_cache(1, MAX, rewind=2)
    with pytest.raises(ConfigError, match="window"), torch.inference_mode():
        made._decoder()(integers(1, 1, limit=VOCAB), segment_ids=None, cache=narrow)


def test_a_hook_on_all_modules_is_called():
    both, seen = Beside(model()), []
    hook = nn.modules.module.register_module_forward_hook(lambda module, given, y: seen.append(module))
    try:
        assert not both.step()[2]
    finally:
        hook.remove()
    assert both.model.layers[1].ffn.gate_proj in seen


class Sub(TransformerLM):
    """A model of another class."""


@pytest.mark.parametrize(
    "made",
    [
        lambda: Sub(ModelConfig(VOCAB, 128, 2, 4)),
        lambda: model(torch.float64),
        lambda: model(num_heads=8),  # heads of 16
        lambda: model(dropout=0.1).train(),
    ],
)
def test_it_is_not_used_for_unsupported_models(made):
    ours, theirs, ran = (both := Beside(made())).step()
    assert not ran
    assert ours.shape == theirs.shape
    assert both.caches[0].lengths.tolist() == [6]


@pytest.mark.parametrize(
    "change",
    [
        lambda made: setattr(made.embedding, "scale", 2.0),
        lambda made: setattr(made.layers[1], "scale", 0.5),
        lambda made: setattr(made.layers[1].ffn, "activation", "gelu"),
        lambda made: setattr(made.layers[0].attn, "family", Family(attention_scale=0.3)),
        lambda made: setattr(made.layers[1].attn, "rope", None),
    ],
)
def test_it_does_not_stand_in_for_a_familys_part_that_was_told_more(change):
    made = model(family=Family())
    assert isinstance(made._decoder(), NativeDecoder)
    change(made)
    assert not isinstance(made._decoder(), NativeDecoder)


def test_windows_of_some_layers_that_are_shorter_than_the_room_are_run_layer_by_layer():
    both = Beside(model(family=Family(windows=(0, 9))))
    for _ in range(12):
        ours, theirs, ran = both.step()
        assert not ran
        assert torch.equal(ours, theirs)


def test_what_training_drops_it_does_not_drop():
    assert Beside(model(dropout=0.1)).step()[2]  # in eval mode
    assert Beside(model().train()).step()[2]  # nothing is dropped


def test_it_is_not_used_for_unsupported_calls():
    both = Beside(model(window=9), rewind=3)  # more is held than is seen
    ours, theirs, ran = both.step()
    assert not ran
    assert torch.equal(ours, theirs)
    assert not Beside(model(), 9).step()[2]
    assert not Beside(model(), 1).step(25)[2]
    assert not Beside(model(), 5).step(5)[2]
    with torch.autocast("cpu"):
        assert not Beside(model()).step()[2]
    with use_backend("reference"):
        assert not Beside(model()).step()[2]
    made = model()
    cache = made.make_cache(1, MAX)
    logits = made._decoder()(integers(1, 1, limit=VOCAB), segment_ids=None, cache=cache)
    assert logits.requires_grad  # outside of no_grad somebody may want gradients


def test_a_cache_that_is_full_is_refused_as_ever_and_keeps_what_it_has():
    both = Beside(model())
    for _ in range(MAX - 5):
        both.step()
    for run in (both.steps, both.model._next_logits):
        with pytest.raises(RangeError, match=f"{MAX + 1} tokens need positions up to {MAX}"), torch.inference_mode():
            run(integers(1, 1, limit=VOCAB), segment_ids=None, cache=both.caches[0])
    assert both.caches[0].lengths.tolist() == [MAX]


@pytest.mark.parametrize("token", [-1, VOCAB, 2**40])
def test_a_token_outside_the_vocabulary_is_refused_and_loses_nothing(token):
    both = Beside(model(), 2)
    with pytest.raises(RangeError, match="token ids"), torch.inference_mode():
        both.steps(torch.tensor([[1], [token]]), segment_ids=None, cache=both.caches[0])
    with pytest.raises(RangeError, match="token ids"), torch.inference_mode():
        both.steps(torch.tensor([[1, 2], [token, 3]]), segment_ids=None, cache=both.caches[0])
    ours, theirs, ran = both.step()
    assert ran
    alike(ours, theirs)


def test_without_memory_the_cache_stays_what_it_was(monkeypatch):
    both = Beside(model())

    def no_memory(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(kernel.DECODE_STEP, "call", no_memory)
        with pytest.raises(MemoryError):
            both.steps(integers(1, 1, limit=VOCAB), segment_ids=None, cache=both.caches[0])
    ours, theirs, ran = both.step()
    assert ran
    alike(ours, theirs)


def test_generation_takes_it(monkeypatch):
    called = []
    original = NativeDecoder._few_tokens
    monkeypatch.setattr(NativeDecoder, "_few_tokens", lambda *given: called.append(original(*given)) or called[-1])
    made = model()
    made.generate([[1, 2, 3], [4, 5, 6]], max_new_tokens=6, temperature=0)
    assert len(called) == 6
    called.clear()
    replies = made.generate([[1, 2, 3], [4]], max_new_tokens=6, temperature=0)
    assert len(called) == 5
    assert all(logits is not None for logits in called)
    assert list(zip(*made.stream([[1, 2, 3], [4]], max_new_tokens=6, temperature=0), strict=True)) == [
        tuple(reply) for reply in replies
    ]
    with use_backend("reference"):
        assert made.generate([[1, 2, 3], [4]], max_new_tokens=6, temperature=0) == replies
