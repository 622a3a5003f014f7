"""A quantised language model: every way of running it, its errors, and its accuracy."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from prenorm import ConfigError, ModelConfig, PrenormError, TransformerLM, use_backend
from prenorm.functional import cross_entropy
from prenorm.kernels.cpu import native
from prenorm.layers.linear import Linear
from prenorm.layers.quantized import QuantizedLinear
from prenorm.ops.quantized import dequantize

from ..oracle.inputs import integers, randomise

KINDS = ("int8", "int4")
VOCAB = 97
OPTIONS = {
    "plain": {},
    "grouped, with biases": {"num_kv_heads": 2, "qkv_bias": True, "o_bias": True, "rope_interleaved": True},
    "windowed, tied, normed": {"window": 5, "tie_embeddings": True, "qk_norm": True},
}


def make(dtype=torch.float32, **options):
    config = ModelConfig(VOCAB, 64, 2, 4, **{"d_ff": 100, "max_seq_len": 48, "head_dim": 32} | options)
    return randomise(TransformerLM(config)).to(dtype).eval()


def in_floats(model):
    """The same model with the dequantised weights, in float64."""
    other = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            linear = Linear(module.in_features, module.out_features, bias=module.bias is not None)
            linear.weight.data = dequantize(*module.unpacked())
            linear.bias = module.bias
            other.set_submodule(name, linear)
    return other.double()


def difference(a, b):
    return float((a.double() - b.double()).square().mean().sqrt() / b.double().square().mean().sqrt())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_it_is_the_model_with_its_matrices_rounded(options, kind):
    model = make(**options)
    before, ids = copy.deepcopy(model), integers(3, 20, limit=VOCAB)
    assert model.quantize(kind) is model
    assert not any(isinstance(module, Linear) for module in model.modules())
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == 2 * 7 + 1
    assert torch.equal(model.embedding.weight, before.embedding.weight)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    whole = in_floats(model)
    assert difference(model(ids), whole(ids)) < 0.04  # the activations' rounding, to 8 bits
    assert difference(whole(ids), before.double()(ids)) < {"int8": 0.03, "int4": 0.3}[kind]


def test_a_tied_head_becomes_a_matrix_of_its_own():
    model = make(tie_embeddings=True).quantize("int8")
    assert not model.config.tie_embeddings
    head = dequantize(*model.lm_head.unpacked())
    assert (head - model.embedding.weight).abs().max() < 0.01 * model.embedding.weight.abs().max()


@pytest.mark.sampled(6)
@pytest.mark.skipif(bool(native.unavailable_reason()), reason="this machine has no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("rows", [1, 3, 8])
@torch.no_grad()
def test_a_step_in_one_call_gives_what_the_layers_give(options, kind, dtype, rows):
    model = make(dtype, **options).quantize(kind)
    steps, caches, ids = (
        model._decoder(),
        [model.make_cache(rows, 20) for _ in range(2)],
        integers(rows, 9, limit=VOCAB),
    )
    for token in ids.split(1, 1):
        ours = steps(token, segment_ids=None, cache=caches[0])
        theirs = model._next_logits(token, segment_ids=None, cache=caches[1])
        if dtype == torch.bfloat16:
            assert torch.equal(ours, theirs)
        else:  # the last bits of a float32 may decide which integer is nearest
            assert difference(ours, theirs) < 5e-3
    assert steps.known is not None
    assert steps.known.fits
    assert steps.known.bits == steps.known.head.bits == {"int8": 8, "int4": 4}[kind]


@pytest.mark.skipif(bool(native.unavailable_reason()), reason="this machine has no C++ compiler")
@pytest.mark.parametrize("change", ["load_state_dict", "assigned", "copy_", "another layer", "in floats"])
@torch.no_grad()
def test_a_step_sees_what_was_changed_since_the_last(change):
    model, other = make().quantize("int8"), randomise(make(), seed=1).quantize("int8")
    steps, caches, ids = model._decoder(), [model.make_cache(1, 20) for _ in range(2)], integers(1, 4, limit=VOCAB)

    def both(token):
        return (
            steps(token, segment_ids=None, cache=caches[0]),
            model._next_logits(token, segment_ids=None, cache=caches[1]),
        )

    first, _ = both(ids[:, :1])
    down = model.layers[1].ffn.down_proj
    if change == "load_state_dict":
        model.load_state_dict(other.state_dict())
    elif change == "assigned":
        model.load_state_dict(other.state_dict(), assign=True)
    elif change == "copy_":
        down.scale.copy_(2 * down.scale)
    elif change == "another layer":
        model.layers[1].ffn.down_proj = other.layers[1].ffn.down_proj
    else:
        made = Linear(down.in_features, down.out_features)
        made.weight.copy_(2 * dequantize(*down.unpacked()))
        model.layers[1].ffn.down_proj = made
    for token in ids[:, 1:].split(1, 1):
        ours, theirs = both(token)
        assert difference(ours, theirs) < 5e-3
        assert not torch.equal(ours, first)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_decoded_tokens_are_the_oracles_where_its_two_best_differ_by_more_than_the_error(options, kind, dtype):
    """The oracle: the same rounded weights in float64, one token after the other, without a cache."""
    model = make(dtype, **options).quantize(kind)
    oracle, prompts = in_floats(model), [[3, 1, 4], [1], [5, 9, 2, 6, 5]]
    written = model.generate(prompts, max_new_tokens=16, temperature=0)
    near = 0
    for prompt, reply in zip(prompts, written, strict=True):
        ids = torch.tensor([prompt + reply])
        expected, ours = (one(ids)[0, len(prompt) - 1 : -1].double() for one in (oracle, model))
        error = (expected - ours).abs().max()
        best = expected.max(-1).values
        chosen = expected.gather(-1, torch.tensor(reply)[:, None])[:, 0]
        assert (best - chosen <= 2 * error).all()
        near += int((best != chosen).sum())
    assert near <= 16  # of 48: most are the oracle's own
    assert error < 0.1 * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_its_loss_is_that_of_its_logits(kind):
    model, ids = make().quantize(kind), integers(2, 12, limit=VOCAB)
    targets = integers(2, 12, limit=VOCAB, seed=1)
    targets[0, :5] = -100
    assert torch.allclose(model.loss(ids, targets), cross_entropy(model(ids), targets), rtol=1e-6)
    assert float(model.loss(ids, torch.full_like(targets, -100))) == 0


def test_a_long_loss_holds_a_part_of_the_logits(monkeypatch):
    from prenorm.ops import cross_entropy as module
    from prenorm.ops.quantized import quantized_linear

    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 5 * VOCAB)
    model, ids = make().quantize("int8"), integers(2, 12, limit=VOCAB)
    rows = []

    def counted(x, *given, **options):
        rows.append(len(x))
        return quantized_linear(x, *given, **options)

    monkeypatch.setattr("prenorm.layers.quantized.quantized_linear", counted)
    loss = model.loss(ids, ids)
    assert rows[-5:] == [5, 5, 5, 5, 4]  # after those of the blocks
    monkeypatch.undo()
    assert torch.allclose(loss, cross_entropy(model(ids), ids), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_kernels_and_the_formulas_agree(kind):
    model, ids = make().quantize(kind), integers(2, 12, limit=VOCAB)
    with use_backend("reference"):
        expected = model(ids)
    # A number that lies between two whole ones may be rounded to either.
    assert difference(model(ids), expected) < 0.01


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_folder_keeps_its_numbers(tmp_path, kind):
    model, ids = make(torch.bfloat16).quantize(kind), integers(2, 12, limit=VOCAB)
    model.save_pretrained(tmp_path)
    again = TransformerLM.from_pretrained(tmp_path)
    assert again.config == model.config
    assert torch.equal(again(ids), model(ids))
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    wide = TransformerLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert wide(ids).dtype == torch.float32
    assert torch.equal(wide.lm_head.weight, model.lm_head.weight)


@torch.no_grad()
def test_a_draft_may_be_quantised():
    model = make()
    draft = copy.deepcopy(model).quantize("int4")
    prompts = [[3, 1, 4], [1, 5]]
    plain = model.generate(prompts, max_new_tokens=12, temperature=0)
    assert model.generate(prompts, max_new_tokens=12, temperature=0, draft=draft) == plain


def test_training_is_refused():
    model, ids = make().quantize("int8"), integers(2, 12, limit=VOCAB)
    model.embedding.weight.requires_grad_()
    with pytest.raises(PrenormError, match="quantised weights cannot be trained"):
        model.loss(ids, ids)


def test_nothing_is_changed_where_it_is_refused():
    model = make()
    with pytest.raises(ConfigError, match="int8 or int4, not 'int2'"):
        model.quantize("int2")
    with torch.no_grad():
        model.layers[1].ffn.up_proj.weight[3, 4] = torch.nan
    with pytest.raises(ConfigError, match=r"finite to be quantised, but layers\.1\.ffn\.up_proj\.weight contains NaN"):
        model.quantize("int8")
    with torch.no_grad():
        model.layers[1].ffn.up_proj.weight[3, 4] = 3e38
    with pytest.raises(
        ConfigError, match=r"at most 1\.7e\+38 in absolute value .*up_proj\.weight has 3\.0e\+38; scale it down"
    ):
        model.quantize("int8")
    assert sum(isinstance(module, Linear) for module in model.modules()) == 2 * 7 + 1
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.device("meta"):
        empty = TransformerLM(model.config)
    with pytest.raises(ConfigError, match="has no data"):
        empty.quantize("int8")
    twice = make().quantize("int4")
    with pytest.raises(ConfigError, match="already quantised, to int4"):
        twice.quantize("int8")
    with pytest.raises(ConfigError, match="a quantised head has no floating-point weight"):
        _ = twice.head_weight


class Negative(Linear):
    """A linear layer with a forward of its own."""

    def forward(self, x):
        return -super().forward(x)


def replaced(layer):
    forward = layer.forward
    layer.forward = lambda x: -forward(x)


CHANGES = {
    "a hook": lambda layer: layer.register_forward_hook(lambda module, given, y: -y),
    "a hook before": lambda layer: layer.register_forward_pre_hook(lambda module, given: (3 * given[0],)),
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
    "a subclass": lambda layer: setattr(layer, "__class__", Negative),
    "a forward": replaced,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["lm_head", "layers.1.attn.q_proj"])
def test_what_a_layer_does_besides_its_product_is_not_lost(name, change):
    model, ids = make(), integers(2, 5, limit=VOCAB)
    CHANGES[change](model.get_submodule(name))
    before = model(ids)
    with pytest.raises(ConfigError, match=rf"would be lost, but {name}"):
        model.quantize("int8")
    assert torch.equal(model(ids), before)


def test_an_adapter_around_a_layer_stays():
    model, ids = make(), integers(2, 5, limit=VOCAB)
    model.lm_head = nn.Sequential(model.lm_head, nn.Tanh())
    assert model.quantize("int8")(ids).abs().max() <= 1
    assert isinstance(model.lm_head[0], QuantizedLinear)


def test_bytes_are_what_the_bits_say():
    model = make(d_ff=128)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and name != "embedding.weight")
    for kind, bits in (("int8", 8.5), ("int4", 4.5)):
        made = copy.deepcopy(model).quantize(kind)
        held = sum(b.nbytes for name, b in made.named_buffers() if name.endswith(("weight", "scale")))
        assert held <= 1.08 * matrices * bits / 8  # the head's 97 rows are held as 112
        assert held >= matrices * bits / 8
    assert np.isfinite(held)
