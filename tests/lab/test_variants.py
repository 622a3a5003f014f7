"""The post-norm block against BERT's own layers, random and small, with the same weights."""

import functools

import pytest
import torch
from transformers import BertConfig, BertModel

from prenorm.lab.variants import PostNormEncoderBlock

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
