"""Variants against their formulas; the post-norm encoder block against BERT's own layers, with the same weights."""

import functools

import pytest
import torch
from transformers import BertConfig, BertModel

from prenorm import TransformerBlock
from prenorm.lab.model import OURS, XAVIER, Sizes, VariantLM
from prenorm.lab.variants import SWAPS, VARIANTS, PostNormEncoderBlock, make_block
from prenorm.layers.layer_norm import LayerNorm
from prenorm.layers.rope import RotaryEmbedding

from ..oracle import models
from ..oracle.inputs import integers, mask_of, normal, randomise, weights_of
from ..oracle.pytorch import assert_same
from ..oracle.tolerance import TERMS, array, assert_exact, error, rms

D_MODEL, HEADS, D_FF, LAYERS, BATCH, SEQ = 16, 4, 24, 3, 3, 7
THEIR_NAMES = {
    "attn.q_proj": "attention.self.query",
    "attn.k_proj": "attention.self.key",
    "attn.v_proj": "attention.self.value",
    "attn.o_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "ffn.up_proj": "intermediate.dense",
    "ffn.down_proj": "output.dense",
    "norm2": "output.LayerNorm",
}


@functools.cache
def bert(attn_implementation):
    """A BERT with random weights in float64, without dropout."""
    config = BertConfig(
        vocab_size=11,
        hidden_size=D_MODEL,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=D_FF,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=attn_implementation,
    )
    return randomise(BertModel(config, add_pooling_layer=False).double())


def blocks_of(model):
    """Our blocks with its weights."""
    blocks = []
    for layer in model.encoder.layer:
        block = PostNormEncoderBlock(D_MODEL, HEADS, D_FF, dropout=0.0, eps=1e-12, dtype=torch.float64)
        weights = {name: layer.get_parameter(theirs(name)) for name in block.state_dict()}
        assert len(weights) == len(list(layer.parameters()))
        block.load_state_dict(weights)
        blocks.append(block)
    return blocks


def theirs(name):
    part, _, kind = name.rpartition(".")
    return f"{THEIR_NAMES[part]}.{kind}"


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_hidden_states_and_gradients_are_berts(attn_implementation, padded):
    model, real = bert(attn_implementation), torch.ones(BATCH, SEQ, dtype=torch.int64)
    if padded:
        real[1, 4:] = real[2, :2] = 0
    out = model(integers(BATCH, SEQ, limit=11), attention_mask=real, output_hidden_states=True)
    first, *wanted = out.hidden_states
    blocks, x = blocks_of(model), first.detach().requires_grad_()
    y, hidden = x, []
    for block in blocks:
        y = block(y, real.bool()[:, None, None])
        hidden.append(y)
    assert_same(hidden, wanted)
    names = [name for name, _ in blocks[0].named_parameters()]
    ours = [block.get_parameter(name) for block in blocks for name in names]
    their = [layer.get_parameter(theirs(name)) for layer in model.encoder.layer for name in names]
    grads, their_grads = gradients(hidden, [x, *ours]), gradients(wanted, [first, *their])
    for name, mine, other in zip(["x", *names * LAYERS], grads, their_grads, strict=True):
        if name == "attn.k_proj.bias":  # it moves all scores of a query alike: its gradient is nothing but rounding
            noise = TERMS * torch.finfo(mine.dtype).eps * rms(array(grads[0]))
            assert max(rms(array(mine)), rms(array(other))) <= noise
        else:
            assert_exact(mine, array(other))


def gradients(hidden, tensors):
    """Of a sum in which every number of every hidden state has a weight of its own."""
    weigh = normal(LAYERS, BATCH, SEQ, D_MODEL, seed=5)
    return torch.autograd.grad((torch.stack(hidden) * weigh).sum(), tensors)


def test_its_norms_come_after_the_sums():
    block, x = randomise(PostNormEncoderBlock(8, 2, 12, dropout=0.0, dtype=torch.float64)), normal(5, 8)
    weights = weights_of(block)
    middle = array(x) + models.multihead(models.below(weights, "attn."), array(x), array(x), None, 2)
    middle = models.norm(weights, "norm1", middle, 1e-5)
    assert_exact(block(x), models.norm(weights, "norm2", middle + models.feed_forward(weights, middle), 1e-5))


def test_a_mask_says_who_may_attend_and_those_who_see_nobody_stay_finite():
    block, x, mask = randomise(PostNormEncoderBlock(8, 2, dropout=0.5)), torch.randn(2, 5, 8), mask_of(2, 1, 5, 5)
    x.requires_grad_()
    block(x, mask).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert not torch.equal(block.eval()(x, mask), block(x))


def test_dropout_is_where_the_paper_has_it():
    # What a sublayer adds is dropped before the sum: with everything it adds constant, x itself never is.
    block = PostNormEncoderBlock(8, 2, dropout=0.5, dtype=torch.float64)
    for part in (block.attn.o_proj, block.ffn.down_proj):
        torch.nn.init.zeros_(part.weight)
    x = normal(3, 8)
    assert_exact(block(x), array(block.eval()(x)))
    torch.nn.init.ones_(block.train().attn.o_proj.bias)
    plain = block.eval()(x)
    assert error(block.train()(x), array(plain)) > 0.1 * rms(array(plain))


ROPE = RotaryEmbedding(4, 16)
FORMULAS = {
    "pre-norm": lambda x, norm, f, _: x + f(norm(x)),
    "post-norm": lambda x, norm, f, _: norm(x + f(x)),
    "norm on skip": lambda x, norm, f, _: norm(x) + f(norm(x)),
    "no residual": lambda x, norm, f, _: f(norm(x)),
    "no norm": lambda x, norm, f, _: x + f(x),
    "scaled residual": lambda x, norm, f, depth: x + f(norm(x)) / (2 * depth) ** 0.5,
    "DeepNorm": lambda x, norm, f, depth: norm((2 * depth) ** 0.25 * x + f(x)),
}


def variant(name, depth=3):
    return randomise(make_block(name, 8, 2, 12, depth=depth, rope=ROPE, dtype=torch.float64))


@pytest.mark.parametrize("name", FORMULAS)
def test_each_variant_is_its_formula_twice(name):
    block, x, formula = variant(name), normal(2, 5, 8), FORMULAS[name]
    middle = formula(x, block.norm1, block.attn, 3)
    torch.testing.assert_close(block(x), formula(middle, block.norm2, block.ffn, 3), rtol=0, atol=1e-12)


def test_the_sandwich_norms_what_it_adds_each_sublayer_by_a_norm_of_its_own():
    block, x = variant("sandwich"), normal(2, 5, 8)
    after1, after2 = block.after["norm1"], block.after["norm2"]
    assert not torch.equal(after1.weight, after2.weight)
    middle = x + after1(block.attn(block.norm1(x)))
    torch.testing.assert_close(block(x), middle + after2(block.ffn(block.norm2(middle))), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [*VARIANTS, *SWAPS])
def test_every_variant_is_causal_and_its_weights_have_gradients(name):
    block, x = variant(name), normal(2, 5, 8)
    later = x.clone()
    later[:, 3:] += 1
    torch.testing.assert_close(block(x)[:, :3], block(later)[:, :3], rtol=0, atol=1e-12)
    block(x).square().sum().backward()
    unused = {name for name, one in block.named_parameters() if one.grad is None}
    assert unused == ({"norm1.weight", "norm2.weight"} if name == "no norm" else set())


def test_pre_norm_is_the_blessed_block_itself():
    assert type(variant("pre-norm")) is TransformerBlock


def test_swaps_change_one_part_and_gelu_keeps_the_number_of_weights():
    assert isinstance(variant("LayerNorm").norm1, LayerNorm)
    assert isinstance(variant("LayerNorm").ffn, type(variant("pre-norm").ffn))
    counts = {name: sum(one.numel() for one in variant(name).parameters()) for name in ("pre-norm", "GELU")}
    assert counts["pre-norm"] == counts["GELU"]


def test_deepnorm_starts_as_small_as_the_paper_has_it():
    sizes = Sizes(d_model=8, num_heads=2, d_ff=8)
    plain, deep = (VariantLM(name, 2, XAVIER, sizes=sizes, seed=0) for name in ("post-norm", "DeepNorm"))
    for name, weight in plain.named_parameters():
        small = any(part in name for part in ("v_proj", "o_proj", "ffn."))
        torch.testing.assert_close(deep.get_parameter(name), weight * (16**-0.25 if small else 1.0))


def test_models_end_with_a_norm_only_where_the_stream_is_not_normed_and_start_from_the_seed_alone():
    sizes = Sizes(d_model=8, num_heads=2, d_ff=8)
    models = {name: VariantLM(name, 1, OURS, sizes=sizes, seed=0) for name in [*VARIANTS, *SWAPS]}
    ends = {name for name, model in models.items() if isinstance(model.final_norm, torch.nn.Identity)}
    assert ends == {"post-norm", "no norm", "DeepNorm"}
    assert isinstance(models["LayerNorm"].final_norm, LayerNorm)
    torch.manual_seed(99)
    again = VariantLM("pre-norm", 1, OURS, sizes=sizes, seed=0).state_dict()
    torch.testing.assert_close(again, models["pre-norm"].state_dict(), rtol=0, atol=0)
    assert models["pre-norm"].get_parameter("layers.0.attn.q_proj.weight").std() < 0.04
