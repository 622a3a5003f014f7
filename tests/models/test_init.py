import math

import pytest
import torch

from prenorm import ModelConfig, TransformerLM
from prenorm.models.init import first_weights, initialise
from prenorm.training.config import TrainConfig
from prenorm.training.optimizer import MuonAndAdamW

from ..oracle.inputs import integers

NUM_BLOCKS = 128
# Gradients of the first and the last block, and of all between, are within a factor of 5 of each other;
# without the depth scaling, and with 5 times the standard deviation, they are not (see the last test).
SPREAD = 5


def config(num_layers, d_model=64):
    return ModelConfig(
        vocab_size=64, d_model=d_model, num_layers=num_layers, num_heads=2, d_ff=2 * d_model, qkv_bias=True, o_bias=True
    )


def test_matrices_are_normal_and_those_that_write_to_the_residual_path_shrink_with_depth():
    model = TransformerLM(config(num_layers=8, d_model=128))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.full_like(parameter, float("norm" in name)))
            continue
        std = 0.02 / math.sqrt(2 * 8) if "o_proj" in name or "down_proj" in name else 0.02
        # An estimate from n numbers is off by about std / sqrt(2 n), a mean by std / sqrt(n).
        assert abs(parameter.std().item() / std - 1) < 5 / math.sqrt(2 * parameter.numel()), name
        assert abs(parameter.mean().item()) < 5 * std / math.sqrt(parameter.numel()), name


def test_the_seed_decides_the_weights():
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(TransformerLM(config(num_layers=1, d_model=8)).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0]["embedding.weight"], models[2]["embedding.weight"])


FIRST = {
    "llama": {},
    "tied": {"tie_embeddings": True},
    "biases": {"qkv_bias": True, "o_bias": True, "qk_norm": True},
    "sandwich": {"family": {"residual": "sandwich", "one_plus_norms": True, "embedding_scale": 3.0}},
    "positions": {"family": {"norm": "layer", "gated": False, "ffn_bias": True, "learned_positions": True}},
    "per_head": {"qk_norm": True, "family": {"norm": "layer", "per_head_qk_norm": True}},
    "bare": {"family": {"norm": "layer_bare"}},
}


@pytest.mark.parametrize("fields", FIRST.values(), ids=FIRST)
def test_weights_that_come_one_by_one_are_those_of_a_whole_model(fields):
    sizes = ModelConfig.from_dict({"vocab_size": 24, "d_model": 16, "num_layers": 2, "num_heads": 2, **fields})
    whole = TransformerLM(sizes)
    torch.manual_seed(3)
    initialise(whole, 2)
    with torch.device("meta"):
        model = TransformerLM(sizes)
    torch.manual_seed(3)
    found = {name: weight.clone() for name, weight in first_weights(model, 2)}
    assert found.keys() == dict(whole.named_parameters()).keys()
    assert [name for name, one in whole.named_parameters() if not torch.equal(found[name], one)] == []
    assert all(parameter.is_meta for parameter in model.parameters())


def loss_and_gradient_norms(model, *, autocast=False):
    """The loss of random tokens, and the norm of its gradient in each block."""
    ids = integers(2, 17, limit=64)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model.loss(ids[:, :-1], ids[:, 1:])
    loss.backward()
    return loss.item(), torch.tensor(
        [torch.cat([p.grad.flatten() for p in block.parameters()]).norm() for block in model.layers]
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16 autocast"])
def test_128_blocks_have_a_finite_loss_and_gradients_that_neither_vanish_nor_explode(autocast):
    loss, norms = loss_and_gradient_norms(TransformerLM(config(NUM_BLOCKS)), autocast=autocast)
    assert abs(loss - math.log(64)) < 0.5  # nothing is known yet: nearly one guess in 64
    assert torch.isfinite(norms).all()
    assert 1 / SPREAD < norms[0] / norms[-1] < SPREAD
    assert norms.max() / norms.min() < SPREAD


@pytest.mark.long
@pytest.mark.parametrize("num_layers", [96, 128])  # GPT-3 has 96 blocks, Llama 3.1 405B 126
def test_deep_stacks_take_steps_and_their_gradients_stay_finite_and_bounded(num_layers):
    model = TransformerLM(config(num_layers, d_model=32)).train()
    optimizer = MuonAndAdamW(model, TrainConfig.from_fields({"preset": "tiny"}))
    losses = []
    for step in (1, 2):
        loss, norms = loss_and_gradient_norms(model)
        assert torch.isfinite(norms).all()
        assert norms.max() < SPREAD
        assert norms.max() / norms.min() < SPREAD
        losses.append(loss)
        optimizer.step(step / 20)  # as in a run's warmup
    assert losses == sorted(losses, reverse=True)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("std", "depth_scaled"), [(0.02, False), (0.1, True)], ids=["no depth scaling", "std 0.1"])
def test_other_starts_would_not_pass(std, depth_scaled, monkeypatch):
    monkeypatch.setattr("prenorm.models.init.STD", std)
    model = TransformerLM(config(NUM_BLOCKS))
    if not depth_scaled:
        with torch.no_grad():
            for block in model.layers:
                block.attn.o_proj.weight.mul_(math.sqrt(2 * NUM_BLOCKS))
                block.ffn.down_proj.weight.mul_(math.sqrt(2 * NUM_BLOCKS))
    _, norms = loss_and_gradient_norms(model)
    assert norms[0] / norms[-1] > SPREAD


def test_a_model_can_be_initialised_anew_in_place():
    model = TransformerLM(config(num_layers=1, d_model=8))
    before = model.embedding.weight
    first = before.detach().clone()
    with torch.no_grad():
        model.final_norm.weight.fill_(7)
    initialise(model, 1)
    assert model.embedding.weight is before
    assert not torch.equal(before, first)
    assert model.final_norm.weight.tolist() == [1] * 8
