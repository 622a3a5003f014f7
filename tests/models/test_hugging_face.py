"""Compared with tiny random Hugging Face models: the same weights give the same outputs and gradients.

Theirs always norm and take angles in float32, so in float64 they are a witness to float32's digits only. The weights
are carried over by a table of names of this file's own.
"""

import dataclasses
import functools
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from prenorm import ModelConfig, RopeScaling, TransformerBlock, TransformerLM

from ..oracle import models
from ..oracle.inputs import integers, normal, randomise, weights_of
from ..oracle.tolerance import array, assert_accurate, assert_exact, assert_rounding_alone, rms

VOCAB, SEQ = 13, 12
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "attn_implementation": "eager",
}
LLAMA3 = RopeScaling("llama3", 8.0, original_max_seq_len=16)
# Name: their classes and config, our options. SEQ is longer than the window and than 16, where llama3 scaling begins.
FAMILIES: dict[str, Any] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"rms_norm_eps": 1e-6}, {}),
    "llama with biases, tied": (
        LlamaForCausalLM,
        LlamaConfig,
        {"attention_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 1e-3},
        {"qkv_bias": True, "o_bias": True, "tie_embeddings": True, "eps": 1e-3},
    ),
    "llama 3.1": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
        {"rope_theta": 100.0, "rope_scaling": LLAMA3},
    ),
    "llama, linear scaling": (
        LlamaForCausalLM,
        LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        {"rope_scaling": RopeScaling("linear", 4.0)},
    ),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 5}, {"window": 5}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}, {"qkv_bias": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 6}, {"qk_norm": True, "head_dim": 6}),
}

NAMES = {
    "embedding": "model.embed_tokens",
    "layers": "model.layers",
    "final_norm": "model.norm",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "attn": "self_attn",
    "ffn": "mlp",
}


def theirs(name):
    """Hugging Face's name of one of prenorm's parameters."""
    return ".".join(NAMES.get(part, part) for part in name.split("."))


@functools.cache
def pair(family):
    """A Hugging Face model with random weights, and a prenorm model with the same, both in float32."""
    model, config, their_options, our_options = FAMILIES[family]
    witness = randomise(model(config(**{"tie_word_embeddings": False, "rms_norm_eps": 1e-6, **SIZES, **their_options})))
    own = ModelConfig(VOCAB, 16, 2, 4, num_kv_heads=2, d_ff=24, max_seq_len=64, **our_options)
    ours, weights = TransformerLM(own), witness.state_dict()
    ours.load_state_dict({name: weights[theirs(name)] for name in ours.state_dict()})
    assert len(list(witness.parameters())) == len(list(ours.parameters()))
    return witness.eval(), ours.eval()


def of(family, dtype):
    witness, ours = pair(family)
    return witness.to(dtype), ours.to(dtype)


def oracle(model, ids):
    config = model.config
    names = ("num_layers", "num_heads", "num_kv_heads", "head_dim", "eps", "window", "rope_theta", "qk_norm")
    scaling = None if config.rope_scaling is None else dataclasses.asdict(config.rope_scaling)
    options = {name: getattr(config, name) for name in names}
    return models.language_model(
        weights_of(model), ids.numpy(), rope_interleaved=False, rope_scaling=scaling, **options
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_hidden_states_are_theirs(family):
    ids = integers(2, SEQ, limit=VOCAB)
    witness, ours = of(family, torch.float32)
    wanted = oracle(ours, ids)
    with torch.no_grad():
        out = witness(ids, output_hidden_states=True)
        assert_rounding_alone(out.logits, wanted, torch.float32)
        assert_accurate(ours(ids), wanted, out.logits)
        hidden, plain = ours.hidden(ids), out.hidden_states[-1]
        witness, ours = of(family, torch.float64)
        exact = ours.hidden(ids)
        assert_exact(ours(ids), wanted)
        assert_rounding_alone(witness(ids).logits, wanted, torch.float32)
    assert_rounding_alone(plain, array(exact), torch.float32)
    assert_accurate(hidden, array(exact), plain)


def gradients_of(loss, model, names):
    return torch.autograd.grad(loss, [model.get_parameter(name) for name in names])


def joined(gradients, exact):
    """All gradients in one vector, each normalised: an RMS over few elements would depend on chance."""
    return torch.cat([gradient.flatten() / rms(wanted) for gradient, wanted in zip(gradients, exact, strict=True)])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_and_the_gradients_of_every_weight_are_theirs(family):
    ids = integers(2, SEQ, limit=VOCAB)
    witness, ours = of(family, torch.float32)
    names = [name for name, _ in ours.named_parameters()]
    losses = ours.loss(ids[:, :-1], ids[:, 1:]), witness(ids, labels=ids).loss  # they shift inside
    actual = gradients_of(losses[0], ours, names)
    plain = gradients_of(losses[1], witness, map(theirs, names))
    witness, ours = of(family, torch.float64)
    loss = ours.loss(ids[:, :-1], ids[:, 1:])
    exact = [array(gradient) for gradient in gradients_of(loss, ours, names)]
    for each in losses:
        assert_rounding_alone(each, loss.item(), torch.float32)
    for mine, their, wanted in zip(actual, plain, exact, strict=True):
        assert_rounding_alone(mine, wanted, torch.float32)
        assert_rounding_alone(their, wanted, torch.float32)
    assert_accurate(joined(actual, exact), array(joined(map(torch.from_numpy, exact), exact)), joined(plain, exact))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_one_block_is_one_of_their_layers(family):
    witness, ours = of(family, torch.float32)
    layer, shared = witness.model.layers[0], ours.layers[0].state_dict()
    config = ours.config
    options = {"num_kv_heads": 2, "head_dim": config.head_dim, "qk_norm": config.qk_norm, "rope_interleaved": False}
    block = TransformerBlock(16, 4, 24, max_seq_len=64, **options)
    block.load_state_dict(shared)
    x = normal(2, SEQ, 16, dtype=torch.float32).requires_grad_()
    positions = integers(2, SEQ, limit=64)
    plain = layer(x, position_ids=positions, position_embeddings=witness.model.rotary_emb(x, positions))
    if isinstance(plain, tuple):
        plain = plain[0]
    weigh = normal(2, SEQ, 16, seed=1, dtype=torch.float32)
    (their_gradient,) = torch.autograd.grad((plain * weigh).sum(), x)
    y = block(x, positions)
    (gradient,) = torch.autograd.grad((y * weigh).sum(), x)
    exact_x = x.detach().double().requires_grad_()
    exact = block.double()(exact_x, positions)
    (exact_gradient,) = torch.autograd.grad((exact * weigh).sum(), exact_x)
    names = {name: options[name] for name in ("num_kv_heads", "head_dim", "qk_norm", "rope_interleaved")}
    assert_exact(exact, models.block(weights_of(block), array(x), positions.numpy(), num_heads=4, **names))
    assert_rounding_alone(plain, array(exact), torch.float32)
    assert_rounding_alone(their_gradient, array(exact_gradient), torch.float32)
    assert_accurate(y, array(exact), plain)
    assert_accurate(gradient, array(exact_gradient), their_gradient)
